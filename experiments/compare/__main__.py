"""Architectures side by side on one text: equal parameters, equal tokens, the same training.

  python -m experiments.compare --data=text:shakespeare.txt
  python -m experiments.compare --data=tfds:tiny_shakespeare --mixers=gam,written_gam --seeds=0,1,2
  python -m experiments.compare --data=python_stdlib --steps=500 --json

Each architecture is a run of `experiments/configs/compare.py`, in a folder of its own below --out:
`experiments.evaluate` and `experiments.sample` open it, and an interrupted comparison goes on where
it stopped. All see the same windows in the same order. Prints a table and draws the losses beside
speed and carry.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from absl import flags

from experiments import cli
from experiments.compare.figure import draw_comparison
from experiments.compare.table import print_table, summary
from experiments.compare.trial import run_trial
from experiments.configs.compare import experiment
from experiments.contenders import CONTENDERS, EVERY, chosen
from experiments.devices import define_device_flags, layout_from_flags
from experiments.train import baselines_of, fit_to_data
from gam_jax.data import load
from gam_jax.training.checks import check_batch, check_fits
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import write_atomically
from gam_jax.training.progress import Progress


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("data", "python_stdlib", "python_stdlib, text:PATH, tfds:NAME, ...")
    flags.DEFINE_string("data_dir", "", "Where data sets are kept; as data.dir of a config.")
    flags.DEFINE_string(
        "mixers", "", f"Some of {','.join(EVERY)}; if not given, {','.join(CONTENDERS)}."
    )
    flags.DEFINE_integer("steps", 0, "Updates; those of the config if 0.", 0)
    flags.DEFINE_list("seeds", ["0"], "Of parameters and data order; a run for each.")
    flags.DEFINE_string("out", "runs/compare", "Folder of the runs, the table and the figure.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()


def main() -> None:
    """Checks everything, then trains one architecture after another."""
    args = flags.FLAGS
    mixers, seeds = chosen(args.mixers), cli.seeds_of(args.seeds)
    wanted = {name: _with_flags(experiment(contender)) for name, contender in mixers.items()}
    layout = layout_from_flags(one_device=True)
    out = pathlib.Path(args.out)
    progress = Progress(0)
    progress.say(f"reading {args.data}")
    first = next(iter(wanted.values()))
    data = load(first.data)
    for name, one in wanted.items():
        check_batch(one, layout)
        wanted[name], cut = fit_to_data(one, data)
        check_fits(wanted[name], layout)
    baselines = baselines_of(cut)
    trials: list[dict[str, Any]] = []
    for seed in seeds:
        for name, one in wanted.items():
            train = dataclasses.replace(one.train, seed=seed)
            folder = out / f"{name}-{seed}"
            found = run_trial(dataclasses.replace(one, train=train), cut, folder, layout)
            trials.append({"mixer": name, "title": mixers[name].title, "seed": seed, **found})
    result = {
        "data": args.data,
        "steps": first.train.steps,
        "tokens": first.train.steps * first.train.batch * first.data.window,
        "rows": summary(trials),
        "trials": trials,
        "baselines": baselines,
    }
    write_atomically(out / "compare.json", json.dumps(result, indent=2) + "\n")
    draw_comparison(result, out / "compare.png")
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)
        print(f"figure in {out / 'compare.png'}")


def _with_flags(one: Experiment) -> Experiment:
    args = flags.FLAGS
    data = dataclasses.replace(one.data, name=args.data, dir=args.data_dir)
    steps = args.steps or one.train.steps
    log_every = min(one.train.log_every, max(1, steps // 4))
    train = dataclasses.replace(one.train, steps=steps, log_every=log_every)
    warmup = min(one.optimizer.warmup, steps // 10)
    optimizer = dataclasses.replace(one.optimizer, warmup=warmup)
    return dataclasses.replace(one, data=data, train=train, optimizer=optimizer)


if __name__ == "__main__":
    cli.run(main, define_flags)
