"""Makes a trained run narrower: units that matter are kept, the others taken away.

  gam shrink --run=runs/a --keep=ffn:0.5 --out=runs/b
  gam shrink --run=runs/a --keep=mixer.slots:0.5 --by=contribution --out=runs/b
  gam train --run=runs/b --resume

The new run stands at the step of the old one, with the optimizer's averages of what is kept, on the
same data; it opens on any mesh. Its function is another: the loss before and after is told. What
scores most is kept in each layer by itself: by scale, the norm of what makes a unit times that of
what takes it; by contribution, how much the loss changes without it to first order, on training
rows.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli, remake
from gam_jax import units
from gam_jax.data import Dataset
from gam_jax.models import LanguageModel
from gam_jax.params import Params, widened
from gam_jax.shrink import Scores, asked, shrinking
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import check_data
from sharding.errors import UserError

WAYS = ("scale", "contribution")
ROWS = 32
"""Of validation, on which the two models are compared; and of training, for contributions."""


def define_flags() -> None:
    """The command line."""
    remake.define_flags("Run folder that is made narrower")
    flags.DEFINE_string("keep", None, "Units and shares, as ffn:0.5,mixer.slots:0.25.")
    flags.DEFINE_enum("by", "scale", WAYS, "What says which units matter.")


def main() -> None:
    """Reads one run and writes the other."""
    args = flags.FLAGS
    if not args.keep:
        raise UserError("give --keep, units and shares, as ffn:0.5")
    source, target = remake.folders(args.run, args.out)
    old = source.experiment()
    model = remake.language_model(old, "shrink")
    if old.train.local.on:
        raise UserError(f"{source.path} is a run of workers (train.local): its units stay")
    shares = asked(args.keep, model)
    target.check_new()
    data = old.data.open(source.kept(old.data))
    read = remake.restored(source, old, args.checkpoint)
    check_data(read.extra, data, f"checkpoint {read.step} in {source.path}")
    wide = widened(read.state.params)
    found = shrinking(model, wide, shares, scores_of(args.by, model, data, old, wide))
    new = dataclasses.replace(old, model=found.model)
    state = remake.remade(read.state, new, found.params, found.state)
    narrow = widened(state.params)
    losses = [loss_of(m, p, data) for m, p in ((model, wide), (found.model, narrow))]
    remake.write_run(source, target, new, read, state)
    sizes = remake.sizes(old, new)
    if args.json:
        facts = {"run": str(target.path), "step": read.step, "parameters": sizes, "losses": losses}
        print(json.dumps({**facts, "kept": found.told()}))
        return
    for line in found.told():
        print(line)
    print(remake.size_line(sizes, read.step, target))
    print(f"loss of {ROWS} rows of validation: {losses[0]:.4f} -> {losses[1]:.4f}")
    print(f"next: gam train --run={target.path} --resume")


def scores_of(
    by: str, model: LanguageModel, data: Dataset, experiment: Experiment, params: Params
) -> Scores:
    """What says which units matter.

    Args:
      by: one of `WAYS`.
      model: the wider one.
      data: of the run.
      experiment: of the run, for the order of its rows.
      params: float32.
    """
    if by == "scale":
        return units.scale
    with_stream = data.train_stream(ROWS, experiment.train.seed)
    rows = next(with_stream)
    with_stream.close()

    def loss(params: Params) -> Any:
        total, _, _ = model.objective(params, rows)
        return total / model.count(rows)

    slopes = jax.jit(jax.grad(loss))(params)
    return lambda own, unit: units.contribution(own, slopes, unit)


def loss_of(model: LanguageModel, params: Params, data: Dataset) -> float:
    """Of the first rows of validation, nats a token."""
    rows = next(iter(data.validation_stream(data.parts[0], ROWS)))

    def loss(params: Params) -> Any:
        total, _, _ = model.objective(params, rows)
        return total / jnp.maximum(model.count(rows), 1)

    return float(jax.jit(loss)(params))


if __name__ == "__main__":
    cli.run(main, define_flags)
