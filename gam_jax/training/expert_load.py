"""What the routers of a run did, as figures for its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.ops.routing import max_violation

SPLIT = "routing"
"""Of the lines in metrics.jsonl that hold loads."""


def routing_lines(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each mixture of experts in the model's blocks.

    Args:
      measures: of a training step, see `Model.objective`.

    Returns:
      layer (its path), and for each block: load [L, E], shares of all choices; max_violation,
      dropped and router_entropy [L].
    """
    lines = []
    for name, value in measures.items():
        path, _, measure = name.rpartition("/")
        if measure != "load":
            continue
        load = np.asarray(value, np.float64)
        line = {"layer": path.removesuffix("/routed"), "load": np.round(load, 5).tolist()}
        line["max_violation"] = np.round(max_violation(load), 4).tolist()
        for other in ("dropped", "router_entropy"):
            line[other] = np.round(np.asarray(measures[f"{path}/{other}"]), 5).tolist()
        lines.append(line)
    return lines


def routing_scalars(measures: Mapping[str, Any]) -> dict[str, float]:
    """Means over blocks of max_violation, dropped and router_entropy."""
    lines = routing_lines(measures)
    if not lines:
        return {}
    names = ("max_violation", "dropped", "router_entropy")
    return {name: float(np.mean([line[name] for line in lines])) for name in names}
