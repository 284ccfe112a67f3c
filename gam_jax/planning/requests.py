"""Requests that a server is planned for: drawn by what is known of a use, or read from a file.

Source: APEX (arXiv 2411.17651), whose three traces have these counts, means and deviations.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
import random
from typing import Any, NamedTuple

from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
      arrives: seconds after the first.
      reads: tokens of its prompt.
      writes: tokens of its answer.
    """

    arrives: float
    reads: int
    writes: int


class Lengths(NamedTuple):
    """A use: how many requests, and means and deviations of tokens that are read and written."""

    count: int
    reads: tuple[float, float]
    writes: tuple[float, float]


TRACES = {
    "summarisation": Lengths(1188, (2742, 944), (172, 73)),
    "creation": Lengths(512, (307, 81), (1128, 420)),
    "chat": Lengths(1024, (73, 149), (189, 174)),
}
COLUMNS = ("arrives", "reads", "writes")


def drawn(use: Lengths, rate: float, seed: int, count: int = 0) -> tuple[Asked, ...]:
    """Requests of a use: lengths are log-normal, arrivals Poisson.

    Args:
      use: one of `TRACES`.
      rate: requests a second; all come at once if it is infinite.
      seed: of all draws.
      count: how many; all of the use if 0.
    """
    draw, clock, found = random.Random(seed), 0.0, []
    for _ in range(count or use.count):
        found.append(Asked(clock, _length(draw, *use.reads), _length(draw, *use.writes)))
        clock += draw.expovariate(1.0) / rate
    return tuple(found)


def _length(draw: random.Random, mean: float, deviation: float) -> int:
    """Log-normal of this mean and deviation, in whole tokens, at least one."""
    variance = math.log1p((deviation / mean) ** 2)
    return max(1, round(draw.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))))


def read_trace(path: pathlib.Path, what: str = "--trace") -> tuple[Asked, ...]:
    """Requests of a table with the columns arrives, reads and writes (CSV), by arrival.

    Raises:
      UserError: no such table, no request in it, or numbers that are none.
    """
    try:
        with path.open(newline="") as file:
            table = csv.DictReader(file)
            if sorted(table.fieldnames or ()) != sorted(COLUMNS):
                raise UserError(f"{what}={path}: its first line must be {','.join(COLUMNS)}")
            found = [_asked(row, f"{what}={path}, line {table.line_num}") for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{what}={path}: it cannot be read: {error}") from error
    if not found:
        raise UserError(f"{what}={path}: there is no request in it")
    found.sort(key=lambda each: each.arrives)
    first = found[0].arrives
    return tuple(dataclasses.replace(each, arrives=each.arrives - first) for each in found)


def _asked(row: dict[str | Any, str], where: str) -> Asked:
    if None in row:
        raise UserError(f"{where}: it has more cells than the first line")
    try:
        found = Asked(float(row["arrives"]), int(row["reads"]), int(row["writes"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: give a time and two whole numbers") from error
    if not math.isfinite(found.arrives) or found.reads < 1 or found.writes < 1:
        raise UserError(f"{where}: a request arrives at a time, and reads and writes tokens")
    return found
