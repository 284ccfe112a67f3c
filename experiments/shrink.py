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
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.grow import language_model, write_run
from gam_jax import units
from gam_jax.data import Dataset
from gam_jax.master import Mastered
from gam_jax.models import LanguageModel
from gam_jax.params import Params, count_params, round_to, stored_dtypes, widened
from gam_jax.shrink import Scores, asked, shrinking
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, abstract_on_mesh, check_data
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

WAYS = ("scale", "contribution")
ROWS = 32
"""Of validation, on which the two models are compared; and of training, for contributions."""


def define_flags() -> None:
    """The command line."""
    cli.define_path("run", None, "Run folder that is made narrower; it stays as it is.")
    cli.define_path("out", None, "New run folder.")
    flags.DEFINE_string("keep", None, "Units and shares, as ffn:0.5,mixer.slots:0.25.")
    flags.DEFINE_enum("by", "scale", WAYS, "What says which units matter.")
    flags.DEFINE_string(
        "checkpoint", "latest", "Of --run: latest, latest-good, best (validation loss), or a step."
    )
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    """Reads one run and writes the other."""
    args = flags.FLAGS
    if not args.run or not args.out or not args.keep:
        raise UserError("give --run, --keep (as ffn:0.5) and --out, the new run folder")
    source, target = (RunFolder(pathlib.Path(each)) for each in (args.run, args.out))
    old = source.experiment()
    model = language_model(old, "shrink")
    if old.train.local.on:
        raise UserError(f"{source.path} is a run of workers (train.local): its units stay")
    shares = asked(args.keep, model)
    target.check_new()
    data = old.data.open(source.kept(old.data))
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    with Checkpoints(source.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.choose(args.checkpoint)
        state = checkpoints.restore(step, abstract_on_mesh(old, layout))
        extra = checkpoints.extra(step)
    check_data(extra, data, f"checkpoint {step} in {source.path}")
    wide = widened(state.params)
    found = shrinking(model, wide, shares, scores_of(args.by, model, data, old, wide))
    new = dataclasses.replace(old, model=found.model)
    opt_state = found.state(state.opt_state)
    if isinstance(opt_state, Mastered):
        params = round_to(opt_state.master, stored_dtypes(new.model.stored_table()))
    else:
        params = found.params(state.params)
    losses = [loss_of(m, p, data) for m, p in ((model, wide), (found.model, widened(params)))]
    write_run(source, target, new, step, state.replace(params=params, opt_state=opt_state), extra)
    sizes = [count_params(one.model.table()) for one in (old, new)]
    if args.json:
        facts = {"run": str(target.path), "step": step, "parameters": sizes, "losses": losses}
        print(json.dumps({**facts, "kept": found.told()}))
        return
    for line in found.told():
        print(line)
    print(f"{sizes[0]:,} -> {sizes[1]:,} parameters at step {step} in {target.path}")
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
