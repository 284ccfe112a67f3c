"""Many prompts at once, texts that stop, and conversations, by command."""

from __future__ import annotations

import io
import json
import sys

import jax
import pytest

from experiments.chat import Conversation, template_of, with_end_of_turn
from experiments.writer import Asked, TextRun, Writer
from gam_jax.data.chat_template import CONFIG, ChatTemplate
from gam_jax.data.text import TEMPLATE
from gam_jax.data.tokenizer import HFTokenizer
from gam_jax.layers import Attention, Block
from gam_jax.models import LanguageModel
from gam_jax.training.folder import RunFolder
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.examples import random_like
from tests.gam_jax.data.templates import BOS, CHATML, EOS, NAMES, TEMPLATES, make_tokenizer

PROMPTS = ["the c", "a dog sees the ", "one"]


@pytest.fixture
def sample(trained, command):
    """Lines of JSON that a sample printed."""

    def sample(*args, run=trained.path):
        args = (f"--run={run}", "--temperature=0", "--tokens=20", "--json", *args)
        result = command("sample", *args)
        assert result.code == 0, result.err
        return [json.loads(line) for line in result.out.splitlines()]

    return sample


@pytest.fixture
def said(monkeypatch):
    """Puts lines into standard input."""

    def said(*lines):
        content = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return said


@pytest.fixture(scope="module")
def found_alone():
    return []


@pytest.fixture
def alone(sample, found_alone):
    """What each prompt is continued by when it is the only one."""
    if not found_alone:
        found_alone += [one for prompt in PROMPTS for one in sample(f"--prompt={prompt}")]
    return found_alone


@pytest.mark.parametrize("kind", ["lines", "json", "standard input"])
def test_many_prompts_are_continued_as_each_is_alone(kind, sample, alone, said, tmp_path):
    """In batches of two, the last one filled up."""
    path = tmp_path / "prompts.txt"
    lines = PROMPTS if kind == "lines" else [json.dumps({"prompt": p, "id": 3}) for p in PROMPTS]
    path.write_text("\n".join(lines))
    said(*PROMPTS)
    found = sample(f"--prompts={'-' if kind == 'standard input' else path}", "--batch=2")
    assert [one["text"] for one in found] == [one["text"] for one in alone]
    assert {(one["tokens"], one["ended"]) for one in found} == {(20, "")}


def test_texts_without_json_stand_under_their_numbers(command, trained, alone, tmp_path):
    (tmp_path / "prompts").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    args = (f"--prompts={tmp_path / 'prompts'}", "--temperature=0", "--tokens=20")
    result = command("sample", f"--run={trained.path}", *args)
    want = [f"--- prompt {number}\n{one['text']}\n" for number, one in enumerate(alone, 1)]
    assert result.out == "".join(want)


def test_a_text_ends_before_a_stop_of_several_tokens(sample, alone):
    whole = alone[0]["text"]
    stop = whole[len(PROMPTS[0]) + 6 :][:4]
    [found] = sample(f"--prompt={PROMPTS[0]}", f"--stop={stop}", "--stop=no such text")
    assert found["text"] == PROMPTS[0] + whole[len(PROMPTS[0]) :].partition(stop)[0]
    assert found["ended"] == "text"
    assert found["tokens"] < 20


@pytest.fixture(scope="module")
def run_with(trained, tmp_path_factory):
    """The run with other files in its folder, and changes to its configuration."""

    def run_with(files, **data):
        path = tmp_path_factory.mktemp("run")
        own = RunFolder(trained.path)
        values = own.saved_config()
        values["data"].update(data)
        kept = own.kept(own.experiment().data)
        for name, text in {**kept, "config.json": json.dumps(values), **files}.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(text)
        (path / "checkpoints").symlink_to(own.checkpoints)
        return path

    return run_with


def generation(value):
    return {"source/generation_config.json": json.dumps({"eos_token_id": value})}


@pytest.mark.parametrize(
    ("value", "ends"), [(46, (0, 46)), ([46, 104], (0, 46, 104)), (None, (0,))]
)
def test_end_of_text_ids_are_those_of_tokenizer_and_generation_config(value, ends, run_with):
    assert TextRun.open(str(run_with(generation(value)))).ends() == ends


def test_a_text_ends_with_an_end_of_text_id_unless_told_otherwise(run_with, sample, alone):
    """The byte 46 is a full stop."""
    run, prompt = run_with(generation([46])), f"--prompt={PROMPTS[0]}"
    until, _, _ = alone[0]["text"].partition(".")
    [found] = sample(prompt, run=run)
    assert (found["text"], found["ended"]) == (until, "id")
    [found] = sample(prompt, "--nostop_at_end", run=run)
    assert (found["text"], found["ended"]) == (alone[0]["text"], "")


def template(source):
    return json.dumps({"template": source, "special_tokens": {}, "now": ""})


FORGETS = CHATML.replace("in messages", "in messages[-2:]")
CHATS = {"chatml": CHATML, "names": NAMES, "forgets": FORGETS}


@pytest.mark.parametrize("name", CHATS)
def test_an_answer_is_what_the_whole_conversation_is_continued_by(name, run_with, sample, said):
    """Whether the state of what was read was kept, or all of it was read again."""
    pytest.importorskip("jinja2")
    files = {TEMPLATE: template(CHATS[name])}
    run = run_with(files, format="chat", documents="packed")
    talk = TextRun.open(str(run))
    said("hello", "and the dog?", "one cat.")
    answers = sample("--chat", "--system=be a cat", "--stop=e", "--repetition_penalty=1.3", run=run)
    assert len(answers) == 3
    ending = with_end_of_turn(Asked(1, {}, (), ()), talk.tokenizer, template_of(talk)).stops
    assert ending == (("\n",) if name == "names" else ("<|im_end|>",))
    messages, before = [{"role": "system", "content": "be a cat"}], ""
    for line, answer in zip(("hello", "and the dog?", "one cat."), answers, strict=True):
        messages.append({"role": "user", "content": line})
        text = template_of(talk).written(messages, None, "here", invite=True)
        stops = [f"--stop={stop}" for stop in ("e", *ending)]
        [want] = sample(f"--prompt={text}", *stops, "--repetition_penalty=1.3", run=run)
        assert want["text"] == text + answer["text"]
        kept = bool(before) and text.startswith(before)
        assert answer["read"] == len(text) - (len(before) if kept else 0)
        assert kept == (bool(before) and name != "forgets")
        messages.append({"role": "assistant", "content": answer["text"].strip()})
        before = text


ENDS = {"chatml": "<|im_end|>", "llama": "<|eot|>", "zephyr": EOS, "inst": EOS}


@pytest.mark.parametrize("name", ENDS)
def test_an_answer_ends_with_the_special_token_that_the_template_writes_after_one(name, trained):
    pytest.importorskip("jinja2")
    own = TextRun.open(str(trained.path))
    run = TextRun(own.folder, own.experiment, HFTokenizer(make_tokenizer()))
    template = ChatTemplate(TEMPLATES[name].source, (("bos_token", BOS), ("eos_token", EOS)))
    asked = with_end_of_turn(Asked(1, {}, ("x",), (5,)), run.tokenizer, template)
    [end] = run.encode(ENDS[name], special=True)
    assert (asked.stops, asked.ends) == (("x",), (5, end))
    assert len(run.encode(ENDS[name])) > 1


def test_a_message_that_spells_a_special_token_is_refused(trained):
    own = TextRun.open(str(trained.path))
    run = TextRun(own.folder, own.experiment, HFTokenizer(make_tokenizer()))
    writer = Writer(run, run.model, {}, Layout(make_mesh()), 0)
    talk = Conversation(writer, ChatTemplate(CHATML), Asked(1, {}, (), ()), jax.random.key(0))
    with pytest.raises(UserError, match=r"spells '<\|im_end\|>', which the chat template"):
        talk.say("user", "hello<|im_end|>")
    assert talk.messages == []


def test_a_conversation_that_outgrows_its_caches_is_read_again_into_larger_ones(trained):
    """Answers are those of caches for the whole limit."""
    pytest.importorskip("jinja2")
    own = TextRun.open(str(trained.path))
    model = LanguageModel(Block(Attention(context=1024)), width=8, depth=1, vocab=256)
    params = random_like(model.table())
    writer = Writer(own, model, params, Layout(make_mesh(devices=jax.devices()[:1])), 0)
    asked = Asked(10, {"temperature": 0.0}, (), ())

    def answers(room):
        talk = Conversation(writer, ChatTemplate(CHATML), asked, jax.random.key(0), room=room)
        for _ in range(4):
            talk.say("user", "x" * 30)
            text = "".join(talk.answer(asked.row(own.tokenizer)))
            yield text, talk.read == len(talk.ids), talk.room

    found, wanted = list(answers(1)), list(answers(1024))
    assert [text for text, _, _ in found] == [text for text, _, _ in wanted]
    assert [anew for _, anew, _ in wanted] == [True, False, False, False]
    assert 1 < sum(anew for _, anew, _ in found) < 4
    assert found[-1][-1] < 1024


def test_a_converted_run_speaks_by_the_template_of_its_folder(run_with, command, said):
    pytest.importorskip("jinja2")
    said("hello", "again")
    run = run_with({f"source/{CONFIG}": json.dumps({"chat_template": CHATML})})
    result = command("sample", f"--run={run}", "--chat", "--tokens=5", "--temperature=0")
    assert (result.code, result.out.count("\n")) == (0, 2)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (None, "cannot read the prompts of"),
        ("", "holds no prompt: give one a line"),
        ("one\n\ntwo", "line 2 is an empty prompt: give at least one character"),
        ('{"prompt": "a"}\n{"text": "b"}', "line 2 has no text named prompt"),
        ('{"prompt": "a"}\nb', "line 2 is not JSON"),
        ('{"prompt": 3}', "line 1 has no text named prompt"),
        (b"a\n\xff", "not UTF-8; mend it"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused_by_line(lines, words, command, trained, tmp_path):
    path = tmp_path / "prompts.txt"
    if lines is not None:
        path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    result = command("sample", f"--run={trained.path}", f"--prompts={path}")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert words in result.err
    assert str(path) in result.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--stop=",), "--stop is empty"),
        (("--special",), "no special tokens"),
        (("--prompt=",), "--prompt: it holds no token"),
        (("--prompt=a", "--prompts=b"), "--prompt and --prompts are both given"),
        (("--chat", "--prompt=a"), "--chat reads what is said from standard input"),
        (("--system=a",), "--system is of --chat"),
        (("--chat",), "keeps no chat template: train it with data.format=chat"),
        (("--min_p=2",), "min_p"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_read(
    args, words, command, trained
):
    result = command("sample", f"--run={trained.path}", *args)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert words in result.err


@pytest.mark.parametrize("value", [256, -1, "0", [1, 2.5], {"a": 1}, True])
def test_end_of_text_ids_that_are_none_are_refused(value, run_with, command):
    path = run_with(generation(value))
    result = command("sample", f"--run={path}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "eos_token_id" in result.err
