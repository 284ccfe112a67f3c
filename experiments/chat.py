"""A conversation with a run, by its chat template; the state of what was read is kept."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.writer import Asked, TextRun, Writer, encoded
from gam_jax import decode, sampling
from gam_jax.continuations import Continuation, follow
from gam_jax.data.chat_template import ChatTemplate, find_template
from gam_jax.data.counted import NO_CHARACTERS
from gam_jax.data.text_dataset import kept_template
from gam_jax.data.tokenizer import Tokenizer
from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from sharding.errors import UserError

HERE = "the conversation"
SENTINEL = "an answer"
"""Stands in the place of an answer where it is looked up what comes after one."""


def template_of(run: TextRun) -> ChatTemplate:
    """The chat template that a run keeps: of its data, or of the folder that it was made of.

    Raises:
      UserError: it keeps none.
    """
    template = kept_template(run.folder.kept(run.experiment.data))
    source = run.folder.source
    if template is None and source.is_dir():
        template = find_template(str(source))
    if template is None:
        raise UserError(
            f"--chat: {run.folder.path} keeps no chat template: train it with data.format=chat, or "
            f"convert a folder that has one"
        )
    return template


def with_end_of_turn(asked: Asked, tokenizer: Tokenizer, template: ChatTemplate) -> Asked:
    """`asked`, with what the template writes after an answer as one more end.

    That is the first special token there; a stop text where there is none.
    """
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": SENTINEL}]
    text = template.written(messages, None, HERE)
    after = text[text.rfind(SENTINEL) + len(SENTINEL) :]
    places = {name: at for name in tokenizer.special_tokens if (at := after.find(name)) >= 0}
    if places:
        first = min(places, key=lambda name: (places[name], -len(name)))
        ends = (*asked.ends, int(encoded(tokenizer, first, special=True)[0]))
        return dataclasses.replace(asked, ends=ends)
    stop = after.rstrip() or after
    return dataclasses.replace(asked, stops=(*asked.stops, *([stop] if stop else [])))


def check_said(text: str, tokenizer: Tokenizer) -> None:
    """Raises a UserError for a message that spells what the chat template alone may write."""
    never = (*sorted(tokenizer.special_tokens), *NO_CHARACTERS)
    if spelled := next((name for name in never if name and name in text), None):
        raise UserError(
            f"a message spells {spelled!a}, which the chat template alone may write: take it out"
        )


@dataclasses.dataclass
class Conversation:
    """What was said, and the state of the model after what it has read.

    Attributes:
      writer: who answers.
      template: how messages are written.
      asked: how answers are written.
      key: random key of all of them.
      messages: so far.
      ids: that were read.
      state: the carry after those; None before any.
      read: how many of them were read for the last answer.
      room: tokens that the model's caches are made for, twice as many as were needed. A
        conversation that outgrows them is read again, into larger ones.
    """

    writer: Writer
    template: ChatTemplate
    asked: Asked
    key: jax.Array
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    state: ModelCarry | None = None
    read: int = 0
    room: int = 1

    def say(self, role: str, text: str) -> None:
        """Adds a message.

        Raises:
          UserError: it spells what the template alone may write.
        """
        check_said(text, self.writer.run.tokenizer)
        self.messages.append({"role": role, "content": text})

    def answer(self, row: Continuation) -> Iterator[str]:
        """Answers what was said; gives out the text as it is written.

        Args:
          row: that takes it.

        Raises:
          UserError: a conversation that the template refuses, or with no room for an answer.
        """
        run, writer = self.writer.run, self.writer
        text = self.template.written(self.messages, None, HERE, invite=True)
        ids = run.encode(text, special=True)
        tokens = self._left(len(ids))
        model = self._model(len(ids) + tokens)
        logits, self.state = self._read(model, ids)
        self.ids = ids
        pieces = decode.write(
            model,
            writer.params,
            logits,
            self.state,
            tokens,
            self.key,
            stop=self.asked.ends,
            seen=sampling.seen_in([ids], logits.shape[1]),
            layout=writer.layout,
            **self.asked.drawn,
        )
        yield from (new for _, new in follow(pieces, [row]))
        self.messages.append({"role": "assistant", "content": row.text.strip()})

    def _left(self, read: int) -> int:
        """Tokens that an answer may have."""
        limit = self.writer.model.limit
        left = min(self.asked.tokens, limit - read) if limit else self.asked.tokens
        if left < 1:
            raise UserError(
                f"the conversation has {read} tokens, which leaves no room for an answer in the "
                f"model's {limit}: begin another"
            )
        return left

    def _model(self, tokens: int) -> LanguageModel:
        """The model, with caches for that many tokens or more."""
        model = self.writer.model
        fitted = model.for_length(self.room)
        if tokens <= self.room:
            return fitted
        self.room = min(2 * tokens, model.limit or 2 * tokens)
        larger = model.for_length(self.room)
        if larger != fitted:  # a recurrent state alone never is
            self.state = None
        return larger

    def _read(self, model: LanguageModel, ids: np.ndarray) -> tuple[jax.Array, ModelCarry]:
        """Reads what is new where the conversation goes on as it was read, else all of it."""
        known, state = len(self.ids), self.state
        if state is None or not (known < len(ids) and np.array_equal(self.ids, ids[:known])):
            known, state = 0, None
        new = ids[None, known:]
        self.read = new.shape[1]
        writer = self.writer
        return decode.prefill(model, writer.params, new, state, layout=writer.layout)


def converse(conversation: Conversation, system: str, in_json: bool) -> None:
    """Answers each line of standard input, until it ends (Ctrl-D).

    Args:
      conversation: that begins.
      system: the first message, of the system; '' for none.
      in_json: print a line of JSON for each answer.

    Raises:
      UserError: as `Conversation`; at a terminal it is told, and the message is taken back.
    """
    if system:
        conversation.say("system", system)
    run, terminal = conversation.writer.run, sys.stdin.isatty()
    for line in _lines(terminal):
        said = list(conversation.messages)
        row = conversation.asked.row(run.tokenizer)
        put: Callable[[str], None] = _silent if in_json else _shown
        try:
            conversation.say("user", line)
            for new in conversation.answer(row):
                put(new)
        except UserError as error:
            if not terminal:
                raise
            conversation.messages[:] = said
            print(f"error: {error}", file=sys.stderr)
            continue
        put("\n")
        if in_json:
            facts = {"tokens": row.tokens, "ended": row.ended, "read": conversation.read}
            print(json.dumps({"text": row.text, **facts}), flush=True)


def _lines(terminal: bool) -> Iterator[str]:
    """Lines with something in them, of standard input."""
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        if line.strip():
            yield line


def _shown(text: str) -> None:
    print(text, end="", flush=True)


def _silent(text: str) -> None:
    pass
