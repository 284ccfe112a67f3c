"""The lines of a search: one for each candidate, in one file; and what the search is, beside it."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gam_jax.config import flatten
from gam_jax.training.metrics import LINE_BYTES, lines_of
from sharding.errors import UserError
from sharding.json_file import BadJson, parse_json, read_json
from sharding.whole_file import append, write_atomically


@dataclasses.dataclass(frozen=True)
class Result:
    """What is known of a candidate.

    Attributes:
      trial: its number, from 0.
      point: of the space.
      values: path -> value.
      figures: parameters; flops of a token and bytes held, where they can be told.
      losses: of validation, by the base's steps after which they were measured.
      score: loss divided by the base's after as many tokens, the last there is; None where it is
        refused.
      finished: whether it was trained to the end, and so may be the best.
      refused: by which gate; empty where it was not.
      why: in one line.
      doubt: what was said of a loss too far below the base's, where it was.
    """

    trial: int
    point: Sequence[int]
    values: Mapping[str, Any]
    figures: Mapping[str, float]
    losses: Mapping[str, float]
    score: float | None
    finished: bool = False
    refused: str = ""
    why: str = ""
    doubt: str = ""

    @property
    def told(self) -> float:
        """What the strategy is told: infinity where it is refused."""
        return math.inf if self.score is None else self.score


def best_of(results: Sequence[Result]) -> Result:
    """The least score of those that were trained to the end.

    Raises:
      UserError: there is none.
    """
    ended = [each for each in results if each.finished and each.score is not None]
    if not ended:
        raise UserError(f"none of {len(results)} candidates was trained to the end")
    return min(ended, key=lambda each: each.told)


@dataclasses.dataclass(frozen=True)
class SearchFolder:
    """Paths of a search, and what they hold."""

    path: pathlib.Path

    @property
    def about(self) -> pathlib.Path:
        """What is searched, and how."""
        return self.path / "search.json"

    @property
    def results(self) -> pathlib.Path:
        """A line for each candidate."""
        return self.path / "results.jsonl"

    @property
    def picture(self) -> pathlib.Path:
        """Scores by trial."""
        return self.path / "search.png"

    @property
    def best(self) -> pathlib.Path:
        """The best candidate, as a config file."""
        return self.path / "best.py"

    def run(self, name: str) -> pathlib.Path:
        """The run folder of that name."""
        return self.path / "runs" / name

    def begin(self, about: Mapping[str, Any]) -> None:
        """Writes what the search is, or sees that it is the one that was begun here.

        Raises:
          UserError: another search, or something else, is in the folder.
        """
        plain = json.loads(json.dumps(about))
        if self.about.exists():
            old = read_json(self.about)
            kept = {**plain, "trials": old.get("trials")}
            if kept != old or plain["trials"] < old["trials"]:
                raise UserError(
                    f"{self.path} holds another search ({_unlike(old, plain)}): "
                    f"name another folder with --out"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} exists and holds no search: name another with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.about, json.dumps(plain, indent=2) + "\n")

    def read(self) -> list[Result]:
        """All lines but a last one that was cut short, which is removed.

        Raises:
          UserError: a line that is no result.
        """
        if not self.results.is_file():
            return []
        with self.results.open("rb") as file:
            lines = list(lines_of(file))
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            write_atomically(self.results, b"".join(whole).decode())
        return [self._result(number, line) for number, line in enumerate(whole)]

    def _result(self, number: int, line: bytes) -> Result:
        try:
            found = Result(**parse_json(line, "line", max_bytes=LINE_BYTES))
        except (BadJson, TypeError) as error:
            raise UserError(f"{self.results}: line {number + 1} is no result: {error}") from error
        if found.trial != number:
            raise UserError(f"{self.results}: line {number + 1} is of trial {found.trial}")
        return found

    def add(self, results: Sequence[Result]) -> None:
        """Lines at the end."""
        lines = "".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in results)
        append(self.results, lines.encode())


def plain(result: Result) -> Any:
    """A result as its line has it."""
    return json.loads(json.dumps(dataclasses.asdict(result)))


def _unlike(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first field that differs."""
    before, after = flatten(old), flatten(new)
    name = next(name for name in (*after, *before) if before.get(name) != after.get(name))
    return f"{name}: {before.get(name)!r} -> {after.get(name)!r}"[:300]
