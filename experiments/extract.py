"""Writes the plain model that a run of mixed layers has chosen: in each place its likeliest option.

  gam extract --run=runs/a --out=runs/b
  gam train --run=runs/b --resume

The new run stands at the step of the old one, with the optimizer's averages of what is kept, on the
same data; it opens on any mesh. Its logits are those that the old one gives without a key, where
one option is drawn.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
from absl import flags

from experiments import cli
from experiments.grow import language_model, write_run
from gam_jax.bilevel import Bilevel
from gam_jax.extract import extracted_state, extraction
from gam_jax.master import Mastered
from gam_jax.params import count_params, round_to, stored_dtypes
from gam_jax.training.folder import RunFolder, abstract_on_mesh
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh


def define_flags() -> None:
    """The command line."""
    cli.define_path("run", None, "Run folder of a model with mixed layers; it stays as it is.")
    cli.define_path("out", None, "New run folder.")
    flags.DEFINE_string(
        "checkpoint", "latest", "Of --run: latest, latest-good, best (validation loss), or a step."
    )
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    """Reads one run and writes the other."""
    args = flags.FLAGS
    if not args.run or not args.out:
        raise UserError("give --run, of mixed layers, and --out, the new run folder")
    source, target = (RunFolder(pathlib.Path(each)) for each in (args.run, args.out))
    old = source.experiment()
    model = language_model(old, "are extracted")
    if old.train.local.on or old.optimizer.only:
        raise UserError(f"{source.path} trains with workers or a part alone: take --init instead")
    target.check_new()
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    with Checkpoints(source.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.choose(args.checkpoint)
        state = checkpoints.restore(step, abstract_on_mesh(old, layout))
        extra = checkpoints.extra(step)
    found = extraction(model, state.params)
    train = dataclasses.replace(old.train, bilevel=Bilevel())
    new = dataclasses.replace(old, model=found.model, train=train)
    opt_state = extracted_state(found, state.opt_state)
    if isinstance(opt_state, Mastered):
        params = round_to(opt_state.master, stored_dtypes(new.model.stored_table()))
    else:
        params = found.pick(state.params)
    write_run(source, target, new, step, state.replace(params=params, opt_state=opt_state), extra)
    sizes = [count_params(one.model.table()) for one in (old, new)]
    if args.json:
        facts = {"run": str(target.path), "step": step, "parameters": sizes}
        print(json.dumps({**facts, "options": found.options}))
        return
    for name, options in found.options.items():
        print(f"{name}: {', '.join(map(str, options))}")
    print(f"{sizes[0]:,} -> {sizes[1]:,} parameters at step {step} in {target.path}")
    print(f"next: gam train --run={target.path} --resume")


if __name__ == "__main__":
    cli.run(main, define_flags)
