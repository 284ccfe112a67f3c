"""What a body asks for: the fields of /v1/completions and /v1/chat/completions.

Beside those of the OpenAI API some of vLLM's are understood: top_k, min_p, repetition_penalty,
min_tokens, stop_token_ids, guided_regex and guided_choice.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from experiments.serve.body import MOST_BYTES, Body, check_text
from experiments.serve.refusal import wrong
from gam_jax.serve.executor import MOST_BIASED, MOST_TOP, Draws

MOST_ANSWERS = 64
"""Prompts of a body, times n."""
MOST_STOPS, LONGEST_STOP = 16, 1024
MOST_CHOICES = 256
LONGEST_GRAMMAR = 65536
"""Characters of a schema, a regular expression or a list of choices."""
MOST_TOKENS = 2**20
PENALTY = 2.0
BIAS = 100.0

SHARED = (
    "model",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "seed",
    "n",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "response_format",
    "guided_regex",
    "guided_choice",
    "user",
)
TEXT = (*SHARED, "prompt", "echo")
CHAT = (*SHARED, "messages", "max_completion_tokens", "top_logprobs")

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What an answer must be.

    Attributes:
      kind: "json_object", "json_schema", "regex" or "choice".
      text: the schema as JSON, the expression, or the choices as a JSON list.
      field: of the body that asked for it.
    """

    kind: str
    text: str
    field: str

    @property
    def slow(self) -> bool:
        """Whether it may take long to compile: a schema or an expression."""
        return self.kind in ("json_schema", "regex")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Attributes:
      chat: whether it is a conversation.
      prompts: texts or ids, one or more; of a conversation none.
      messages: of a conversation.
      n: answers to each prompt.
      max_tokens: None if it does not say.
      min_tokens: before which no end is written.
      draws: how tokens are drawn.
      stop: texts before which an answer ends.
      stop_ids: ids with which it ends.
      seed: None if it does not say.
      stream: whether the answer comes in pieces.
      usage: whether these end with the counts of tokens.
      echo: whether the prompt stands before the answer.
      log_probs: whether log probabilities are told.
      grammar: what the answer must be; None for anything.
      user: who asks.
    """

    chat: bool
    prompts: tuple[str | tuple[int, ...], ...]
    messages: tuple[Message, ...]
    n: int
    max_tokens: int | None
    min_tokens: int
    draws: Draws
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    seed: int | None
    stream: bool
    usage: bool
    echo: bool
    log_probs: bool
    grammar: Grammar | None
    user: str


def asked_text(body: Body) -> Asked:
    """A body of /v1/completions; a Refused for a field that cannot be served."""
    top = body.whole("logprobs", 0, 0, MOST_TOP)
    prompts = _prompts(body)
    asked = _asked(body, top, log_probs="logprobs" in body, default=16, prompts=prompts)
    if len(prompts) * asked.n > MOST_ANSWERS:
        raise wrong(
            "n", f"{len(prompts)} prompts times {asked.n} are more than {MOST_ANSWERS} answers"
        )
    return dataclasses.replace(asked, echo=body.flag("echo"))


def asked_chat(body: Body) -> Asked:
    """A body of /v1/chat/completions; a Refused for a field that cannot be served."""
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise wrong("max_tokens", "max_completion_tokens is given too: leave one out")
    log_probs = body.flag("logprobs")
    top = body.whole("top_logprobs", 0, 0, MOST_TOP)
    if "top_logprobs" in body and not log_probs:
        raise wrong("top_logprobs", "set logprobs to true")
    return _asked(body, top, log_probs, default=None, messages=_messages(body))


def _asked(
    body: Body,
    top: int,
    log_probs: bool,
    default: int | None,
    prompts: tuple[str | tuple[int, ...], ...] = (),
    messages: tuple[Message, ...] = (),
) -> Asked:
    most = default
    for name in ("max_tokens", "max_completion_tokens"):
        if name in body:
            most = body.whole(name, 1, 0 if body.get("echo") is True else 1, MOST_TOKENS)
    seed = body.whole("seed", 0, -(2**63), 2**63 - 1) if "seed" in body else None
    stream = body.flag("stream")
    options = body.object("stream_options", ("include_usage",))
    if options and not stream:
        raise wrong("stream_options", "set stream to true")
    usage = options.get("include_usage", False)
    if not isinstance(usage, bool):
        raise wrong("stream_options", "include_usage: give true or false")
    return Asked(
        chat=bool(messages),
        prompts=prompts,
        messages=messages,
        n=body.whole("n", 1, 1, MOST_ANSWERS),
        max_tokens=most,
        min_tokens=body.whole("min_tokens", 0, 0, MOST_TOKENS),
        draws=_draws(body, top if log_probs else -1),
        stop=body.texts("stop", MOST_STOPS, LONGEST_STOP),
        stop_ids=_ids("stop_token_ids", body.get("stop_token_ids", []), MOST_STOPS, least=0),
        seed=None if seed is None else seed % 2**32,
        stream=stream,
        usage=usage,
        echo=False,
        log_probs=log_probs,
        grammar=_grammar(body),
        user=body.text("user", "", 256),
    )


def _draws(body: Body, top: int) -> Draws:
    return Draws(
        temperature=body.number("temperature", 1.0, 0, 100),
        top_p=body.number("top_p", 1.0, 0, 1),
        top_k=max(0, body.whole("top_k", 0, -1, 2**31 - 1)),
        min_p=body.number("min_p", 0.0, 0, 1),
        repetition_penalty=body.number("repetition_penalty", 1.0, 0.001, 1000),
        presence_penalty=body.number("presence_penalty", 0.0, -PENALTY, PENALTY),
        frequency_penalty=body.number("frequency_penalty", 0.0, -PENALTY, PENALTY),
        bias=_bias(body.get("logit_bias", {})),
        top=top,
    )


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    name = "logit_bias"
    if not isinstance(value, dict):
        raise wrong(name, "give an object of ids and numbers")
    if len(value) > MOST_BIASED:
        raise wrong(name, f"{len(value)} entries are more than {MOST_BIASED}")
    found = []
    for token, bias in value.items():
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not (token.isascii() and token.isdecimal() and len(token) < 10 and number):
            raise wrong(name, f"'{token[:20]}': give ids of the vocabulary with a number each")
        if not -BIAS <= bias <= BIAS:
            raise wrong(name, f"{bias} of id {token} is not from {-BIAS:g} to {BIAS:g}")
        found.append((int(token), float(bias)))
    if len({token for token, _ in found}) < len(found):
        raise wrong(name, "an id stands in it twice, written otherwise")
    return tuple(sorted(found))


def _ids(name: str, value: Any, most: int, least: int = 1) -> tuple[int, ...]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise wrong(name, f"give a list of {least} to {most} ids")
    if not all(type(one) is int and 0 <= one < 2**31 for one in value):
        raise wrong(name, "give whole numbers, ids of the vocabulary")
    return tuple(value)


def _prompts(body: Body) -> tuple[str | tuple[int, ...], ...]:
    value = body.get("prompt")
    if value is None:
        raise wrong("prompt", "give a text, a list of texts, ids, or a list of those")
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        value = [value]
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_ANSWERS:
        raise wrong("prompt", f"give a text or ids, or a list of 1 to {MOST_ANSWERS} of them")
    return tuple(
        check_text("prompt", one, MOST_BYTES)
        if isinstance(one, str)
        else _ids("prompt", one, MOST_TOKENS)
        for one in value
    )


def _messages(body: Body) -> tuple[Message, ...]:
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise wrong("messages", "give a list of at least one message")
    return tuple(_message(f"messages[{place}]", one) for place, one in enumerate(value))


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= set(value):
        raise wrong(name, "give an object with a role and a content")
    if more := set(value) - {"role", "content", "name"}:
        raise wrong(name, f"'{min(more)}' is not understood: role, content and name are")
    found = {key: value[key] for key in ("role", "name") if value.get(key) is not None}
    for key, text in found.items():
        check_text(f"{name}.{key}", text, 256)
    return {**found, "content": _content(f"{name}.content", value["content"])}


def _content(name: str, value: Any) -> str:
    """A text, or a list of parts that are text."""
    if not isinstance(value, list):
        return check_text(name, value, MOST_BYTES)
    for part in value:
        if (
            not isinstance(part, dict)
            or part.get("type") != "text"
            or set(part) != {"type", "text"}
        ):
            raise wrong(name, "parts must be of type text: pictures and sounds are not understood")
    return "".join(check_text(name, part["text"], MOST_BYTES) for part in value)


def _grammar(body: Body) -> Grammar | None:
    fields = ("response_format", "guided_regex", "guided_choice")
    given = [name for name in fields if name in body]
    if len(given) > 1:
        raise wrong(given[1], f"{given[0]} is given too: leave one out")
    if "guided_regex" in body:
        return Grammar("regex", body.text("guided_regex", "", LONGEST_GRAMMAR), "guided_regex")
    if "guided_choice" in body:
        choices = body.texts("guided_choice", MOST_CHOICES, LONGEST_STOP)
        if not choices:
            raise wrong("guided_choice", "give at least one choice")
        return Grammar("choice", json.dumps(choices), "guided_choice")
    return _format(body)


def _format(body: Body) -> Grammar | None:
    name = "response_format"
    value = body.object(name, ("type", "json_schema"))
    kind = value.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar(kind, "", name)
    if kind != "json_schema":
        raise wrong(name, "type is text, json_object or json_schema")
    schema = value.get("json_schema")
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict):
        raise wrong(name, "json_schema holds a name and a schema, which is an object")
    text = json.dumps(schema)
    if len(text) > LONGEST_GRAMMAR:
        raise wrong(name, f"{len(text)} characters are more than {LONGEST_GRAMMAR}")
    return Grammar(kind, text, name)
