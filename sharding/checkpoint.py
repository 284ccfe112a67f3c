"""Checkpoints of a run: saved in the background, the newest and the best kept.

Orbax stores global arrays by name; what a checkpoint holds besides arrays is JSON. A step becomes
visible only when it is whole, so a save that dies half-way leaves nothing that could be restored.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sharding.errors import UserError

State = TypeVar("State")

_STATE, _EXTRA = "state", "extra"

Fact = tuple[tuple[int, ...], str]
"""Shape and dtype."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are kept.

    Attributes:
      every: steps between saves; one is always saved at the end.
      keep: how many of the newest are kept.
    """

    every: int = 200
    keep: int = 2


class Checkpoints:
    """The checkpoints in one folder, by step.

    Args:
      folder: where they are; made at the first save.
      keep: how many of the newest to keep; the one of least "loss" metric is kept beside them.
      read_only: changes nothing in the folder, not even what a run is just now saving there.

    Raises:
      UserError: the metrics of a checkpoint are damaged.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2, *, read_only: bool = False) -> None:
        self.folder = folder.absolute()
        self._check_metrics()
        policies = checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                _STATE: ocp.StandardCheckpointHandler(),
                _EXTRA: ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                best_fn=_loss,  # without it Orbax does not write metrics
                best_mode="min",
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(
                            get_metric_fn=lambda metrics: -_loss(metrics),
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, extra: dict[str, Any], loss: float | None = None) -> None:
        """Saves in the background; nothing if that step is saved already.

        Args:
          step: updates done.
          state: a tree of jax Arrays (typed random keys too). It is copied before this returns,
            so its buffers may be donated to the next step.
          extra: JSON values, such as the data position and the configuration.
          loss: validation loss, by which the best is chosen.

        Raises:
          UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        needed = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise self._cannot_save(OSError(f"{needed:,} bytes needed, {free:,} free on the disk"))
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{_STATE: ocp.args.StandardSave(state), _EXTRA: ocp.args.JsonSave(extra)}
                ),
                metrics=None if loss is None else {"loss": loss},
            )
        except (OSError, ValueError) as error:
            raise self._cannot_save(error) from error

    def wait(self) -> None:
        """Until what is being saved is on disk.

        Raises:
          UserError: as `save`.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._cannot_save(error) from error

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that are whole, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, None if there is none."""
        return max(self.steps(), default=None)

    def choose(self, which: str) -> int:
        """The step that "latest", "best" (least loss) or a number names.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.folder}: the run has not saved one yet")
        if which == "latest":
            return steps[-1]
        if which == "best":
            losses = self._losses()
            return min(losses, key=lambda step: (losses[step], step), default=steps[-1])
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(
                f"no checkpoint '{which}' in {self.folder}: say latest, best, or one of {steps}"
            )
        return int(which)

    def _check_metrics(self) -> None:
        """Orbax reads all metrics when it opens a folder, and fails without saying where."""
        for path in sorted(self.folder.glob("[0-9]*/metrics/metrics")):
            step = path.parts[-3]
            try:
                if step.isdecimal():
                    _loss(json.loads(path.read_text()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise self._damaged(int(step), error) from error

    def best_loss(self) -> float:
        """The least "loss" among the checkpoints; infinite if none has one."""
        return min(self._losses().values(), default=math.inf)

    def _losses(self) -> dict[int, float]:
        metrics = {step: self._manager.metrics(step) for step in self.steps()}
        return {step: found["loss"] for step, found in metrics.items() if found}

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON values of a step.

        Raises:
          UserError: no such checkpoint, or a damaged one.
        """
        args = ocp.args.Composite(**{_EXTRA: ocp.args.JsonRestore()})
        return self._restore(step, args)[_EXTRA]

    def restore(self, step: int, abstract: State) -> State:
        """The state of a step.

        Args:
          step: one of `steps()`.
          abstract: the tree of shapes, dtypes and shardings to restore to.

        Raises:
          UserError: no such checkpoint, a damaged one, or one of other names, shapes or dtypes.
        """
        self._check(step, abstract)
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract)})
        restored = self._restore(step, args)[_STATE]
        self._compare(step, _facts(restored), _facts(abstract))  # random keys by their kind
        # Orbax's arrays share host memory, which cannot be donated; outputs of jit can.
        shardings = jax.tree.map(lambda x: x.sharding, restored)
        return jax.jit(lambda tree: tree, out_shardings=shardings)(restored)

    def _check(self, step: int, abstract: Any) -> None:
        """Orbax casts another dtype and pads another shape without a word; we refuse both."""
        saved, wanted = self._metadata(step), _facts(_key_data(abstract))
        if missing := sorted(wanted.keys() - saved.keys()):
            raise UserError(f"checkpoint {step} in {self.folder} has no '{missing[0]}'")
        if unwanted := sorted(saved.keys() - wanted.keys()):
            raise UserError(
                f"checkpoint {step} in {self.folder} has '{unwanted[0]}', which is not expected"
            )
        self._compare(step, saved, wanted)

    def _compare(self, step: int, found: dict[str, Fact], wanted: dict[str, Fact]) -> None:
        for name, fact in wanted.items():
            if found[name] != fact:
                raise UserError(
                    f"checkpoint {step} in {self.folder}: '{name}' is {found[name]}, expected "
                    f"{fact}"
                )

    def _metadata(self, step: int) -> dict[str, Fact]:
        try:
            return _facts(self._manager.item_metadata(step)[_STATE])
        except Exception as error:  # any file of a checkpoint may be the damaged one
            raise self._damaged(step, error) from error

    def _restore(self, step: int, args: Any) -> Any:
        if step not in self._manager.all_steps():
            raise UserError(f"no checkpoint of step {step} in {self.folder}; have {self.steps()}")
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax, TensorStore and JSON raise many kinds on damage
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> UserError:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else repr(error)
        return UserError(
            f"checkpoint {step} in {self.folder} is damaged or cut short ({reason}); remove "
            f"{self.folder / str(step)} to go on from the one before"
        )

    def _cannot_save(self, error: Exception) -> UserError:
        full = "No space left" in str(error)
        reason = "no space left on the disk" if full else str(error)[:120]
        return UserError(
            f"cannot save in {self.folder} ({reason}): make room or name another folder; earlier "
            f"checkpoints are whole"
        )


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def _facts(tree: Any) -> dict[str, Fact]:
    """Shape and dtype of every array, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(x.shape), str(x.dtype))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(x, "shape")
    }


def _key_data(abstract: Any) -> Any:
    """Random keys as the integers that they are stored as."""

    def stored(x: Any) -> Any:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, x) if is_key else x

    return jax.tree.map(stored, abstract)
