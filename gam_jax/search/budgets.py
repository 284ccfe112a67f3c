"""Tables of costs, and budgets on what choices use together; what makes no sense is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sharding.errors import UserError

Table = Sequence[Sequence[float]]
"""A number for each value of each choice."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all choices together may use.

    Attributes:
      uses: of each value of each choice; finite numbers.
      limit: of their sum; a finite number.

    Raises:
      UserError: a number that is not finite.
    """

    uses: Table
    limit: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise UserError(
                f"budget: limit={self.limit}: give a finite number, or leave the budget out"
            )
        for choice, own in enumerate(self.uses):
            if not all(map(math.isfinite, own)):
                raise UserError(f"budget: choice {choice} uses {[*own]}: give finite numbers")


def check_costs(costs: Table) -> None:
    """Refuses a table in which some choice has no value that can be.

    Args:
      costs: of each value of each choice; infinite where a value cannot be.

    Raises:
      UserError: no choices, a choice without values or of infinite costs only, or a cost that is
        NaN or minus infinity.
    """
    if not len(costs):
        raise UserError("costs: there is nothing to choose: give a row for each choice")
    for choice, own in enumerate(costs):
        if any(math.isnan(cost) or cost == -math.inf for cost in own):
            raise UserError(
                f"costs: choice {choice} has {[*own]}: give numbers, "
                "or infinity where a value cannot be"
            )
        if not any(map(math.isfinite, own)):
            raise UserError(f"costs: no value of choice {choice} can be: give a finite cost")


def check_budgets(sizes: Sequence[int], budgets: Sequence[Budget], positive: bool = False) -> None:
    """Refuses budgets that are not of choices of these sizes.

    Args:
      sizes: how many values each choice has.
      budgets: see `Budget`.
      positive: whether limits must be above 0, as where parts of them are taken.

    Raises:
      UserError: a budget of another shape, or a limit that is not above 0 and must be.
    """
    for number, budget in enumerate(budgets):
        found = [len(own) for own in budget.uses]
        if found != list(sizes):
            raise UserError(
                f"budget {number}: give what each value of each choice uses: "
                f"{list(sizes)} numbers, got {found}"
            )
        if positive and budget.limit <= 0:
            raise UserError(
                f"budget {number}: limit={budget.limit}: parts of it are taken: give one above 0"
            )
