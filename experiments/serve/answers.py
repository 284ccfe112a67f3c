"""Answers in the form of the OpenAI API, whole or in pieces."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from experiments.serve.asked import Asked
from experiments.serve.live import Event
from experiments.serve.refusal import Refused
from experiments.serve.served import Ids, Served, shown
from gam_jax.data.tokenizer import Tokenizer
from gam_jax.serve.request import End, Token

REPLACED = "\ufffd"
DONE = "data: [DONE]\n\n"


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to one body.

    Attributes:
      served: the model.
      asked: the body.
      prompts: what was read; answer i is to prompt i // n.
      id: of the answer.
      created: when, in seconds since 1970.
    """

    served: Served
    asked: Asked
    prompts: tuple[Ids, ...]
    id: str
    created: int

    @classmethod
    def to(cls, served: Served, asked: Asked, prompts: list[Ids]) -> Answers:
        """Answers that begin now."""
        kind = "chatcmpl" if asked.chat else "cmpl"
        return cls(served, asked, tuple(prompts), f"{kind}-{secrets.token_hex(12)}", _now())

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """One object with all of them, once they have ended."""
        choices = [_Choice(self, number) for number in range(len(self.prompts) * self.asked.n)]
        async for number, event in events:
            choices[number].take(event)
        kind = "chat.completion" if self.asked.chat else "text_completion"
        told = [choice.whole() for choice in choices]
        return {**self._head(kind), "choices": told, "usage": self._usage(choices)}

    async def pieces(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """Server-sent events, one a token; an error is one more."""
        chat = self.asked.chat
        choices = [_Choice(self, number) for number in range(len(self.prompts) * self.asked.n)]
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = self._head(kind) | ({"usage": None} if self.asked.usage else {})
        try:
            for choice in choices:
                if (first := choice.first()) is not None:
                    yield _sent({**head, "choices": [first]})
            async for number, event in events:
                if (piece := choices[number].take(event)) is not None:
                    yield _sent({**head, "choices": [piece]})
        except Refused as error:
            yield _sent(error.body)
            return
        if self.asked.usage:
            yield _sent({**head, "choices": [], "usage": self._usage(choices)})
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        name = self.served.name
        return {"id": self.id, "object": kind, "created": self.created, "model": name}

    def _usage(self, choices: list[_Choice]) -> dict[str, Any]:
        firsts = choices[:: self.asked.n]
        read = sum(len(ids) for ids in self.prompts)
        written = sum(choice.written for choice in choices)
        cached = sum(choice.cached for choice in firsts)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class _Choice:
    """One answer."""

    def __init__(self, answers: Answers, number: int) -> None:
        self._asked, self._number = answers.asked, number
        self._tokenizer = answers.served.tokenizer
        prompt = answers.prompts[number // answers.asked.n]
        self._before = self._tokenizer.decode(prompt) if self._asked.echo else ""
        self._scored = len(prompt) if self._asked.echo and self._asked.log_probs else 0
        self._text, self._offset = self._before, 0
        self._tokens: list[Token] = []
        self._offsets: list[int] = []
        self._reason: str | None = None
        self.written = self.cached = 0

    def first(self) -> dict[str, Any] | None:
        """The piece before any token: who speaks, or the prompt."""
        if self._asked.chat:
            return self._chunk({"role": "assistant", "content": ""}, None)
        if not self._before or self._scored:
            return None
        return self._chunk(self._before, None)

    def take(self, event: Token | End) -> dict[str, Any] | None:
        """The piece that an event makes; None for one that nobody would see."""
        if isinstance(event, End):
            self._reason, self.written = event.reason, event.completion_tokens
            self.cached = event.cached_tokens
            self._text += event.text
            return self._chunk(self._delta(event.text), None)
        text, scored = event.text, self._scored > 0
        if scored:  # a token of the prompt, whose text is there already
            self._scored -= 1
            text = shown(self._tokenizer, event.id)
        else:
            self._text += text
        self._tokens.append(event)
        self._offsets.append(self._offset)
        self._offset += len(text)
        if not text and not self._asked.log_probs:
            return None
        return self._chunk(self._delta(text), self._log_probs([event], self._offsets[-1:]))

    def whole(self) -> dict[str, Any]:
        """All of it."""
        told = self._log_probs(self._tokens, self._offsets)
        own: dict[str, Any] = {"index": self._number, "logprobs": told}
        own["finish_reason"] = self._reason
        if self._asked.chat:
            return {**own, "message": {"role": "assistant", "content": self._text}}
        return {**own, "text": self._text}

    def _delta(self, text: str) -> Any:
        if not self._asked.chat:
            return text
        return {"content": text} if text else {}

    def _chunk(self, part: Any, log_probs: Any) -> dict[str, Any]:
        own = {"index": self._number, "logprobs": log_probs, "finish_reason": self._reason}
        return {**own, ("delta" if self._asked.chat else "text"): part}

    def _log_probs(self, tokens: list[Token], offsets: list[int]) -> dict[str, Any] | None:
        if not self._asked.log_probs:
            return None
        if self._asked.chat:
            return {"content": [_of_chat(self._tokenizer, token) for token in tokens]}
        top = [_top(self._tokenizer, token) for token in tokens] if self._asked.draws.top else None
        return {
            "tokens": [shown(self._tokenizer, token.id) for token in tokens],
            "token_logprobs": [_finite(token.log_prob) for token in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def _of_chat(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    top = [_named(tokenizer, *one) for one in token.top]
    return {**_named(tokenizer, token.id, token.log_prob), "top_logprobs": top}


def _named(tokenizer: Tokenizer, token: int, log_prob: float) -> dict[str, Any]:
    """A token by its text; its bytes are null where it is part of a character."""
    text = shown(tokenizer, token)
    whole = None if REPLACED in text else list(text.encode())
    return {"token": text, "logprob": _finite(log_prob), "bytes": whole}


def _top(tokenizer: Tokenizer, token: Token) -> dict[str, float | None] | None:
    """Log probabilities by the text of a token; of two alike the likelier one's."""
    if math.isnan(token.log_prob):
        return None
    found: dict[str, float | None] = {}
    for one, log_prob in token.top:
        found.setdefault(shown(tokenizer, one), _finite(log_prob))
    return found


def _finite(log_prob: float) -> float | None:
    """JSON has no NaN, which stands for the first token of a text, and no infinity."""
    if math.isnan(log_prob):
        return None
    return max(log_prob, -9999.0)


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


def _now() -> int:
    return int(time.time())
