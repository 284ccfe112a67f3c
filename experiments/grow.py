"""Makes a trained run larger: the same function in more units and blocks, ready to train on.

  gam grow --run=runs/a --config.model.block.ffn.hidden=1024 --out=runs/b
  gam grow --run=runs/a --config.model.depth=12 --out=runs/b
  gam train --run=runs/b --resume

The new run stands at the step of the old one, with the optimizer's averages, on the same data; it
opens on any mesh. What changes is the sizes that --config.model... gives: units that layers tell
of (hidden units, heads, slots, experts, channels of the residual stream) and blocks. A size under
which the model would compute something else is refused. --config=FILE.py registers the run's own
classes, if it has any.
"""

from __future__ import annotations

import json

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import cli, remake
from experiments.config_flags import (
    config_names,
    config_title,
    define_config_flag,
    experiment_from_flags,
)
from gam_jax.grow import Growth, grown, grown_state, growth
from gam_jax.master import values
from gam_jax.params import Params
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder
from gam_jax.training.state import TrainState
from sharding.errors import UserError

SEEN = 64
"""Tokens on which the two models are compared."""
OFF = 1e-3
"""Largest difference of logits, as a share of the largest logit, that is rounding."""


def define_flags() -> None:
    """The command line."""
    define_config_flag(of_run=True)
    remake.define_flags("Run folder that is made larger")
    flags.DEFINE_float(
        "noise",
        0.0,
        "Added to copies alone, in standard deviations of their parameter; 0 keeps the function.",
        0,
    )
    flags.DEFINE_integer("seed", 0, "Of new blocks and of the noise.", 0, cli.MAX_SEED)


def main() -> None:
    """Reads one run and writes the other."""
    args = flags.FLAGS
    source, target = remake.folders(args.run, args.out)
    old = source.experiment()
    remake.language_model(old, "grow")  # another has no sizes of the names that are asked for
    new = _asked(source, old)
    found = growth(*(remake.language_model(one, "grow") for one in (old, new)))
    if not found.told():
        raise UserError("nothing grows: give a larger size, as --config.model.depth=12")
    target.check_new()
    read = remake.restored(source, old, args.checkpoint)
    larger = grown_run(found, new, read.state, args.seed, 0.0)
    off = difference(old, new, *(values(one.params, one.opt_state) for one in (read.state, larger)))
    if not off <= OFF:
        raise UserError(
            f"the larger model's logits are off by {off:.2g} of the largest one, so it is not the "
            f"same function: nothing is written"
        )
    if args.noise:
        larger = grown_run(found, new, read.state, args.seed, args.noise)
        pair = (values(one.params, one.opt_state) for one in (read.state, larger))
        off = difference(old, new, *pair)
    remake.write_run(source, target, new, read, larger)
    sizes = remake.sizes(old, new)
    facts = {"run": str(target.path), "step": read.step, "parameters": sizes, "difference": off}
    if args.json:
        print(json.dumps({**facts, "grown": found.told()}))
        return
    for line in found.told():
        print(line)
    print(remake.size_line(sizes, read.step, target))
    print(f"largest difference of logits: {off:.2g} of the largest one")
    print(f"next: gam train --run={target.path} --resume")


def _asked(source: RunFolder, old: Experiment) -> Experiment:
    """The experiment with other sizes of the model, and nothing else changed."""
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if others := [name for name in given if not name.startswith("model.")]:
        raise UserError(
            f"--config.{others[0]}: `gam grow` changes sizes of the model; all else when training "
            f"goes on, by --change"
        )
    if old.train.local.on:
        raise UserError(f"{source.path} is a run of workers (train.local), which cannot grow yet")
    given = not flags.FLAGS["config"].using_default_value
    if given and (name := config_title()) in config_names():
        raise UserError(f"--config={name}: a run grows from its own configuration, leave that out")
    return experiment_from_flags(source.saved_config(), of_file=False)


def grown_run(
    found: Growth, new: Experiment, state: TrainState, seed: int, noise: float
) -> TrainState:
    """The training state of the larger model.

    Args:
      found: how the model grows.
      new: the experiment with the larger model.
      state: of the smaller one.
      seed: of new blocks and noise.
      noise: see `gam_jax.grow.grown`.
    """
    key = jax.random.key(seed)
    return remake.remade(
        state,
        new,
        lambda old: grown(found, old, key, noise),
        lambda old: grown_state(found, old),
    )


def difference(old: Experiment, new: Experiment, params: Params, larger: Params) -> float:
    """Largest difference of logits on drawn tokens, as a share of the largest logit.

    Args:
      old: of the smaller model.
      new: of the larger one.
      params: of the smaller one, float32 as the optimizer has them.
      larger: of the larger one, likewise.
    """
    model, other = (remake.language_model(one, "grow") for one in (old, new))
    vocab = model.ids()["inputs"]
    limit = model.limit or SEEN
    drawn = np.random.default_rng(0).integers(0, vocab, (2, min(SEEN, limit)))
    tokens = drawn.astype(np.int32)
    one, two = (
        np.asarray(jax.jit(lambda p, t, own=own: own(p, t)[0])(p, tokens), np.float64)
        for own, p in ((model, params), (other, larger))
    )
    return float(np.max(np.abs(one - two)) / np.max(np.abs(one)))


if __name__ == "__main__":
    cli.run(main, define_flags)
