"""What counts of a conversation: exactly what the assistant writes, by any template."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gam_jax.data.chat_template import ChatTemplate, find_template, template_from_text
from gam_jax.data.jinja_engine import compile_template
from sharding.errors import UserError
from tests.gam_jax.data import templates
from tests.gam_jax.data.templates import BOS, EOS, TEMPLATES

SPECIAL = (("bos_token", BOS), ("eos_token", EOS))
ALL = {name: ChatTemplate(own.source, SPECIAL) for name, own in TEMPLATES.items()}
WORDS = st.text("ab .\n\tß猫🐈{}%'", max_size=12)
ANSWERS = WORDS.filter(str.strip)


@st.composite
def conversations(draw):
    """Turns of a user and the assistant, perhaps after words of the system."""
    found = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        found.append({"role": "user", "content": draw(WORDS)})
        found.append({"role": "assistant", "content": draw(ANSWERS)})
    return found


def merged(pieces):
    """Text, and (from, to) of what counts of it, by the pieces of a reading."""
    text, spans = "", []
    for piece, counts in pieces:
        if counts:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, tuple(spans)


def turns(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations())
@example(messages=turns("", " a\n", "b", "\n\nc  "))
@example(messages=turns("<b>&amp;", "{% for %}"))
def test_what_counts_is_what_the_assistant_writes_and_its_end(name, messages):
    own = TEMPLATES[name]
    if not own.system:
        messages = [m for m in messages if m["role"] != "system"]
    text, spans = merged(own.pieces(messages))
    found = ALL[name].marked(messages, None, "here")
    assert found.text == text
    assert found.spans == spans
    assert ALL[name].written(messages, None, "here") == text


@given(messages=conversations())
def test_generation_marks_and_prefixes_agree(messages):
    by_marks = ALL["chatml, marked"].marked(messages, None, "here")
    assert by_marks == ALL["chatml"].marked(messages, None, "here")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (templates.THINKS, "message 2: the chat template mine writes it otherwise where it is the"),
        (templates.UNINVITED, "message 2: .* does not say where the answer begins"),
        (templates.OTHERWISE, "message 2: .* invites the assistant with other words"),
        (templates.EMPTY_MARKS, "mine has generation marks and puts nothing between them"),
    ],
)
def test_a_template_that_cannot_be_split_is_refused_by_name_with_what_to_do(source, words):
    template = ChatTemplate(source, SPECIAL, where="mine")
    with pytest.raises(UserError, match=f"^x.jsonl, line 3.*{words}") as caught:
        template.marked(turns("a", "b", "c", "d"), None, "x.jsonl, line 3")
    assert "put {% generation %} and {% endgeneration %} around" in str(caught.value)
    assert template.written(turns("a", "b"), None, "here")  # with data.loss=all it can be read


REFUSING = {
    "its own words": (templates.GEMMA, r"refuses it \(System role not supported\)"),
    "a fault": ("{{ messages[0].content + 1 }}", "refuses it .*int"),
    "what a sandbox forbids": ("{{ messages.__class__.__mro__ }}", "refuses it .*unsafe"),
    "writing to the data": ("{{ messages.append(1) }}", "refuses it .*"),
    "no jinja": ("a\n{% for %}", "mine, line 2 of it is no chat template"),
    "half a mark": ("{% generation %}", "mine, line 1 of it is no chat template"),
}


@pytest.mark.parametrize(("source", "words"), REFUSING.values(), ids=REFUSING)
def test_a_template_that_fails_is_one_line_with_the_place(source, words):
    template = ChatTemplate(source, SPECIAL, where="mine")
    messages = [{"role": "system", "content": "s"}, *turns("a", "b")]
    with pytest.raises(UserError, match=words) as caught:
        template.marked(messages, None, "x.jsonl, line 3")
    assert "\n" not in str(caught.value)


def test_templates_have_what_others_give_them():
    source = (
        "{%- for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
        "{{- {'a': 'ß<', 'tools': tools} | tojson }}{% break %}{% endfor %}"
        "{{- strftime_now('%d %b %Y') }}"
    )
    template = ChatTemplate(source, (), now="2024-07-26")
    tools = [{"name": "f"}]
    found = template.written(turns("a", "b", "c", "d"), tools, "here")
    assert found == '{"a": "ß<", "tools": [{"name": "f"}]}26 Jul 2024'


def test_marks_hold_where_a_template_keeps_what_it_writes():
    source = "{% set x %}{% generation %}{{ messages[1].content }}{% endgeneration %}!{% endset %}"
    found = ChatTemplate(source + "> {{ x }}").marked(turns("a", "bcd"), None, "here")
    assert (found.text, found.spans) == ("> bcd!", ((2, 5),))


def test_a_template_is_found_beside_its_tokenizer(tmp_path):
    config = {"chat_template": "one", "bos_token": BOS, "eos_token": {"content": EOS}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = find_template(str(tmp_path))
    assert (found.source, found.special, found.now) == ("one", SPECIAL, "")
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "two"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several}))
    assert find_template(str(tmp_path / "tokenizer.json")).source == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert find_template(str(tmp_path)).source == "three"
    (tmp_path / "mine.jinja").write_text("four {{ strftime_now('%Y') }}")
    own = find_template(str(tmp_path), str(tmp_path / "mine.jinja"))
    assert own.source.startswith("four")
    assert own.special == SPECIAL
    assert own.now
    assert template_from_text(own.to_text(), "here") == own
    assert template_from_text(own.to_text(), "here").fingerprint == own.fingerprint


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300", "folder"])
def test_without_a_template_the_field_that_names_one_is_told(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{tokenizer} has no chat template.*data.template"):
        find_template(tokenizer)


@pytest.mark.parametrize("content", ["{}", "[]", '{"template": 1}', "x"])
def test_a_kept_template_that_is_none_is_refused(content):
    with pytest.raises(UserError, match=r"chat_template\.json"):
        template_from_text(content, "chat_template.json")


def test_without_jinja2_the_extra_is_named(monkeypatch):
    assert compile_template("a", "").render() == "a"
    monkeypatch.setitem(sys.modules, "gam_jax.data.jinja_engine", None)
    with pytest.raises(UserError, match=r"pip install 'gam_jax\[chat\]'"):
        ChatTemplate("a").written(turns("a", "b"), None, "here")
