"""Three specialists and their seed, upcycled into one mixture by BAM and by its rival, trained on.

  python -m experiments.bam
  python -m experiments.bam --seeds=0,1,2
  python -m experiments.bam --scale=short --json

A dense model is trained on three domains of text that are on this machine (Python, English, C), a
copy of it on each alone; then the four become experts of one model by three recipes: "btx"
(feed-forwards alone, Branch-Train-MiX), "bam" (attention too) and "bam_shared" (with shared keys
and values). Each mixture is trained on all domains: as many tokens as "btx", and again as many
operations. Prints losses on held-out text of each domain. Each stage is kept below --out, so the
same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.bam.domains import splits
from experiments.bam.trial import MIXTURES, SCALES, SEED, Scale, Trial, operations
from experiments.tables import print_table
from gam_jax.training.folder import write_atomically
from gam_jax.training.progress import Progress
from sharding.errors import UserError

TITLES = {
    "btx": "BTX: feed-forward experts",
    "bam": "BAM, equal tokens",
    "bam_shared": "BAM shared keys, equal tokens",
    "bam_compute": "BAM, equal compute",
    "bam_shared_compute": "BAM shared keys, equal compute",
}


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_enum("scale", "default", list(SCALES), "How large and how long.")
    flags.DEFINE_list("seeds", ["0"], "Of parameters, data order and routers; a run for each.")
    flags.DEFINE_string("out", "runs/bam", "Folder of the stages and the figures.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    """Runs the recipe from each seed, and prints the losses with their spread."""
    args = flags.FLAGS
    scale, seeds = SCALES[args.scale], cli.seeds_of(args.seeds)
    texts, out = splits(), pathlib.Path(args.out)
    progress = Progress(scale.rows * scale.window)
    for name, (training, validation) in texts.items():
        progress.say(f"{name}: {len(training):,} bytes to train on, {len(validation):,} held out")
    trials = []
    for seed in seeds:
        progress.say(f"seed {seed}")
        try:
            found = Trial(scale, seed, texts, out / f"seed{seed}").run(progress)
        except OSError as error:
            raise UserError(f"--out={out}: cannot keep a stage there: {error}") from error
        trials.append({"seed": seed, "stages": found})
    rows = summary(scale, list(texts), trials)
    result = {"scale": args.scale, "seeds": seeds, "rows": rows, "trials": trials}
    write_atomically(out / "bam.json", json.dumps(result, indent=2) + "\n")
    if args.json:
        print(json.dumps(result))
    else:
        _print(list(texts), rows)


def summary(
    scale: Scale, domains: Sequence[str], trials: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row a stage: means and spreads (standard deviations) over seeds, by domain and of all.

    "operations" are those of the stage's own training in units of those of "btx".
    """
    rows = []
    count = 1 + len(domains)
    for stage, first in trials[0]["stages"].items():
        recipe = MIXTURES.get(stage, (None,))[0]
        losses: dict[str, list[float]] = {name: [] for name in (*domains, "mean")}
        for trial in trials:
            own = trial["stages"][stage]["losses"]
            for name in domains:
                losses[name].append(own[name])
            losses["mean"].append(statistics.mean(own.values()))
        work = first["steps"] * operations(scale, recipe, count)
        base = scale.mixed_steps * operations(scale, "btx", count)
        rows.append(
            {
                "stage": stage,
                "title": TITLES.get(stage, "the seed model" if stage == SEED else f"on {stage}"),
                "steps": first["steps"],
                "operations": work / base,
                "parameters": first["parameters"],
                "active": first["active"],
                "losses": {name: statistics.mean(values) for name, values in losses.items()},
                "spread": {
                    name: statistics.stdev(values) if len(values) > 1 else None
                    for name, values in losses.items()
                },
            }
        )
    return rows


def _print(domains: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    columns = [*domains, "mean"]
    table = TextTable("loss, nats a byte", *columns, "steps", "compute", "parameters", "active")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        shown = []
        for name in columns:
            spread = row["spread"][name]
            shown.append(f"{row['losses'][name]:.4f}" + (f" ± {spread:.4f}" if spread else ""))
        counts = [f"{row[name]:,}" for name in ("parameters", "active")]
        table.add_row(
            row["title"], *shown, f"{row['steps']:,}", f"{row['operations']:.2f}", *counts
        )
    print_table(table)


if __name__ == "__main__":
    cli.run(main, define_flags)
