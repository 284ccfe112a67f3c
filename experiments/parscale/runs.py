"""Runs that differ in size, streams and seed alone, each in a folder of its own."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.compare.trial import run_trial
from experiments.contenders import Contender
from experiments.train import fit_to_data
from gam_jax.data import TextDataset
from gam_jax.data.text import Text
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params
from gam_jax.training.checks import check_batch, check_fits
from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.warm_start import Source
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout

DEPTH, WINDOW, BATCH = 2, 64, 16


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs have alike.

    Attributes:
      contender: the mixer.
      data: name of the text.
      data_dir: where data sets are kept.
      steps: updates of each run.
      out: folder of the runs.
    """

    contender: Contender
    data: str
    data_dir: str
    steps: int
    out: pathlib.Path

    def experiment(self, width: int, streams: int, seed: int) -> Experiment:
        """A run from the start: two layers, feed-forwards of twice the width."""
        block = self.contender.block(width, 2 * width)
        # A prefix of 48, as published, is for windows of 2,048 tokens.
        model = LanguageModel(block, width, DEPTH, unroll=DEPTH, streams=streams, prefix=8)
        return Experiment(
            model=model,
            data=Text(name=self.data, dir=self.data_dir, tokenizer="bytes", window=WINDOW),
            train=TrainConfig(
                steps=self.steps,
                batch=BATCH,
                seed=seed,
                log_every=max(1, min(20, self.steps // 4)),
                validate_every=self.steps,
                validation_tokens=131_072,
            ),
            optimizer=OptimizerConfig(learning_rate=5e-3, warmup=max(1, self.steps // 10)),
            checkpoint=CheckpointConfig(every=self.steps, keep=1),
        )

    def run(
        self,
        name: str,
        experiment: Experiment,
        data: TextDataset,
        layout: Layout,
        source: Source | None = None,
    ) -> dict[str, Any]:
        """Trains, or goes on, or reads what a finished run has found; see `run_trial`."""
        check_batch(experiment, layout)
        experiment, data = fit_to_data(experiment, data)
        check_fits(experiment, layout)
        found = run_trial(experiment, data, self.out / name, layout, source, memory=False)
        return {**found, "counted": counted(experiment.model)}


def counted(model: LanguageModel) -> int:
    """N, as the law counts: parameters without embeddings, with starts and aggregator."""
    return count_params(model.trunk.table())


def grid(
    setting: Setting,
    widths: Sequence[int],
    streams: Sequence[int],
    seeds: Sequence[int],
    data: TextDataset,
    layout: Layout,
) -> list[dict[str, Any]]:
    """Every combination; the small and the cheap first, seed by seed."""
    rows = []
    for seed in seeds:
        for width in widths:
            for count in streams:
                experiment = setting.experiment(width, count, seed)
                found = setting.run(f"{width}-p{count}-{seed}", experiment, data, layout)
                rows.append({"width": width, "streams": count, "seed": seed, **found})
    return rows


def summary(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and spread over seeds, and what each seed gained on its own run of one stream."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in by)

    def pair(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["width"], row["seed"], row.get("stage")

    base = {pair(row): row["loss"] for row in rows if row["streams"] == 1}
    found = []
    for one in dict.fromkeys(map(key, rows)):
        own = [row for row in rows if key(row) == one]
        losses = [row["loss"] for row in own]
        gains = [base[pair(row)] - row["loss"] for row in own if base]
        found.append(
            {
                **dict(zip(by, one, strict=True)),
                "seeds": len(own),
                "counted": own[0]["counted"],
                "loss": statistics.mean(losses),
                "spread": statistics.stdev(losses) if len(own) > 1 else 0.0,
                "gain": statistics.mean(gains) if gains else None,
                "gain_spread": statistics.stdev(gains) if len(gains) > 1 else 0.0,
            }
        )
    return found
