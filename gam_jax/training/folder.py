"""A run is a folder: config.json, tokenizer.json, metrics.jsonl, checkpoints/, curves.png."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
from typing import Any

import jax
import optax

from gam_jax.config import from_dict, to_dict
from gam_jax.data import TextDataset
from gam_jax.data.tokenizer import Tokenizer, load_tokenizer
from gam_jax.optimizer import make_optimizer, trained
from gam_jax.params import Param, Params, param_specs, shardings
from gam_jax.training.experiment import Experiment, changed_fields
from gam_jax.training.step import TrainState, abstract_state, state_shardings
from sharding.checkpoint import Checkpoints, names
from sharding.errors import UserError
from sharding.layout import Layout

LIBRARIES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "tensorstore")
"""Those whose versions a checkpoint records."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and what they hold."""

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The full configuration."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> pathlib.Path:
        """The tokenizer that the run's tokens are of."""
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def baselines(self) -> pathlib.Path:
        """What the model must beat: name -> loss, perplexity, bits_per_byte."""
        return self.path / "baselines.json"

    @property
    def checkpoints(self) -> pathlib.Path:
        """See `sharding.checkpoint`."""
        return self.path / "checkpoints"

    @property
    def init(self) -> pathlib.Path:
        """What a run that started from another's parameters has taken."""
        return self.path / "init.json"

    @property
    def curves(self) -> pathlib.Path:
        """The picture of the losses."""
        return self.path / "curves.png"

    @property
    def load(self) -> pathlib.Path:
        """The picture of what experts had to do, where there are any."""
        return self.path / "load.png"

    def saved_config(self) -> dict[str, Any] | None:
        """The run's configuration as it was written; None if the folder holds no run.

        Raises:
          UserError: the file cannot be read as JSON.
        """
        if not self.config.is_file():
            return None
        try:
            return json.loads(self.config.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{self.config} is not JSON ({error}): restore or remove it") from error

    def start(self, experiment: Experiment, tokenizer: Tokenizer) -> None:
        """Writes configuration and tokenizer into a new folder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for cut_short in self.path.glob(f"{self.tokenizer.name}.*"):
                cut_short.unlink(missing_ok=True)
            tokenizer.save(self.tokenizer)
            # Where this start of the run ends is not part of the run: --resume goes on to the end.
            train = dataclasses.replace(experiment.train, stop_at=0)
            values = to_dict(dataclasses.replace(experiment, train=train))
            write_atomically(self.config, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path}: {error}") from error

    def check_new(self) -> None:
        """Raises a UserError if there is a run, or anything else, in the folder."""
        if self.config.exists():
            raise UserError(
                f"{self.path} already holds a run: add --resume to continue it, or name another "
                f"folder with --run"
            )
        if self.path.exists() and (not self.path.is_dir() or self._others()):
            raise UserError(f"{self.path} exists and is not a run: name another with --run")

    def _others(self) -> list[pathlib.Path]:
        """What is in the folder besides the first files of a run that died as it began."""
        own = ("run.lock*", f"{self.tokenizer.name}*", f"{self.config.name}.partial")
        return [p for p in self.path.iterdir() if not any(p.match(pattern) for pattern in own)]

    def check_same(self, experiment: Experiment) -> None:
        """Raises a UserError that names the fields in which a resumed run would differ."""
        saved = to_dict(self.experiment())  # with the defaults of fields that it was before
        new = to_dict(experiment)
        if names := changed_fields(saved, new):
            from gam_jax.config import flatten

            old, now = flatten(saved), flatten(new)
            shown = ", ".join(f"{n}: {old.get(n)!r} -> {now.get(n)!r}" for n in names[:6])
            raise UserError(
                f"{self.path} holds a different run ({shown}): resume with its own settings, or "
                f"name another folder with --run"
            )

    def experiment(self) -> Experiment:
        """The configuration of a run that must be there.

        Raises:
          UserError: no run in the folder.
        """
        saved = self.saved_config()
        if saved is None:
            raise UserError(f"{self.path} holds no run (no config.json): train one with --run")
        return from_dict(Experiment, saved)

    def load_tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        if not self.tokenizer.is_file():
            raise UserError(f"{self.path} has no tokenizer.json: the run folder is not whole")
        return load_tokenizer(self.tokenizer)


def abstract_on_mesh(experiment: Experiment, layout: Layout) -> TrainState:
    """Shapes, dtypes and shardings of a run's state: what a checkpoint is restored to."""
    model = experiment.model
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, model.table())
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state(model, optimizer),
        state_shardings(model, optimizer, layout),
    )


def logical_axes(experiment: Experiment) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of each array of a run's state that has any, by its name."""
    table = experiment.model.table()
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, table)
    abstract = abstract_state(experiment.model, optimizer)
    opt_state = optax.tree.map_params(
        optimizer, lambda _, param: param, abstract.opt_state, trained(optimizer, table)
    )
    found = names.flat(abstract.replace(params=table, opt_state=opt_state))
    return {name: leaf.axes for name, leaf in found.items() if isinstance(leaf, Param)}


def describe(experiment: Experiment, data: TextDataset, position: int) -> dict[str, Any]:
    """What a checkpoint says beside its arrays: enough to know what it is without the run.

    Args:
      experiment: the whole configuration is recorded.
      data: its text and tokenizer are recorded by their fingerprints.
      position: global batches delivered, the same for any number of processes.
    """
    return {
        "position": position,
        "corpus": data.corpus.fingerprint,
        "tokenizer": data.tokenizer.fingerprint,
        "config": to_dict(experiment),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def of_streams(experiment: Experiment, streams: int) -> Experiment:
    """A run's experiment with its first parallel streams alone; as it is for 0.

    Raises:
      UserError: more than it was trained with.
    """
    if not streams:
        return experiment
    trained_with = experiment.model.streams
    if streams > trained_with:
        raise UserError(
            f"--streams={streams} of a run that has {trained_with}: train it on with more, as in "
            f"--init=RUN --config.model.streams={streams}"
        )
    model = dataclasses.replace(experiment.model, streams=streams)
    optimizer = dataclasses.replace(experiment.optimizer, only="")  # it may name what is gone
    return dataclasses.replace(experiment, model=model, optimizer=optimizer)


def load_params(
    folder: RunFolder,
    experiment: Experiment,
    layout: Layout,
    which: str = "latest",
    streams: int = 0,
) -> tuple[int, Params]:
    """Step and parameters of a run's checkpoint.

    Args:
      which: "latest", "best" (least validation loss) or a step.
      streams: take the first ones alone, see `of_streams`.

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} has no checkpoints: train it further with --resume")
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.choose(which)
        wanted = {"params": abstract_on_mesh(experiment, layout).params}
        params = checkpoints.restore(step, wanted, partial=True)["params"]
    if streams:
        table = of_streams(experiment, streams).model.table()
        placed = shardings(param_specs(table, layout), layout)
        first = functools.partial(experiment.model.trunk.first, streams=streams)
        params = jax.jit(first, out_shardings=placed)(params)
    return step, params


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
