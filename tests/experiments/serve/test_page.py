"""The page of a server: its script runs against the server, and knows what the API says."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from experiments.serve.app import PAGE, State, make_app
from experiments.serve.asked import CHAT, TEXT
from tests.experiments.serve.conftest import KEY, NAME
from tests.experiments.serve.test_server import answer, pieces

HTML = PAGE.read_text(encoding="utf-8")
SCRIPT = HTML.partition("<script>")[2].partition("</script>")[0]
FILE = "page.mjs"
DRIVER = r"""
import { readFileSync } from "node:fs";
import { runInThisContext } from "node:vm";
const { url, script, values, steps } = JSON.parse(readFileSync(0, "utf-8"));
class Element {
  constructor(value = "") {
    Object.assign(this, { value, textContent: "", className: "", disabled: false });
    this.children = []; this.options = [];
  }
  append(...own) { for (const one of own) { one.parent = this; this.children.push(one); } }
  remove() { this.parent.children = this.parent.children.filter(one => one !== this); }
  replaceChildren(...own) {
    Object.assign(this, { children: own, options: own, value: own[0]?.value ?? "" });
  }
  focus() {}
  scrollIntoView() {}
}
const all = {};
for (const [id, value] of Object.entries(values)) all[id] = new Element(value);
all.way.options = ["chat", "text"].map(value => new Element(value));
const own = globalThis.fetch;
Object.assign(globalThis, {
  document: { getElementById: id => all[id], createElement: () => new Element() },
  Option: Element, setInterval() {}, fetch: (path, options) => own(url + "/" + path, options),
});
runInThisContext(script + "; globalThis.page = { send, models, ways };");
const told = [];
for (const step of steps) {
  for (const [id, value] of Object.entries(step.set)) all[id].value = value;
  await globalThis.page[step.call]();
  told.push({ status: all.status.textContent, prompt: all.prompt.value, way: all.way.value,
    model: all.model.value, send: all.send.disabled, chat: all.way.options[0].disabled,
    log: all.log.children.map(one => [one.className, one.textContent]) });
}
console.log(JSON.stringify(told));
process.exit(0);
"""


class Elements(html.parser.HTMLParser):
    """Ids of elements and the values they begin with."""

    def __init__(self):
        super().__init__()
        self.values: dict[str, str] = {}

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        if "id" in own:
            assert own["id"] not in self.values
            self.values[own["id"]] = own.get("value") or ""


@pytest.fixture(scope="module")
def elements():
    found = Elements()
    found.feed(HTML.replace(SCRIPT, ""))
    return {**found.values, "way": "chat"}


def drive(server, tmp_path, elements, *steps):
    """What the page shows after each step: values that are set, and a function that is called."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (tmp_path / FILE).write_text(DRIVER)
    told = {"url": server.url, "script": SCRIPT, "values": elements}
    told["steps"] = [{"set": values, "call": call} for values, call in steps]
    done = subprocess.run(
        [node, str(tmp_path / FILE)],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_script_asks_for_elements_paths_and_fields_that_there_are(elements):
    assert set(re.findall(r'\$\("(\w+)"\)', SCRIPT)) == set(elements)
    routes = {getattr(route, "path", "") for route in make_app(State("")).routes}
    paths = re.findall(r'"((?:v1/[\w/]+)|health)"', SCRIPT)
    assert len(paths) == 4
    assert {f"/{path}" for path in paths} <= routes
    body = SCRIPT.partition("const body = {")[2].partition("};")[0]
    fields = set(re.findall(r"(\w+)(?=[:,} ])", re.sub(r"\{ include_usage: true \}", "", body)))
    asked = fields & {*TEXT, *CHAT}
    assert asked == {"model", "stream", "stream_options", "max_tokens", "temperature"} | {
        "messages",
        "prompt",
    }


def test_what_the_script_reads_is_what_the_api_says(server):
    with server.client() as client:
        known = {
            "health": client.get("/health").json(),
            "one": client.get("/v1/models").json()["data"][0],
            "found": client.get("/v1/models").json() | client.get("/nowhere").json(),
        }
    options = {"max_tokens": 2, "temperature": 0, "stream_options": {"include_usage": True}}
    said = [{"role": "user", "content": "the cat"}]
    text = pieces(server, prompt="the", **options)
    chat = pieces(server, "/v1/chat/completions", messages=said, **options)
    known["piece"] = {**text[-1], "error": server.post(prompt="").json()["error"]}
    known["usage"] = text[-1]["usage"]
    known["choice"] = text[0]["choices"][0] | chat[1]["choices"][0]
    read = re.findall(r"\b(health|one|found|piece|usage|choice)((?:\.\w+)+)", SCRIPT)
    assert {root for root, _ in read} >= set(known) - {"health"}
    own = {"value", "textContent", "className", "disabled"}  # of elements
    for root, path in read:
        value = known[root]
        for name in path.split(".")[1:]:
            if name in own:
                break
            assert name in value, f"{root}{path}"
            value = value[name]


def test_the_script_writes_what_the_api_writes(server, tmp_path, elements):
    """A text, a conversation of two turns, a body that is refused; who has no key is told."""
    greedy = {"key": KEY, "temperature": "0", "tokens": "12"}
    shown = drive(
        server,
        tmp_path,
        elements,
        ({}, "models"),
        (greedy, "models"),
        ({"way": "text", "prompt": "the cat"}, "send"),
        ({"way": "chat", "prompt": "the cat"}, "send"),
        ({"prompt": "a dog"}, "send"),
        ({"prompt": "again", "tokens": "0"}, "send"),
    )
    assert "give the key" in shown[0]["status"]
    assert shown[0]["send"]
    assert (shown[1]["status"], shown[1]["model"]) == ("ok", NAME)
    assert not shown[1]["send"]
    options = {"temperature": 0, "max_tokens": 12}
    text = answer(server, prompt="the cat", **options)["choices"][0]["text"]
    assert shown[2]["log"][:2] == [["said user", "the cat"], ["said assistant", text]]
    kind, facts = shown[2]["log"][2]
    assert kind == "facts"
    assert re.fullmatch(
        r"7 tokens read, \d+ of them remembered; \d+ written, \d+ a second; .*", facts
    )
    said = []
    for number, turn in ((3, "the cat"), (4, "a dog")):
        said.append({"role": "user", "content": turn})
        told = server.post("/v1/chat/completions", model=NAME, messages=said, **options).json()
        said.append(told["choices"][0]["message"])
        own = [one for one in shown[number]["log"] if one[0] == "said assistant"]
        assert own[-1][1] == said[-1]["content"]
    refused = server.post("/v1/completions", prompt="again", max_tokens=0).json()["error"]
    assert shown[5]["log"][-1] == ["said error", refused["message"]]
    assert shown[5]["prompt"] == "again"
    assert not shown[5]["send"]
