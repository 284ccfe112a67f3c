"""Questions about texts, answered by a run: how likely they are, and how they go on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.writer import TextRun, Writer
from gam_jax import decode
from gam_jax.continuations import Continuation, follow
from gam_jax.data.chat_template import CONFIG
from gam_jax.likelihood import Likelihood, Pair, cut, likelihoods, rolling
from sharding import processes
from sharding.bounds import Size, check_number
from sharding.errors import UserError
from sharding.json_file import read_json

LONGEST = 2048
"""Tokens that a model without a limit is given at most."""
WRITTEN = 256
"""Tokens that are written at most where a request does not say."""
MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names for that number; the first one given counts."""
DRAWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclasses.dataclass(frozen=True)
class Begins:
    """What stands before a text.

    Attributes:
      prefix: the id before a text that has no context.
      always: whether that id stands before every text.
    """

    prefix: int
    always: bool


def begins_of(run: TextRun, always: bool | None) -> Begins:
    """What stands before the texts of a run, as transformers has it of a model folder.

    Args:
      run: its separator is what documents begin with in training. If it was made of a model
        folder, the `bos_token` of that counts, which stands before every text if the tokenizer's
        file says so.
      always: whether it does; None for what the file says.

    Raises:
      UserError: there is no such token.
    """
    path, found = run.folder.source / CONFIG, None
    if path.is_file():
        given = read_json(path, finite=False).get("bos_token")
        text = given.get("content") if isinstance(given, dict) else given
        if isinstance(text, str) and text in run.tokenizer.special_tokens:
            found = int(run.encode(text, special=True)[0])
    of_file = run.tokenizer.begins if path.parent.is_dir() else None
    prefix = next((x for x in (found, of_file, run.tokenizer.separator) if x is not None), None)
    if prefix is None:
        raise UserError(
            f"the tokenizer of {run.folder.path} has no token that a text begins with, so that its "
            f"first token cannot be scored"
        )
    return Begins(prefix, of_file is not None if always is None else always)


@dataclasses.dataclass(frozen=True)
class TextScorer:
    """A run that is asked.

    Attributes:
      writer: the run with its parameters.
      begins: what stands before texts.
      longest: tokens that the model is given at most.
      rows: requests side by side.
    """

    writer: Writer
    begins: Begins
    longest: int
    rows: int

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, in which the names of special tokens are those tokens."""
        ids = self.writer.run.encode(text, special=True)
        if not self.begins.always or ids[:1].tolist() == [self.begins.prefix]:
            return ids
        return np.concatenate([[self.begins.prefix], ids]).astype(np.int32)

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of both: those of the whole text, cut where the context ends.

        Blanks at the end of the context go to the continuation, with which they may be one token.
        """
        bare = context.rstrip()
        whole, first = self.encode(context + continuation), self.encode(bare)
        if not bare:
            asked = self.writer.run.encode(context + continuation, special=True)
            begun = asked[:1].tolist() == [self.begins.prefix]
            return Pair(asked[:1], asked[1:]) if begun else Pair(self._prefix, asked)
        return Pair(whole[: len(first)], whole[len(first) :])

    @property
    def _prefix(self) -> np.ndarray:
        return np.array([self.begins.prefix], np.int32)

    def loglikelihood(self, asked: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely each continuation is after its context; too long a context is cut.

        Raises:
          UserError: a continuation without a token, or longer than `longest`.
        """
        return self._likelihoods([self.pair(*one) for one in asked])

    def _likelihoods(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        writer = self.writer
        kept = [cut(pair, self.longest) for pair in pairs]
        pairwise = zip(pairs, kept, strict=True)
        self._tell_cut(sum(len(new.context) < len(old.context) for old, new in pairwise))
        return likelihoods(writer.model, writer.params, kept, self.rows, writer.layout)

    def _tell_cut(self, count: int) -> None:
        if count and processes.is_first():
            print(
                f"{count} contexts do not fit {self.longest} tokens: their beginnings are left out",
                file=sys.stderr,
            )

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The logarithm of the probability of each text, in windows of `longest` tokens."""
        windows = [
            list(rolling(self.encode(text), self.begins.prefix, self.longest)) for text in texts
        ]
        found = iter(self._likelihoods(list(itertools.chain.from_iterable(windows))))
        return [sum(one.log for one in itertools.islice(found, len(own))) for own in windows]

    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What each context is continued by, as its settings say.

        Args:
          asked: contexts, each with `until` (texts before which it ends), the most tokens by one
            of the names `MOST`, `do_sample`, and settings of `gam_jax.sampling`. Without
            `do_sample` and a temperature the likeliest tokens are taken.

        Raises:
          UserError: another setting, or no room for a context.
        """
        groups: dict[str, list[int]] = {}
        for number, (_, settings) in enumerate(asked):
            groups.setdefault(json.dumps(dict(settings), sort_keys=True), []).append(number)
        found = [""] * len(asked)
        for settings, numbers in groups.items():
            own = json.loads(settings)
            for at in range(0, len(numbers), self.rows):
                some = numbers[at : at + self.rows]
                texts = self._written([asked[number][0] for number in some], some, own)
                for number, text in zip(some, texts, strict=True):
                    found[number] = text
        return found

    def _written(
        self, contexts: Sequence[str], numbers: Sequence[int], settings: dict[str, Any]
    ) -> list[str]:
        until, tokens, drawn = told(settings)
        room = self.longest - tokens
        if room < 1:
            raise UserError(
                f"{tokens} tokens to write leave no room for a context in {self.longest}: ask for "
                f"fewer by max_gen_toks"
            )
        whole = [self.encode(context) for context in contexts]
        self._tell_cut(sum(len(ids) > room for ids in whole))
        ids = [ids[-room:] if len(ids) else self._prefix for ids in whole]
        writer, ends = self.writer, self.writer.run.ends()
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.array(numbers))
        pieces = decode.generate(
            writer.model, writer.params, ids, tokens, keys,
            stop=ends, layout=writer.layout, **drawn,
        )  # fmt: skip
        rows = [Continuation(writer.run.tokenizer.stream(), until, ends) for _ in ids]
        for _ in follow(pieces, rows):
            pass
        return [row.text for row in rows]


def told(settings: Mapping[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Stop texts, the most tokens, and how they are drawn, of a request's settings.

    Raises:
      UserError: a setting that is not known.
    """
    left = {name: value for name, value in settings.items() if value is not None}
    until = left.pop("until", [])
    until = [until] if isinstance(until, str) else until
    most = [left.pop(name, None) for name in MOST]
    tokens = next((n for n in most if n is not None), WRITTEN)
    check_number("max_gen_toks", tokens, Size)
    samples = left.pop("do_sample", left.get("temperature", 0) != 0)
    if other := sorted(left.keys() - set(DRAWN)):
        raise UserError(f"generation_kwargs: {other[0]}={left[other[0]]!r} is not known here")
    if not samples:
        left = {name: value for name, value in left.items() if name == DRAWN[-1]}
        left["temperature"] = 0
    return [text for text in until if text], tokens, left
