"""Makes a trained run larger: the same function in more units and blocks, ready to train on.

  gam grow --run=runs/a --config.model.block.ffn.hidden=1024 --out=runs/b
  gam grow --run=runs/a --config.model.depth=12 --out=runs/b
  gam train --run=runs/b --resume

The new run stands at the step of the old one, with the optimizer's averages, on the same data; it
opens on any mesh. What changes is the sizes that --config.model... gives: units that layers tell
of (hidden units, heads, slots, experts, channels of the residual stream) and blocks. A size under
which the model would compute something else is refused.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.config_flags import define_config_flag, experiment_from_flags
from gam_jax.convert.source import read_source
from gam_jax.grow import Growth, grown, grown_state, growth
from gam_jax.master import Mastered
from gam_jax.models import LanguageModel
from gam_jax.params import Params, count_params, round_to, stored_dtypes
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, abstract_on_mesh, logical_axes
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.whole_file import write_atomically

SEEN = 64
"""Tokens on which the two models are compared."""
OFF = 1e-3
"""Largest difference of logits, as a share of the largest logit, that is rounding."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    cli.define_path("run", None, "Run folder that is made larger; it stays as it is.")
    cli.define_path("out", None, "New run folder.")
    flags.DEFINE_string(
        "checkpoint", "latest", "Of --run: latest, latest-good, best (validation loss), or a step."
    )
    flags.DEFINE_float(
        "noise",
        0.0,
        "Added to copies alone, in standard deviations of their parameter; 0 keeps the function.",
        0,
    )
    flags.DEFINE_integer("seed", 0, "Of new blocks and of the noise.", 0, cli.MAX_SEED)
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    """Reads one run and writes the other."""
    args = flags.FLAGS
    if not args.run or not args.out:
        raise UserError("give --run, what is made larger, and --out, the new run folder")
    source, target = (RunFolder(pathlib.Path(each)) for each in (args.run, args.out))
    old = source.experiment()
    new = _asked(source, old)
    found = growth(language_model(old), language_model(new))
    if not found.told():
        raise UserError("nothing grows: give a larger size, as --config.model.depth=12")
    target.check_new()
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    with Checkpoints(source.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.choose(args.checkpoint)
        state = checkpoints.restore(step, abstract_on_mesh(old, layout))
        extra = checkpoints.extra(step)
    larger = grown_run(found, new, state, args.seed, args.noise)
    off = difference(old, new, state.params, larger.params)
    if not args.noise and not off <= OFF:
        raise UserError(
            f"the larger model's logits are off by {off:.2g} of the largest one, so it is not the "
            f"same function: nothing is written"
        )
    write_run(source, target, new, step, larger, extra)
    sizes = [count_params(one.model.table()) for one in (old, new)]
    facts = {"run": str(target.path), "step": step, "parameters": sizes, "difference": off}
    if args.json:
        print(json.dumps({**facts, "grown": found.told()}))
        return
    for line in found.told():
        print(line)
    print(f"{sizes[0]:,} -> {sizes[1]:,} parameters at step {step} in {target.path}")
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
    return experiment_from_flags(source.saved_config())


def language_model(experiment: Experiment, verb: str = "grow") -> LanguageModel:
    """Its model.

    Raises:
      UserError: it is none of language.
    """
    if isinstance(experiment.model, LanguageModel):
        return experiment.model
    raise UserError(f"only language models {verb}, not a {type(experiment.model).__name__}")


def grown_run(found: Growth, new: Experiment, state: Any, seed: int, noise: float) -> Any:
    """The training state of the larger model.

    Args:
      found: how the model grows.
      new: the experiment with the larger model.
      state: of the smaller one.
      seed: of new blocks and noise.
      noise: see `gam_jax.grow.grown`.
    """
    key = jax.random.key(seed)
    opt_state = grown_state(found, state.opt_state, key, noise)
    if isinstance(opt_state, Mastered):
        params = round_to(opt_state.master, stored_dtypes(new.model.stored_table()))
    else:
        params = grown(found, state.params, key, noise)
    return state.replace(params=params, opt_state=opt_state)


def difference(old: Experiment, new: Experiment, params: Params, larger: Params) -> float:
    """Largest difference of logits on drawn tokens, as a share of the largest logit."""
    model, other = language_model(old), language_model(new)
    vocab = model.ids()["inputs"]
    limit = model.limit or SEEN
    drawn = np.random.default_rng(0).integers(0, vocab, (2, min(SEEN, limit)))
    tokens = jnp.asarray(drawn, jnp.int32)
    found = [
        jax.jit(lambda p, t, own=own: own(p, t)[0])(p, tokens)
        for own, p in ((model, params), (other, larger))
    ]
    return float(jnp.max(jnp.abs(found[0] - found[1])) / jnp.max(jnp.abs(found[0])))


def write_run(
    source: RunFolder, target: RunFolder, new: Experiment, step: int, state: Any, extra: Any
) -> None:
    """The run folder, with one checkpoint, on the data of the old run."""
    kept = read_source(source.source) if source.source.is_dir() else {}
    target.start(new, source.kept(new.data), kept)
    saved = target.saved_config()
    own = {**extra, "config": saved, "gradient_norms": []}
    if source.baselines.is_file():
        write_atomically(target.baselines, source.baselines.read_text(encoding="utf-8"))
    with Checkpoints(target.checkpoints, new.checkpoint) as checkpoints:
        checkpoints.save(step, state, own, axes=logical_axes(new))
        checkpoints.wait()


if __name__ == "__main__":
    cli.run(main, define_flags)
