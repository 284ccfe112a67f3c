"""One architecture trained as a run of its own, and what its run folder says of it."""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import Experiment
from experiments.loop import train
from experiments.metrics import read_metrics
from experiments.progress import Progress
from experiments.run import RunFolder
from gam_jax.data import TextData
from gam_jax.model import LanguageModel
from gam_jax.optimizer import make_optimizer
from gam_jax.params import count_params
from gam_jax.train import abstract_state, make_train_step
from sharding import processes
from sharding.errors import UserError
from sharding.layout import Layout


def run_trial(
    experiment: Experiment, data: TextData, path: pathlib.Path, layout: Layout
) -> dict[str, Any]:
    """Trains in a run folder, or goes on in it, and reads what was found.

    Returns:
      loss, perplexity and bits_per_byte of the validation text after the last step; best_loss of
      all validations; tokens_per_second, median; parameters, carry_bytes of one sequence, and
      peak_bytes of a training step on each device.

    Raises:
      UserError: the folder holds another run, or the run was interrupted.
    """
    folder, settings = RunFolder(path), experiment.train
    if folder.saved_config() is None:
        folder.check_new()
        folder.start(experiment, data.tokenizer)
    folder.check_same(experiment)
    parameters = count_params(experiment.model.table())
    progress = Progress(settings.batch * experiment.data.window, processes.is_first())
    progress.say(f"{path.name}: {parameters:,} parameters")
    if not _finished(folder, settings.last_step):
        outcome = train(experiment, data, folder, layout, progress)
        if outcome.interrupted:
            raise UserError(f"stopped at step {outcome.step} of {path}: the same command goes on")
    rows = read_metrics(folder.metrics)
    scores = [row for row in rows if row["split"] == "validation"]
    speeds = [row["tokens_per_second"] for row in rows if row["split"] == "train"]
    names = ("loss", "perplexity", "bits_per_byte")
    return {
        **{name: scores[-1][name] for name in names},
        "tokens_per_second": statistics.median(speeds),
        "parameters": parameters,
        "carry_bytes": carry_bytes(experiment.model),
        "peak_bytes": peak_bytes(experiment, layout),
    }


def _finished(folder: RunFolder, last: int) -> bool:
    rows = read_metrics(folder.metrics)
    return any(row["split"] == "validation" and row["step"] == last for row in rows)


def carry_bytes(model: LanguageModel) -> int:
    """Bytes that the model keeps of one sequence between two chunks."""
    carry = jax.eval_shape(lambda: model.carry(1))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))


def peak_bytes(experiment: Experiment, layout: Layout) -> int:
    """What a training step needs on a device: its arguments and temporaries, by the compiler."""
    model, settings = experiment.model, experiment.train
    optimizer = make_optimizer(experiment.optimizer, settings.steps, model.table())
    shape = (settings.batch, experiment.data.window)
    batch = {
        "inputs": jax.ShapeDtypeStruct(shape, jnp.int32),
        "targets": jax.ShapeDtypeStruct(shape, jnp.int32),
        "weights": jax.ShapeDtypeStruct(shape, jnp.float32),
    }
    lowered = make_train_step(model, optimizer, layout).lower(
        abstract_state(model, optimizer), batch
    )
    memory: Any = lowered.compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes
