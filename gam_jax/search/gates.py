"""Cheap questions before dear ones: what a candidate must pass, one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gate:
    """One question.

    Attributes:
      name: of what is asked, as results tell it.
      ask: candidate -> figures by name, None for none; a UserError says no, and why.
    """

    name: str
    ask: Callable[[Any], Mapping[str, float] | None]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What gates have said of a candidate.

    Attributes:
      figures: of all gates that were asked.
      refused: the name of the gate that said no; empty where all said yes.
      why: in one line.
    """

    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    refused: str = ""
    why: str = ""


def through(gates: Sequence[Gate], candidate: Any) -> Verdict:
    """Asks one gate after another; none after the first that says no."""
    figures: dict[str, float] = {}
    for gate in gates:
        try:
            figures.update(gate.ask(candidate) or {})
        except UserError as error:
            return Verdict(figures, gate.name, str(error))
    return Verdict(figures)
