"""A model that is served: what it reads of a body, and the requests that this makes."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence

from experiments.chat import check_said, with_end_of_turn
from experiments.serve.asked import Asked, Grammar, Message
from experiments.serve.refusal import Refused, wrong
from experiments.writer import Asked as Written
from experiments.writer import encoded
from gam_jax.continuations import Continuation
from gam_jax.data.chat_template import ChatTemplate
from gam_jax.data.tokenizer import Tokenizer
from gam_jax.serve.request import Constraint, End, Engine, Request, Token
from sharding.errors import UserError

LONGEST = 4096
"""Tokens that are written at most where neither the body nor the model has a limit."""

Ids = tuple[int, ...]
Grammars = Callable[[Grammar, Ids], Constraint]
"""(what an answer must be, ids that end it) -> what watches over it."""


@dataclasses.dataclass(frozen=True)
class Served:
    """A model behind a name.

    Attributes:
      name: by which it is asked for.
      created: when it was trained or served first, in seconds since 1970.
      tokenizer: of its texts.
      vocab: V, of the model.
      limit: the most tokens of prompt and answer together; 0 for any number.
      ends: ids that end a text.
      begins: the id that stands before a text; None for none.
      special: whether the name of a special token in a text is that token, as in model folders.
      template: how conversations are written; None for no conversations.
      engine: what runs it.
      grammars: makes constraints.
    """

    name: str
    created: int
    tokenizer: Tokenizer
    vocab: int
    limit: int
    ends: Ids
    begins: int | None
    special: bool
    template: ChatTemplate | None
    engine: Engine
    grammars: Grammars

    def prompts(self, asked: Asked) -> list[Ids]:
        """The ids that are read: of each prompt, or of the conversation.

        Raises:
          Refused: ids outside the vocabulary, no token, no chat template, or one that refuses.
        """
        if asked.chat:
            return [self._conversation(asked.messages)]
        return [self._prompt(prompt) for prompt in asked.prompts]

    def _prompt(self, prompt: str | Ids) -> Ids:
        if not isinstance(prompt, str):
            self._check_ids("prompt", prompt)
            return prompt
        ids = self.encode(prompt)
        if not ids:
            raise wrong("prompt", "it holds no token: give at least one character")
        return ids

    def encode(self, text: str) -> Ids:
        """Ids of a text, after the one that begins texts if there is such."""
        ids = tuple(encoded(self.tokenizer, text, self.special).tolist())
        if self.begins is None or ids[:1] == (self.begins,):
            return ids
        return (self.begins, *ids)

    def _conversation(self, messages: Sequence[Message]) -> Ids:
        if self.template is None:
            raise wrong(
                "messages",
                f"{self.name} has no chat template: start with --chat_template=FILE, or use "
                f"/v1/completions",
            )
        try:
            for message in messages:
                check_said(message["content"], self.tokenizer)
            text = self.template.written(messages, None, "messages", invite=True)
        except UserError as error:
            raise Refused(400, str(error), "messages") from error
        return tuple(encoded(self.tokenizer, text, special=True).tolist())

    def requests(
        self, asked: Asked, prompts: Sequence[Ids], tell: Callable[[int, Token | End], None]
    ) -> list[Request]:
        """A request for each answer; answer i is to prompt i // n.

        Args:
          asked: the body.
          prompts: the ids that are read.
          tell: is given the number of an answer, and what becomes of it.

        Raises:
          Refused: a prompt that leaves no room, ids outside the vocabulary, a grammar that cannot
            be followed.
        """
        ends, stops = self._ending(asked)
        self._check_ids("logit_bias", [token for token, _ in asked.draws.bias])
        room = [self._room(asked, ids) for ids in prompts]
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        found = []
        for number in range(len(prompts) * asked.n):
            place = number // asked.n
            found.append(
                Request(
                    prompt=prompts[place],
                    max_tokens=room[place],
                    min_tokens=asked.min_tokens,
                    draws=asked.draws,
                    continuation=Continuation(self.tokenizer.stream(), stops, ends),
                    tell=lambda event, number=number: tell(number, event),
                    seed=(seed + number) % 2**32,
                    user=asked.user,
                    constraint=self._constraint(asked.grammar, ends),
                    scores_prompt=asked.echo and asked.log_probs,
                )
            )
        return found

    def _ending(self, asked: Asked) -> tuple[Ids, tuple[str, ...]]:
        """Ids and texts with which an answer ends."""
        self._check_ids("stop_token_ids", asked.stop_ids)
        written = Written(1, {}, asked.stop, (*self.ends, *asked.stop_ids))
        if asked.chat and self.template is not None:
            written = with_end_of_turn(written, self.tokenizer, self.template)
        # What must be JSON may hold the text that ends another answer, and ends by itself.
        stops = written.stops if asked.grammar is None else asked.stop
        return tuple(written.ends), tuple(stops)

    def _room(self, asked: Asked, ids: Ids) -> int:
        """Tokens that may be written after the prompt."""
        field = "messages" if asked.chat else "prompt"
        left = self.limit - len(ids) if self.limit else max(asked.max_tokens or LONGEST, 1)
        if left < 1:
            raise Refused(
                400,
                f"{field}: {len(ids)} tokens leave no room for an answer in the {self.limit} of "
                f"{self.name}: give fewer",
                field,
                "context_length_exceeded",
            )
        if asked.max_tokens is not None and asked.max_tokens > left:
            raise Refused(
                400,
                f"max_tokens: {len(ids)} tokens of the {field} and {asked.max_tokens} to write are "
                f"more than the {self.limit} of {self.name}: ask for at most {left}",
                "max_tokens",
                "context_length_exceeded",
            )
        return min(left, LONGEST) if asked.max_tokens is None else asked.max_tokens

    def _constraint(self, grammar: Grammar | None, ends: Ids) -> Constraint | None:
        if grammar is None:
            return None
        try:
            return self.grammars(grammar, ends)
        except UserError as error:
            raise wrong(grammar.field, str(error)) from error

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        bad = next((one for one in ids if not 0 <= one < self.vocab), None)
        if bad is not None:
            raise wrong(
                name, f"{bad} is no id: the vocabulary has those from 0 to {self.vocab - 1}"
            )


def shown(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token, with U+FFFD for what is part of a character."""
    return tokenizer.shown([token])
