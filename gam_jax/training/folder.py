"""A run is a folder: config.json, metrics.jsonl, checkpoints/, what its data keeps, pictures."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from gam_jax.config import from_dict, to_dict
from gam_jax.data import DATA, Data, Dataset
from gam_jax.master import like_params
from gam_jax.models.base import as_read
from gam_jax.optimizer import selects
from gam_jax.params import Param, Params, stack
from gam_jax.training.experiment import (
    Changes,
    Experiment,
    changed_fields,
    may_change,
    run_optimizer,
)
from gam_jax.training.state import TrainState, abstract_state, state_shardings
from sharding.checkpoint import Checkpoints, names
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.layout import Layout
from sharding.paths import check_local
from sharding.whole_file import replacing, write_atomically

LIBRARIES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "tensorstore")
"""Those whose versions a checkpoint records."""
COMPILER = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables that tell XLA how to compile; checkpoints and the history of a run record them."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and what they hold."""

    path: pathlib.Path

    def __post_init__(self) -> None:
        check_local(self.path)

    @property
    def config(self) -> pathlib.Path:
        """The full configuration."""
        return self.path / "config.json"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def baselines(self) -> pathlib.Path:
        """What the model must beat: name -> scores."""
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
    def source(self) -> pathlib.Path:
        """Files of the model folder that a run was made of, see `gam_jax.convert.source`."""
        return self.path / "source"

    @property
    def history(self) -> pathlib.Path:
        """A line for each start, see `gam_jax.training.history`."""
        return self.path / "history.jsonl"

    @property
    def curves(self) -> pathlib.Path:
        """The picture of the losses."""
        return self.path / "curves.png"

    @property
    def load(self) -> pathlib.Path:
        """The picture of what experts had to do, where there are any."""
        return self.path / "load.png"

    @property
    def profile(self) -> pathlib.Path:
        """Traces of steps, where any were asked for."""
        return self.path / "profile"

    def saved_config(self) -> dict[str, Any] | None:
        """The run's configuration as it was written; None if the folder holds no run.

        Raises:
          UserError: the file cannot be read as a JSON object.
        """
        if not self.config.is_file():
            return None
        return read_json(self.config)

    def has_checkpoints(self) -> bool:
        """Whether a run of this configuration has saved anything."""
        folder = self.checkpoints
        saved = folder.is_dir() and any(path.suffix != ".partial" for path in folder.iterdir())
        return self.config.exists() and saved

    def ran(self) -> bool:
        """Whether it has done anything that is told of, or saved."""
        logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return self.has_checkpoints() or (self.config.exists() and logged)

    def start(
        self,
        experiment: Experiment,
        files: Mapping[str, str],
        source: Mapping[str, bytes] = {},
    ) -> None:
        """Writes the configuration into a new folder, and what its data keeps there.

        What a run that never took a step has left of its own is removed.

        Args:
          experiment: of the run.
          files: of the data, by name.
          source: files of the model folder that it is made of, by name.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in (self.init, self.baselines, self.history):
                path.unlink(missing_ok=True)
            for name, text in files.items():
                for cut_short in self.path.glob(f"{name}.*"):
                    cut_short.unlink(missing_ok=True)
                write_atomically(self.path / name, text)
            self._keep(source)
            # Where this start of the run ends is not part of the run: --resume goes on to the end.
            train = dataclasses.replace(experiment.train, stop_at=0)
            values = to_dict(dataclasses.replace(experiment, train=train))
            write_atomically(self.config, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path}: {error}") from error

    def _keep(self, source: Mapping[str, bytes]) -> None:
        """Writes the files of a model folder, and no others, where there are any."""
        if self.source.is_dir() and not self.source.is_symlink():
            shutil.rmtree(self.source)
        if source:
            self.source.mkdir()
        for name, content in source.items():
            with replacing(self.source / name) as file:
                file.write(content)

    def change(self, changes: Changes) -> None:
        """Writes the configuration anew, with some fields changed."""
        values = to_dict(self.experiment())
        for name, (_, now) in changes.items():
            *path, last = name.split(".")
            branch = values
            for part in path:
                branch = branch[part]
            if now is None:
                branch.pop(last, None)
            else:
                branch[last] = now
        write_atomically(self.config, json.dumps(values, indent=2) + "\n")

    def check_new(self) -> None:
        """Raises a UserError if there is a run, or anything else, in the folder.

        A configuration that never ran is no run: it is begun anew.
        """
        if self.config.exists() and not self.ran():
            return
        if self.config.exists():
            raise UserError(
                f"{self.path} already holds a run: add --resume to continue it, or name another "
                f"folder with --run"
            )
        if self.path.exists() and (not self.path.is_dir() or self._others()):
            raise UserError(f"{self.path} exists and is not a run: name another with --run")

    def _others(self) -> list[pathlib.Path]:
        """What is in the folder besides the first files of a run that died as it began."""
        kept = (f"{name}*" for kind in DATA.values() for name in kind.FILES)
        own = ("run.lock*", *kept, f"{self.config.name}.partial", self.source.name)
        return [p for p in self.path.iterdir() if not any(p.match(pattern) for pattern in own)]

    def check_same(self, experiment: Experiment, named: Sequence[str] = ()) -> Changes:
        """The fields in which a resumed run differs: none but those that are named.

        Args:
          experiment: to go on with.
          named: fields that may differ, see `experiment.may_change`.

        Raises:
          UserError: another field differs.
        """
        found = changed_fields(self.experiment(), experiment, named)
        if others := [name for name in found if name not in named]:
            shown = ", ".join(f"{n}: {found[n][0]!r} -> {found[n][1]!r}" for n in others[:6])
            allow = f", allow it by --change={','.join(found)}"
            raise UserError(
                f"{self.path} holds a different run ({shown}): resume with its own settings"
                f"{allow if all(map(may_change, found)) else ''}, or name another folder with --run"
            )
        return found

    def experiment(self) -> Experiment:
        """The configuration of a run that must be there.

        Raises:
          UserError: no run in the folder.
        """
        saved = self.saved_config()
        if saved is None:
            raise UserError(f"{self.path} holds no run (no config.json): train one with --run")
        return from_dict(Experiment, saved)

    def kept(self, data: Data) -> dict[str, str]:
        """What the folder keeps of its data: the text of each file, by name.

        Raises:
          UserError: one is missing or cannot be read.
        """
        found = {}
        for name in data.kept_files:
            try:
                if not (self.path / name).is_file():
                    raise OSError("no plain file")
                found[name] = (self.path / name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{self.path} has no readable {name}: the run folder is not whole"
                ) from error
        return found


def read_baselines(folder: RunFolder) -> dict[str, dict[str, float]]:
    """What the model of a run had to beat: name -> scores; empty where nothing was saved.

    Raises:
      UserError: the file is damaged.
    """
    if not folder.baselines.exists():
        return {}
    found = read_json(folder.baselines, finite=False)
    for name, scores in found.items():
        if (
            not isinstance(scores, dict)
            or "loss" not in scores
            or not all(type(score) in (int, float) for score in scores.values())
        ):
            raise UserError(
                f"{folder.baselines}: {name[:60]!r} has no scores: restore or remove it"
            )
    return found


def abstract_on_mesh(experiment: Experiment, layout: Layout) -> TrainState:
    """Shapes, dtypes and shardings of a run's state: what a checkpoint is restored to."""
    model = experiment.model
    optimizer = run_optimizer(experiment)
    layout = as_read(model, layout)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state(model, optimizer),
        state_shardings(model, optimizer, layout),
    )


def logical_axes(experiment: Experiment) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of each array of a run's state that has any, by its name."""
    table = experiment.model.table()
    optimizer = run_optimizer(experiment)
    abstract = abstract_state(experiment.model, optimizer)
    workers = experiment.train.local.workers

    def of_workers(entry: Any) -> Any:
        return stack({"": entry}, workers, "worker")[""] if isinstance(entry, Param) else entry

    opt_state = like_params(optimizer, abstract.opt_state, table, of_workers=of_workers)
    found = names.flat(abstract.replace(params=table, opt_state=opt_state))
    return {name: leaf.axes for name, leaf in found.items() if isinstance(leaf, Param)}


def frozen_names(experiment: Experiment) -> tuple[str, ...]:
    """The parameters that `optimizer.only` leaves as they are, by their names in a state."""
    only, table = experiment.optimizer.only, names.flat(experiment.model.table())
    return tuple(f"params/{name}" for name in table if only and not selects(only, name))


def compiler() -> dict[str, str]:
    """The variables that tell XLA how to compile, as far as they are set."""
    return {name: os.environ[name] for name in COMPILER if name in os.environ}


def versions() -> dict[str, str]:
    """Of the libraries that decide what a run computes."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def describe(
    experiment: Experiment, data: Dataset, position: int, norms: Sequence[float] = ()
) -> dict[str, Any]:
    """What a checkpoint says beside its arrays: enough to know what it is without the run.

    Args:
      experiment: the whole configuration is recorded.
      data: its fingerprints are recorded.
      position: global batches delivered, the same for any number of processes.
      norms: of the gradients of the last steps.

    Raises:
      UserError: a fingerprint of the data has the name of something else that is recorded.
    """
    own = {
        "position": position,
        "config": to_dict(experiment),
        "versions": versions(),
        "compiler": compiler(),
        "gradient_norms": list(norms),
    }
    if taken := own.keys() & data.fingerprints.keys():
        raise UserError(f"data.name={data.config.name}: a fingerprint cannot be called {taken}")
    return {**own, **data.fingerprints}


def check_data(
    extra: Mapping[str, Any], data: Dataset, where: str, names: Collection[str] | None = None
) -> None:
    """Refuses data that are not those that a checkpoint was trained on.

    Args:
      extra: what the checkpoint says of itself, see `describe`.
      data: to go on with.
      where: the checkpoint, for the message.
      names: of the fingerprints that are compared; None for all.

    Raises:
      UserError: a fingerprint differs.
    """
    config = extra.get("config")
    saved = config.get("data") if isinstance(config, dict) else None
    for name, fingerprint in data.fingerprints.items():
        if (names is None or name in names) and extra.get(name) not in (None, fingerprint):
            raise UserError(
                f"{data.changed(name, saved if isinstance(saved, dict) else {})} since {where} "
                f"was saved: bring the old one back, or start another run with --run, from its "
                f"parameters with --init"
            )


def load_params(
    folder: RunFolder, experiment: Experiment, layout: Layout, which: str = "latest"
) -> tuple[int, Params]:
    """Step and parameters of a run's checkpoint.

    Args:
      folder: the run.
      experiment: of the run.
      layout: where to put them.
      which: see `Checkpoints.choose`.

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} has no checkpoints: train it further with --resume")
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.choose(which)
        wanted = {"params": abstract_on_mesh(experiment, layout).params}
        return step, checkpoints.restore(step, wanted, partial=True)["params"]
