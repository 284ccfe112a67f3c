"""Two stages: a trained model of one stream goes on with more, its backbone frozen or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.parscale.runs import Setting
from gam_jax.data import TextDataset
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder
from gam_jax.training.warm_start import Source
from sharding.layout import Layout

ADDED = "starts/*,aggregator/*"
"""What streams add, as `optimizer.only` names it."""

RATES = {"frozen": 5e-3, "all": 1.5e-3}
"""Of the second stage: what is new may learn fast, what is trained already less so."""


@dataclasses.dataclass(frozen=True)
class Second:
    """How long second stages are, and which there are, of `RATES`."""

    steps: int
    kinds: tuple[str, ...] = tuple(RATES)


def second(first: Experiment, streams: int, stage: str, steps: int) -> Experiment:
    """The run of a second stage: "frozen" trains what streams add alone, "all" everything."""
    optimizer = dataclasses.replace(
        first.optimizer,
        learning_rate=RATES[stage],
        warmup=max(1, steps // 10),
        only=ADDED if stage == "frozen" else "",
    )
    train = dataclasses.replace(first.train, steps=steps, validate_every=steps)
    model = dataclasses.replace(first.model, streams=streams)
    return dataclasses.replace(first, model=model, optimizer=optimizer, train=train)


def stages(
    setting: Setting,
    width: int,
    streams: Sequence[int],
    seeds: Sequence[int],
    stage: Second,
    data: TextDataset,
    layout: Layout,
) -> list[dict[str, Any]]:
    """First stages of one stream and, from each, a second one for every number of streams.

    A frozen backbone with one stream is the first stage itself: there is nothing to train.
    """
    rows = []
    for seed in seeds:
        first, name = setting.experiment(width, 1, seed), f"{width}-p1-{seed}"
        backbone = setting.run(name, first, data, layout)
        source = Source(RunFolder(setting.out / name))
        for kind in stage.kinds:
            for count in streams:
                row = {"width": width, "stage": kind, "streams": count, "seed": seed}
                if kind == "frozen" and count == 1:
                    rows.append({**row, **backbone})
                    continue
                experiment = second(first, count, kind, stage.steps)
                own = f"{name}-{kind}-p{count}"
                rows.append({**row, **setting.run(own, experiment, data, layout, source)})
    return rows
