"""What an answer may be: JSON, text of a regular expression, one of some texts.

Needs llguidance (extra `serve`), which says at each token which ones may follow.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gam_jax.data.tokenizer import ByteTokenizer, Tokenizer
from gam_jax.serve.request import Constraint
from gam_jax.serve.trial import check_grammar
from sharding.errors import UserError

if TYPE_CHECKING:
    import llguidance

MOST_BYTES = 2**16
"""Of a schema, a regular expression, or of all texts of a choice."""
KEPT = 8
"""Grammars that stay compiled."""
SPACES = r"[ \n]{0,8}"
"""Between the parts of JSON: without an end to them a weak model writes nothing else."""


class Constraints:
    """Makes constraints for the ids of a tokenizer.

    Args:
      tokenizer: of the model.
      vocab: V of the model, at least the tokenizer's.
      ends: ids with which the model ends an answer; none for a model that has no such id. An
        answer to which nothing can be added ends by itself.

    Raises:
      UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, ends: Collection[int] = ()) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise UserError(
                "a constraint needs llguidance: pip install 'gam_jax[serve]'"
            ) from error
        self._lib = llguidance
        self._tokenizer, self._vocab = tokenizer, vocab
        self._ends = sorted(end for end in ends if end < tokenizer.vocab)
        self._compiled = functools.lru_cache(KEPT)(self._compile)

    def json_object(self) -> Constraint:
        """Any JSON object."""
        return self._made("json_object", self._grammar('{"type": "object"}'))

    def json_schema(self, schema: Mapping[str, Any] | str) -> Constraint:
        """JSON of a schema (json-schema.org), as far as llguidance knows its words.

        Raises:
          UserError: no schema, one that is too large, half a surrogate pair in it, words of it that
            are not known, or one that takes long to compile, see `trial.check_grammar`.
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            _check_size("json_schema", text)
            found = json.loads(text)
            if not isinstance(found, dict):
                raise UserError("json_schema: give an object, such as {'type': 'object'}")
            _encoded("json_schema", json.dumps(found, ensure_ascii=False))
            grammar = self._grammar(text)
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"json_schema: {_line(error)}") from error
        return self._made("json_schema", grammar, tried=True)

    def regex(self, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole; without look-around.

        Raises:
          UserError: no such expression, one that is too large or no Unicode, or one that takes
            long to compile.
        """
        _check_size("regex", pattern)
        grammar = self._lib.LLMatcher.grammar_from_regex(pattern)
        return self._made("regex", grammar, tried=True)

    def choice(self, texts: Sequence[str]) -> Constraint:
        """One of some texts.

        Raises:
          UserError: no text, an empty one, one that is no Unicode, or too many.
        """
        if not texts or not all(texts):
            raise UserError("choice: give at least one text, none of them empty")
        _check_size("choice", "".join(texts))
        pattern = "|".join("".join(map(_literal, text)) for text in texts)
        return self._made("choice", self._lib.LLMatcher.grammar_from_regex(pattern))

    @functools.cached_property
    def _ids(self) -> llguidance.LLTokenizer:
        """Ids and their bytes; with an id that means an end, which the library must have."""
        ends = self._ends or [self._unused]
        if isinstance(self._tokenizer, ByteTokenizer):
            wrapper = self._lib.TokenizerWrapper(_Bytes(ends))
            return self._lib.LLTokenizer(wrapper, eos_token=ends)
        return self._lib.LLTokenizer(self._tokenizer.to_text(), eos_token=ends)

    @property
    def _unused(self) -> int:
        separator = self._tokenizer.separator
        return self._tokenizer.vocab - 1 if separator is None else separator

    def _grammar(self, schema: str) -> str:
        options: Any = {"whitespace_pattern": SPACES}
        return self._lib.LLMatcher.grammar_from_json_schema(schema, overrides=options)

    def _made(self, name: str, grammar: str, tried: bool = False) -> Constraint:
        """A constraint of its own; `tried`: in a process that can be ended, before it is here."""
        matcher = self._compiled(name, grammar, tried).deep_copy()
        return _Matched(matcher, self._vocab, None if self._ends else self._unused)

    def _compile(self, name: str, grammar: str, tried: bool) -> llguidance.LLMatcher:
        if tried:
            check_grammar(name, grammar)
        matcher = self._lib.LLMatcher(self._ids, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"{name}: {_line(matcher.get_error())}")
        return matcher


class _Bytes:
    """The ids of a `ByteTokenizer`, as llguidance asks for them."""

    def __init__(self, ends: Sequence[int]) -> None:
        self.eos_token_id, self.bos_token_id = ends[0], None
        self.tokens = [bytes([value]) for value in range(ByteTokenizer.vocab)]
        self.special_token_ids = list(ends)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


class _Matched:
    """A constraint by a matcher of llguidance; `barred` is an id that is never allowed."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab: int, barred: int | None) -> None:
        self._matcher, self._size, self._barred = matcher, -(-vocab // 32) * 4, barred

    @property
    def ended(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> bytes:
        mask = bytearray(self._matcher.compute_bitmask())
        self._check()
        if self._barred is not None:
            mask[self._barred // 8] &= 0xFF ^ (1 << (self._barred % 8))
        return bytes(mask[: self._size].ljust(self._size, b"\0"))

    def push(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(f"the constraint: {_line(self._matcher.get_error())}")


def _literal(letter: str) -> str:
    """A character in a regular expression."""
    return letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):x}}}"


def _check_size(name: str, text: str) -> None:
    size = len(_encoded(name, text))
    if size > MOST_BYTES:
        raise UserError(f"{name}: {size:,} bytes, and {MOST_BYTES:,} are the most")


def _encoded(name: str, text: str) -> bytes:
    """In UTF-8, which has no half of a surrogate pair; JSON and Python's texts may hold one."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        place = f"U+{ord(text[error.start]):04X}"
        raise UserError(f"{name}: {place} alone is half a surrogate pair, leave it out") from error


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
