"""What a person sees of a search: candidates in words, a table, a picture, a config file."""

from __future__ import annotations

import pathlib
import pprint
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as TextTable

from experiments.pictures import drawn
from experiments.search.results import Result
from experiments.tables import print_table
from gam_jax.search import Space

DULL = ("MLP", "RMSNorm", "LayerNorm")
"""Layers that most candidates have."""


def in_words(space: Space, point: Sequence[int]) -> str:
    """A candidate by the values of its choices, each as short as tells it from the others."""
    words = []
    for choice, index in zip(space.choices, point, strict=True):
        names = [_word(value) for value in choice.values]
        twice = names.count(names[index]) > 1
        name = choice.path.removeprefix("model.").removeprefix("block.").removeprefix("layers.")
        words.append(f"{name}={names[index]}{f'#{index}' if twice else ''}")
    return " ".join(words)


def _word(value: Any) -> str:
    """A layer by its classes, such as Shallow(GAM); anything else as it is."""
    if not isinstance(value, Mapping) or "layer" not in value:
        return str(value)
    inner = [
        _word(each) for each in value.values() if isinstance(each, Mapping) and "layer" in each
    ]
    inner = [each for each in inner if each not in DULL]
    if value["layer"] in ("Block", "Residual") and len(inner) == 1:
        return inner[0]
    return f"{value['layer']}({','.join(inner)})" if inner else str(value["layer"])


def print_results(space: Space, results: Sequence[Result], most: int) -> None:
    """The best candidates, and why others are none."""
    ranked = sorted((each for each in results if each.score is not None), key=_rank)
    table = TextTable("trial", "loss", "of the base's", "steps", "parameters", "candidate", "")
    for each in ranked[:most]:
        step, loss = list(each.losses.items())[-1]
        table.add_row(
            str(each.trial + 1),
            f"{loss:.4f}",
            f"{each.told:.4f}",
            step,
            f"{each.figures['parameters']:,.0f}",
            in_words(space, each.point),
            each.doubt,
        )
    print_table(table)
    for gate in dict.fromkeys(each.refused for each in results if each.refused):
        own = [each for each in results if each.refused == gate]
        print(f"refused, {gate}: {len(own)}, the first is trial {own[0].trial + 1}: {own[0].why}")


def _rank(result: Result) -> tuple[bool, float]:
    """Those that were trained to the end come first."""
    return not result.finished, result.told


def draw_results(results: Sequence[Result], path: pathlib.Path) -> None:
    """Scores by trial: trained to the end, ended before, in doubt; and the best so far."""
    there = [each for each in results if each.score is not None]
    if not there:
        return
    kinds = {
        "trained to the end": ([r for r in there if r.finished and not r.doubt], "o", "#08519c"),
        "confirmed": ([r for r in there if r.finished and r.doubt], "D", "#c28f2c"),
        "ended before": ([r for r in there if not r.finished], ".", "#9ecae1"),
    }
    with drawn(path, 7, 3.6) as figure:
        axes = figure.add_subplot()
        for label, (own, marker, colour) in kinds.items():
            if own:
                places = [each.trial + 1 for each in own]
                scores = [each.told for each in own]
                axes.scatter(places, scores, s=26, marker=marker, color=colour, label=label)
        best, so_far = [], float("inf")
        for each in results:
            so_far = min(so_far, each.told if each.finished else so_far)
            best.append(so_far)
        numbers = range(1, len(results) + 1)
        axes.step(numbers, best, where="post", color="#08519c", linewidth=1, label="best so far")
        axes.axhline(1.0, color="#999999", linestyle=":", linewidth=1)
        axes.set_xlabel("trial")
        axes.set_ylabel("loss divided by the base's")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)


def config_file(values: Mapping[str, Any], told: str, classes: str = "") -> str:
    """A config file of an experiment, as `gam train --config` takes it.

    Args:
      values: what `experiments.config_flags.config` gives.
      told: its first line.
      classes: a file that registers classes of its own; empty for none.
    """
    shown = pprint.pformat(dict(values), width=96, sort_dicts=False)
    own = "from experiments.config_flags import module_of\n\n" if classes else ""
    run = f"module_of({classes!r}, '--config')\n" if classes else ""
    return (
        f'"""{told}"""\n\nfrom ml_collections import ConfigDict\n\n{own}{run}\n'
        f"EXPERIMENT = {shown}\n\n\ndef get_config() -> ConfigDict:\n"
        f'    """The run."""\n    return ConfigDict(EXPERIMENT)\n'
    )
