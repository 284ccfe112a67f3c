"""Every field of a body is understood within its bounds, or refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.serve.asked import CHAT, TEXT, Asked, Grammar, asked_chat, asked_text
from experiments.serve.body import MOST_BYTES, Body
from experiments.serve.refusal import Refused
from gam_jax.serve.executor import Draws

SAID = [{"role": "user", "content": "hello"}]

WRONG: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 2.5, "9", True],
    "min_tokens": [-1, 1.5],
    "temperature": [-0.1, 101, "hot", False],
    "top_p": [-1, 1.5],
    "top_k": [-2, 1.5],
    "min_p": [-1, 2],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, 1001],
    "logit_bias": [[], {"a": 1}, {"1": 101}, {"1": "x"}, {"01": 1, "1": 1}, {"-1": 0}],
    "seed": [1.5, "1", 2**63],
    "n": [0, 65, 1.0],
    "stop": ["", [""], 5, ["a"] * 17, "x" * 1025, [1]],
    "stop_token_ids": [5, [-1], ["a"], [1.0], [1] * 17],
    "stream": ["yes", 1],
    "stream_options": [{"include_usage": True}, [], {"usage": True}],
    "response_format": ["json", {"type": "xml"}, {"kind": 1}, {"type": "json_schema"}],
    "guided_regex": [5, "x" * 65537],
    "guided_choice": [[], [""], 5, ["a"] * 257],
    "user": [5, "x" * 257],
}
"""Values that no body may have, by field."""

ONLY_TEXT: dict[str, list[Any]] = {
    "logprobs": [-1, 21, True],
    "prompt": [5, [], [[]], [1.5], ["a", 5], [[1, "a"]], ["a"] * 65, {"a": 1}, [-1]],
    "echo": [1, "no"],
}
ONLY_CHAT: dict[str, list[Any]] = {
    "logprobs": [1, "no"],
    "top_logprobs": [-1, 21, 5],
    "max_completion_tokens": [0, "1"],
    "messages": [
        [],
        "hi",
        [5],
        [{"role": "user"}],
        [{"role": 5, "content": "a"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": "a", "tool_calls": []}],
    ],
}


def text(**fields: Any) -> Asked:
    body = json.dumps({"prompt": "hi", **fields}).encode()
    return asked_text(Body(body, TEXT))


def chat(**fields: Any) -> Asked:
    body = json.dumps({"messages": SAID, **fields}).encode()
    return asked_chat(Body(body, CHAT))


CASES = [
    *((read, name, value) for read in (text, chat) for name, bad in WRONG.items() for value in bad),
    *((text, name, value) for name, bad in ONLY_TEXT.items() for value in bad),
    *((chat, name, value) for name, bad in ONLY_CHAT.items() for value in bad),
]


def test_what_is_out_of_bounds_is_refused_by_the_name_of_its_field():
    for read, name, value in CASES:
        with pytest.raises(Refused) as refused:
            read(**{name: value})
        error = refused.value
        assert error.status == 400, (name, value)
        assert name in (error.param or "") or name in error.message, (name, value, error.message)
        assert "\n" not in error.message


def test_every_field_has_a_value_that_is_refused():
    assert set(WRONG) | set(ONLY_TEXT) == set(TEXT) - {"model"}
    assert set(WRONG) | set(ONLY_CHAT) == set(CHAT) - {"model"}


def test_a_field_that_is_not_understood_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="'max_toknes'; did you mean 'max_tokens'"):
        text(max_toknes=5)
    with pytest.raises(Refused, match="unknown field 'tools'"):
        chat(tools=[])


def test_what_is_left_out_has_the_defaults_of_the_openai_api():
    asked = text()
    assert (asked.max_tokens, asked.n, asked.stream, asked.seed) == (16, 1, False, None)
    assert asked.draws == Draws()
    assert asked.prompts == ("hi",)
    assert chat().max_tokens is None
    assert chat().messages == tuple(SAID)
    assert text(max_tokens=None, stop=None, logit_bias=None) == asked


def test_what_is_given_is_what_is_asked_for():
    asked = text(
        prompt=[[1, 2], [3]],
        max_tokens=7,
        temperature=0,
        top_k=-1,
        stop="x",
        logit_bias={"9": -100},
        seed=-1,
        logprobs=3,
        echo=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert asked.prompts == ((1, 2), (3,))
    assert asked.stop == ("x",)
    assert asked.usage
    assert asked.echo
    assert asked.draws == Draws(temperature=0, bias=((9, -100.0),), top=3)
    assert asked.seed == 2**32 - 1
    assert asked.log_probs
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0]["content"] == "ab"
    assert chat(max_completion_tokens=3, logprobs=True, top_logprobs=2).draws.top == 2


def test_grammars_and_their_conflicts():
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    assert text(response_format={"type": "text"}).grammar is None
    assert text(response_format={"type": "json_object"}).grammar == Grammar(
        "json_object", "", "response_format"
    )
    assert chat(response_format=schema).grammar == Grammar(
        "json_schema", '{"type": "object"}', "response_format"
    )
    assert text(guided_choice=["a", "b"]).grammar == Grammar(
        "choice", '["a", "b"]', "guided_choice"
    )
    with pytest.raises(Refused, match="leave one out"):
        text(guided_regex="a", guided_choice=["a"])


def test_too_many_answers_are_refused():
    with pytest.raises(Refused, match="more than 64 answers"):
        text(prompt=["a"] * 33, n=2)


def test_what_is_no_json_object_is_refused():
    for content in (b"", b"[]", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000):
        with pytest.raises(Refused) as refused:
            Body(content, TEXT)
        assert refused.value.status == 400
    with pytest.raises(Refused, match="larger"):
        Body(b" " * (MOST_BYTES + 1), TEXT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans())
def test_any_body_is_asked_or_refused(data, conversation):
    fields = CHAT if conversation else TEXT
    given_fields = data.draw(st.dictionaries(st.sampled_from(fields), JSON, max_size=4))
    content, refused = json.dumps(given_fields).encode(), None
    try:
        body = Body(content, fields)
        asked = asked_chat(body) if conversation else asked_text(body)
    except Refused as error:
        refused, asked = error, None
    assert (asked is None) == (refused is not None)
    if asked is not None:
        assert asked.chat == conversation
    if refused is not None:
        assert (refused.status, refused.body["error"]["message"]) == (400, refused.message)
