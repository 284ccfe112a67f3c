"""Do experts stay in balance, and what does it cost? The same run without, with loss, with bias.

  python -m experiments.balance
  python -m experiments.balance --steps=300 --seeds=0,1,2 --json

Each is a run of `experiments/configs/moe_small.py` in a folder below --out, which holds its
load.png; an interrupted one goes on where it stopped. Prints, of the last tenth of the steps:
MaxVio = (max - mean) / mean of the experts' loads (arXiv 2408.15664), of each batch and of all of
them together; and the validation loss.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.compare.trial import run_trial
from experiments.configs.moe_small import experiment
from experiments.devices import define_device_flags, layout_from_flags
from experiments.load_figure import draw_load
from experiments.tables import print_table
from experiments.train import fit_to_data
from gam_jax.data import load
from gam_jax.ops.routing import Router, max_violation
from gam_jax.training.checks import check_batch, check_fits
from gam_jax.training.experiment import Experiment
from gam_jax.training.expert_load import SPLIT
from gam_jax.training.folder import RunFolder
from gam_jax.training.metrics import read_metrics

ROUTERS = {
    "none": Router(balance=0.0, z=0.0),
    "loss": Router(balance=0.01, z=0.0),
    "bias": Router(balance=0.0, z=0.0, bias_step=1e-3),
}
"""No balancing; the loss of Switch at its coefficient; the bias of DeepSeek-V3 at its step."""


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("steps", 500, "Updates of each run.", 10)
    flags.DEFINE_list("seeds", ["0"], "Of parameters and data order; three runs for each.")
    flags.DEFINE_string("data", "python_stdlib", "python_stdlib, text:PATH, tfds:NAME, ...")
    flags.DEFINE_string("out", "runs/balance", "Folder of the runs.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()


def main() -> None:
    """Trains each way of balancing, then prints a row of each."""
    args = flags.FLAGS
    seeds = cli.seeds_of(args.seeds)
    layout = layout_from_flags(one_device=True)
    base = _sized(experiment(), args.steps, args.data)
    base, data = fit_to_data(base, load(base.data))
    check_batch(base, layout)
    check_fits(base, layout)
    trials = []
    for seed in seeds:
        for name, router in ROUTERS.items():
            path = pathlib.Path(args.out) / f"{name}-{seed}"
            found = run_trial(with_router(base, router, seed), data, path, layout)
            rows = read_metrics(RunFolder(path).metrics)
            draw_load(rows, RunFolder(path).load)
            trials.append(
                {"balance": name, "seed": seed, "loss": found["loss"], **violations(rows)}
            )
    result = {"steps": args.steps, "data": args.data, "rows": summary(trials), "trials": trials}
    if args.json:
        print(json.dumps(result))
    else:
        _print(result)


def with_router(base: Experiment, router: Router, seed: int) -> Experiment:
    """The run with another router, and another seed."""
    block: Any = base.model.block
    ffn = dataclasses.replace(block.ffn, router=router)
    model = dataclasses.replace(base.model, block=dataclasses.replace(block, ffn=ffn))
    train = dataclasses.replace(base.train, seed=seed)
    return dataclasses.replace(base, model=model, train=train)


def violations(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """MaxVio of the last tenth of the steps: means over blocks, and over batches or of their sum.

    Of the worst block too, and the smallest load of any expert, in even shares.
    """
    found = [row for row in rows if row["split"] == SPLIT]
    last = [row for row in found if row["step"] > 0.9 * found[-1]["step"]]
    loads = np.array([row["load"] for row in last])  # [steps, L, E]
    together = loads.mean(axis=0)
    return {
        "of_batches": float(np.mean(max_violation(loads))),
        "together": float(np.mean(max_violation(together))),
        "worst_block": float(np.max(max_violation(together))),
        "least_load": float(together.min() * together.shape[-1]),
    }


def summary(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    rows = []
    for name in ROUTERS:
        own = [trial for trial in trials if trial["balance"] == name]
        numbers = [key for key in own[0] if key not in ("balance", "seed")]
        rows.append({"balance": name} | {k: float(np.mean([t[k] for t in own])) for k in numbers})
    return rows


def _sized(base: Experiment, steps: int, data: str) -> Experiment:
    train = dataclasses.replace(
        base.train, steps=steps, validate_every=steps, log_every=max(1, steps // 100)
    )
    optimizer = dataclasses.replace(base.optimizer, warmup=min(100, steps // 10))
    checkpoint = dataclasses.replace(base.checkpoint, keep=1)
    text = dataclasses.replace(base.data, name=data)
    parts = {"train": train, "optimizer": optimizer, "checkpoint": checkpoint, "data": text}
    return dataclasses.replace(base, **parts)


def _print(result: dict[str, Any]) -> None:
    seeds = len({trial["seed"] for trial in result["trials"]})
    title = f"{result['steps']} steps on {result['data']}, {seeds} seed{'s' if seeds > 1 else ''}"
    names = ("loss", "of_batches", "together", "worst_block", "least_load")
    heads = ("validation loss", "MaxVio of a batch", "MaxVio", "of the worst block", "least load")
    table = TextTable("balance by", *heads, title=title)
    for row in result["rows"]:
        cells = [f"{row[name]:.{4 if name == 'loss' else 2}f}" for name in names]
        table.add_row(row["balance"], *cells)
    print_table(table)


if __name__ == "__main__":
    cli.run(main, define_flags)
