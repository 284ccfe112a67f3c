"""Runs made from a checkpoint of another: what `gam grow`, `shrink` and `extract` have in common.

The new run stands at the step of the old one, with the optimizer's averages, on the same data.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags

from experiments import cli
from gam_jax.convert.source import read_source
from gam_jax.master import begun, inner_state, values
from gam_jax.models import LanguageModel
from gam_jax.params import Params, count_params, widened
from gam_jax.training.experiment import Experiment, run_optimizer
from gam_jax.training.folder import RunFolder, abstract_on_mesh, logical_axes
from gam_jax.training.state import TrainState
from gam_jax.training.warm_start import begun_with
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.whole_file import write_atomically


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint of the old run, on one device.

    Attributes:
      step: of it.
      state: of training.
      extra: what stands beside it, such as the position in the data.
      suspect: why the old run may have gone wrong before it; empty if nothing says so.
    """

    step: int
    state: TrainState
    extra: Mapping[str, Any]
    suspect: str = ""


def define_flags(old: str) -> None:
    """--run, --out, --checkpoint and --json.

    Args:
      old: what --run names, as "Run folder that is made larger".
    """
    cli.define_path("run", None, f"{old}; it stays as it is.")
    cli.define_path("out", None, "New run folder.")
    flags.DEFINE_string(
        "checkpoint", "latest", "Of --run: latest, latest-good, best (validation loss), or a step."
    )
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def folders(run: str | None, out: str | None) -> tuple[RunFolder, RunFolder]:
    """The old run and the new one.

    Raises:
      UserError: one of them is not given.
    """
    if not run or not out:
        raise UserError("give --run, the run folder that there is, and --out, the new one")
    return RunFolder(pathlib.Path(run)), RunFolder(pathlib.Path(out))


def language_model(experiment: Experiment, verb: str) -> LanguageModel:
    """The model of an experiment.

    Args:
      experiment: of the old or the new run.
      verb: what language models do here, as "grow".

    Raises:
      UserError: it is none of language.
    """
    if isinstance(experiment.model, LanguageModel):
        return experiment.model
    raise UserError(f"only language models {verb}, not a {type(experiment.model).__name__}")


def restored(source: RunFolder, experiment: Experiment, which: str) -> Restored:
    """A checkpoint of a run; `which` as --checkpoint has it."""
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    with Checkpoints(source.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.choose(which)
        state = checkpoints.restore(step, abstract_on_mesh(experiment, layout))
        return Restored(step, state, checkpoints.extra(step), checkpoints.suspect(step))


def remade(
    state: TrainState,
    new: Experiment,
    params: Callable[[Params], Params],
    moments: Callable[[Any], Any],
) -> TrainState:
    """The state of the new run, made in one program.

    Args:
      state: of the old one.
      new: the experiment with the new model.
      params: of old parameters the new ones, both float32: the optimizer's master where there is
        one.
      moments: of the optimizer's state without a master the new one.
    """
    optimizer, table = run_optimizer(new), new.model.stored_table()

    @jax.jit
    def begin(old: Params, opt_state: Any) -> tuple[Params, Any]:
        wide = widened(params(values(old, opt_state)))
        return begun(optimizer, table, wide, moments(inner_state(opt_state)))

    own, opt_state = begin(state.params, state.opt_state)
    return state.replace(params=own, opt_state=opt_state)


def write_run(
    source: RunFolder, target: RunFolder, new: Experiment, found: Restored, state: TrainState
) -> None:
    """The new run folder, with one checkpoint, on the data of the old run.

    It is suspect if that of the old run is. What the folder began from is noted, so that no
    --resume=0 begins it with new parameters.
    """
    kept = read_source(source.source) if source.source.is_dir() else {}
    target.start(new, source.kept(new.data), kept)
    begun_with(f"{source.path}@{found.step}").write(target.init)
    own = {**found.extra, "config": target.saved_config(), "gradient_norms": []}
    if source.baselines.is_file():
        write_atomically(target.baselines, source.baselines.read_text(encoding="utf-8"))
    with Checkpoints(target.checkpoints, new.checkpoint) as checkpoints:
        axes = logical_axes(new)
        checkpoints.save(found.step, state, own, axes=axes, suspect=found.suspect)
        checkpoints.wait()


def sizes(old: Experiment, new: Experiment) -> list[int]:
    """Parameters before and after."""
    return [count_params(one.model.table()) for one in (old, new)]


def size_line(counts: list[int], step: int, target: RunFolder) -> str:
    """What a person is told of them."""
    return f"{counts[0]:,} -> {counts[1]:,} parameters at step {step} in {target.path}"
