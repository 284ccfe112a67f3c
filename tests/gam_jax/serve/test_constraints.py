"""Texts drawn at random from what constraints allow, held against Python's own json and re."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.continuations import Continuation
from gam_jax.data.tokenizer import ByteTokenizer, HFTokenizer
from gam_jax.serve import trial
from gam_jax.serve.constraints import MOST_BYTES, Constraints
from gam_jax.serve.drafts import NgramDraft
from gam_jax.serve.executor import Draws
from gam_jax.serve.request import Request
from gam_jax.serve.seating import Settings
from gam_jax.serve.text import Text
from sharding.errors import UserError
from tests.gam_jax.serve.test_service import BUDGET, Load, sizes_of

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def pieces():
    """Byte pairs of a few words, with an id that ends a text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    found.train_from_iterator(['{"name": "a", "age": 1} yes no'] * 3, trainer)
    return HFTokenizer(found)


BYTES, PAIRS = ByteTokenizer(), pieces()
TOKENIZERS = {
    "bytes": Constraints(BYTES, 300),
    "bytes that end": Constraints(BYTES, 256, ends=[0]),
    "pairs": Constraints(PAIRS, PAIRS.vocab + 5),
    "pairs that end": Constraints(PAIRS, PAIRS.vocab, ends=[PAIRS.separator]),
}


def bits(mask: bytes, vocab: int) -> np.ndarray:
    """The ids that a mask allows."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:vocab])


def drawn(constraint, name: str, seed: int, most: int = 400) -> str | None:
    """A text of ids drawn from those allowed, early ends preferred; None if it does not end."""
    rng, made = np.random.default_rng(seed), TOKENIZERS[name]
    tokenizer = BYTES if "bytes" in name else PAIRS
    end = tokenizer.separator
    ids: list[int] = []
    for _ in range(most):
        mask = constraint.allowed()
        assert len(mask) == -(-made._vocab // 32) * 4
        found = bits(mask, made._vocab)
        assert found.size
        assert found.max() < tokenizer.vocab
        if "end" in name and end in found and rng.random() < 0.5:
            constraint.push(end)
            assert constraint.ended
            return tokenizer.decode(ids)
        assert "end" in name or end not in found
        quotes = [i for i in found if set(tokenizer.decode([i])) & set('"}')]
        ids.append(int(rng.choice(quotes if quotes and rng.random() < 0.4 else found)))
        if ids[-1] == end:
            ids.pop()
            return tokenizer.decode(ids)
        constraint.push(ids[-1])
        if constraint.ended:
            return tokenizer.decode(ids)
    return None


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), st.integers(0, 2**32 - 1))
def test_what_ends_by_itself_is_what_was_asked(name, seed):
    made = TOKENIZERS[name]
    text = drawn(made.json_schema(PERSON), name, seed)
    if text is not None:
        found = json.loads(text)
        assert found.keys() == {"name", "age"}
        assert isinstance(found["name"], str)
        assert len(found["name"]) <= 5
        assert isinstance(found["age"], int)
    text = drawn(made.json_object(), name, seed)
    assert text is None or isinstance(json.loads(text), dict)
    pattern = r"(a|bc){1,3}[0-9]{2}[é-ü]"
    text = drawn(made.regex(pattern), name, seed)
    assert text is not None
    assert re.fullmatch(pattern, text)


TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), TEXTS, st.integers(0, 2**32 - 1))
def test_a_choice_is_one_of_its_texts(name, texts, seed):
    text = drawn(TOKENIZERS[name].choice(texts), name, seed, most=2000)
    assert text is None or text in texts


def test_what_cannot_be_a_constraint_is_refused_in_one_line():
    made = TOKENIZERS["bytes"]
    for wrong, message in (
        (lambda: made.regex("a("), "regex: .*unclosed group"),
        (lambda: made.regex("a" * (MOST_BYTES + 1)), "regex: 65,537 bytes, and 65,536"),
        (lambda: made.json_schema("{"), "json_schema: "),
        (lambda: made.json_schema("[1]"), "json_schema: give an object"),
        (lambda: made.json_schema({"type": "nothing"}), "json_schema: "),
        (lambda: made.json_schema({"$ref": "#/$defs/none"}), "json_schema: "),
        (lambda: made.json_schema({"const": "\ud800"}), r"json_schema: U\+D800 alone is half"),
        (lambda: made.json_schema('{"const": "\\udc00"}'), r"json_schema: U\+DC00 alone is half"),
        (lambda: made.json_schema('{"const": "\ud800"}'), r"json_schema: U\+D800 alone is half"),
        (lambda: made.regex("a\udc80"), r"regex: U\+DC80 alone is half"),
        (lambda: made.choice(["a", "\ud800"]), r"choice: U\+D800 alone is half"),
        (lambda: made.choice([]), "choice: give at least one"),
        (lambda: made.choice(["a", ""]), "choice: give at least one"),
    ):
        with pytest.raises(UserError, match=message) as error:
            wrong()
        assert "\n" not in str(error.value)


def test_what_takes_long_to_compile_is_ended_and_what_compiled_is_kept(monkeypatch):
    """Numbers that are a multiple of 1,234,567 take 18 seconds of a processor."""
    monkeypatch.setattr(trial, "SECONDS", 0.1)
    made = TOKENIZERS["bytes"]
    with pytest.raises(
        UserError, match=r"json_schema: it takes more than 0\.1 seconds or 1,024 MiB"
    ):
        made.json_schema({"type": "integer", "multipleOf": 1_234_567})
    one = made.regex("[ab]{2}")
    monkeypatch.setattr(trial, "PROGRAM", "raise SystemExit(1)")  # it is not tried again
    other = made.regex("[ab]{2}")
    one.push(ord("a"))
    one.push(ord("b"))
    assert (one.ended, other.ended) == (True, False)


@pytest.mark.parametrize(
    ("program", "error", "says"),
    [
        ("raise MemoryError", UserError, "takes more than"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGPROF)", UserError, "takes more than"),
        ("import no_such_library", RuntimeError, "not tried, code 1: ModuleNotFoundError"),
    ],
)
def test_a_process_that_fails_for_another_reason_is_no_fault_of_the_grammar(
    monkeypatch, program, error, says
):
    monkeypatch.setattr(trial, "PROGRAM", program)
    with pytest.raises(error, match=says):
        trial.check_grammar("regex", "start: /a/")


def test_a_token_that_is_not_allowed_is_an_error():
    constraint = TOKENIZERS["bytes"].choice(["yes"])
    with pytest.raises(UserError, match="the constraint: "):
        constraint.push(ord("n"))


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_that_ends_by_itself_parses(seed):
    """Through the service; the double of the model draws what is allowed next."""
    load = Load(sizes_of(2, 4, vocab=256), Settings(BUDGET), NgramDraft())
    made = TOKENIZERS["bytes that end"]
    told: list = []
    continuation = Continuation(BYTES.stream(), ends=[0])
    shape = {"type": "object", "properties": {"a": {"enum": ["xy", 7, None]}}, "required": ["a"]}
    shape["additionalProperties"] = False
    request = Request(
        (1, 2), 90, Draws(), continuation, told.append, seed, constraint=made.json_schema(shape)
    )
    load.service.queue.push("", Text(1, request))
    load.run()
    assert told[-1].reason in ("stop", "length")
    if told[-1].reason == "stop":
        assert json.loads("".join(one.text for one in told))["a"] in ("xy", 7, None)
