"""One architecture trained as a run of its own, and what its run folder says of it."""

from __future__ import annotations

import json
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax.data import TextDataset
from gam_jax.optimizer import make_optimizer
from gam_jax.params import count_params
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, write_atomically
from gam_jax.training.loop import Beginning, train
from gam_jax.training.metrics import read_metrics
from gam_jax.training.progress import Progress
from gam_jax.training.step import abstract_state, make_train_step
from gam_jax.training.warm_start import Source
from sharding import processes
from sharding.errors import UserError
from sharding.layout import Layout

FOUND = "found.json"
"""In a run folder: what a finished trial found."""


def run_trial(
    experiment: Experiment,
    data: TextDataset,
    path: pathlib.Path,
    layout: Layout,
    source: Source | None = None,
    memory: bool = True,
) -> dict[str, Any]:
    """Trains in a run folder, or goes on in it, and reads what was found.

    Args:
      experiment: of the run.
      data: what it reads.
      path: of its folder.
      layout: the mesh.
      source: whose parameters it starts from; None for new ones.
      memory: whether to ask the compiler for peak_bytes, which compiles once more.

    Returns:
      loss, perplexity and bits_per_byte of the validation text after the last step;
      tokens_per_second, median; parameters; carry_bytes of one sequence; peak_bytes of a training
      step on each device. They are kept in the folder, so a finished trial is only read.

    Raises:
      UserError: the folder holds another run, or the run was interrupted.
    """
    folder, settings = RunFolder(path), experiment.train
    if folder.saved_config() is None:
        folder.check_new()
        folder.start(experiment, data.tokenizer)
    folder.check_same(experiment)
    if (path / FOUND).exists():
        return json.loads((path / FOUND).read_text())
    parameters = count_params(experiment.model.table())
    progress = Progress(settings.batch * experiment.data.window, processes.is_first())
    progress.say(f"{path.name}: {parameters:,} parameters")
    outcome = train(experiment, data, folder, layout, progress, beginning=Beginning(source=source))
    if outcome.interrupted:
        raise UserError(f"stopped at step {outcome.step} of {path}: the same command goes on")
    rows = read_metrics(folder.metrics)
    scores = [row for row in rows if row["split"] == "validation"]
    timed = [row for row in rows if row["split"] == "train" and row["tokens_per_second"]]
    names = ("loss", "perplexity", "bits_per_byte")
    found = {
        **{name: scores[-1][name] for name in names},
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in timed),
        "parameters": parameters,
        "carry_bytes": experiment.model.carry_bytes(1),
        **({"peak_bytes": peak_bytes(experiment, layout)} if memory else {}),
    }
    write_atomically(path / FOUND, json.dumps(found) + "\n")
    return found


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
