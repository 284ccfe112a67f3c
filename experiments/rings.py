"""What products and messages at the doors of layers take together, at given rates."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table as TextTable

from experiments.tables import print_table
from gam_jax.planning import overlap
from gam_jax.planning.cost import PENALTY
from gam_jax.traffic.doors import Door, doors
from gam_jax.training.experiment import Experiment
from sharding.errors import UserError
from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a device can do.

    Attributes:
      products: operations a second.
      link: bytes a second that it sends to a neighbour.
      penalty: by what part products that are cut into steps are slower.
    """

    products: float
    link: float
    penalty: float = PENALTY


def rates_of(text: str) -> Rates:
    """The rates from "OPERATIONS,BYTES" or "OPERATIONS,BYTES,PENALTY".

    Raises:
      UserError: it is no such text.
    """
    try:
        rates = Rates(*map(float, text.split(",")))
    except (TypeError, ValueError):
        rates = Rates(0.0, 0.0)
    inf = float("inf")
    if not (0 < rates.products < inf and 0 < rates.link < inf and 0 <= rates.penalty < inf):
        raise UserError(
            f"--rates={text}: give operations and bytes a second, and by what part products in "
            f"steps are slower, as --rates=200e12,150e9,0.1"
        )
    return rates


def times(experiment: Experiment, layout: Layout, rates: Rates) -> list[dict[str, Any]]:
    """Seconds of each kind of door in one pass forward, as JSON values; see `overlap`.

    Where there are workers, it is a pass of one of them.

    Raises:
      UserError: the tokens of the residual stream are not split over `tensor`, or by changed rules.
    """
    if layout.axes.residual is None:
        raise UserError(
            "--rates is for messages over `tensor` beside products: give the mesh an axis tensor, "
            "and parallel.preset the word tensor_tokens"
        )
    settings, window = experiment.train, getattr(experiment.data, "window", 0)
    devices = layout.mesh.shape["tensor"]

    def of(door: Door) -> dict[str, Any]:
        product, sent = door.flops / rates.products, door.sent / rates.link
        given = product, sent, devices
        return {
            **dataclasses.asdict(door),
            "serial": overlap.serial(product, sent),
            "decomposed": overlap.decomposed(*given, rates.penalty),
            "ideal": overlap.ideal(*given),
            "worth_it": overlap.worth_it(*given, rates.penalty),
        }

    if experiment.parallel.rules:
        raise UserError(
            f"--rates knows the usual table of rules alone: leave out "
            f"parallel.rules={experiment.parallel.rules}"
        )
    rows = settings.batch // settings.accumulate // settings.local.workers
    return [of(door) for door in doors(experiment.model, layout, rows, window)]


def print_times(found: list[dict[str, Any]], rates: Rates) -> None:
    """The three times of each door, and when steps lose."""
    table = TextTable(
        "layer", "door", "times", "one by one", "in a ring", "ideal", "", title="microseconds"
    )
    for row in found:
        three = (f"{1e6 * row[name]:,.2f}" for name in ("serial", "decomposed", "ideal"))
        word = "pays" if row["worth_it"] else "loses"
        table.add_row(row["layer"], row["way"], str(row["count"]), *three, word)
    print_table(table)
    print(
        f"at {rates.products:g} operations and {rates.link:g} bytes a second; forward, and "
        f"backward as long again"
    )
    print(
        f"a ring loses where messages take less than {rates.penalty:.0%} of the time of their "
        f"products, by which products in steps are slower"
    )
