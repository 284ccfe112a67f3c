"""The checkpoints of a run: saved in the background, whole or not there at all.

A save is written to `<step>.partial` and becomes `<step>` by one rename, after its manifest. What
a save that died has left is removed when the folder is opened for writing. What is to go is
renamed to `<step>.deleting` first, so that half a checkpoint is never seen.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import jax

from sharding import processes
from sharding.checkpoint import elsewhere, names
from sharding.checkpoint.arrays import Writer, count_bytes, own_digests, totals
from sharding.checkpoint.commit import complete
from sharding.checkpoint.failures import CannotSave, Damaged, NotFinite, first_line
from sharding.checkpoint.keep import EACH, SOURCE, CheckpointConfig
from sharding.checkpoint.manifest import Manifest, Stored, Unreadable, check_files
from sharding.checkpoint.saved import NAMED, OTHER_VALUES, Saved
from sharding.errors import UserError
from sharding.whole_file import free_name

State = TypeVar("State")
Axes = Mapping[str, tuple[str | None, ...]]
"""Logical axes by the name of an array."""

PARTIAL, DELETING, DAMAGED, ASIDE = ".partial", ".deleting", ".damaged", ".aside"
GIVE_UP_TURNS = 100


class Checkpoints(Saved):
    """The checkpoints in one folder, by step.

    Args:
      folder: where they are; made if it is not there.
      config: which are kept.
      read_only: changes nothing in the folder, not even what a run is just now saving there.

    Attributes:
      elsewhere: arrays that are known to stand in other checkpoints, by name, with their places.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: CheckpointConfig = CheckpointConfig(),
        *,
        read_only: bool = False,
    ) -> None:
        super().__init__(folder)
        self.config = config
        self.elsewhere: Mapping[str, Stored] = {}
        self._writer: Writer | None = None
        self._thread: threading.Thread | None = None
        self._failures: dict[int, CannotSave] = {}
        self._newest = -1
        self._checked: set[int] = set()
        self._whole: set[pathlib.Path] = set()
        self._cleans = not read_only and processes.is_first()
        try:
            if self._cleans:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
        except OSError as error:
            raise self._cannot_save(error) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Saving.

    def save(
        self,
        step: int,
        state: Any,
        extra: Mapping[str, Any],
        loss: float | None = None,
        axes: Axes | None = None,
        suspect: str = "",
        frozen: Collection[str] = (),
    ) -> None:
        """Saves in the background; nothing if that step is saved already. All processes call it.

        Args:
          step: updates done.
          state: a tree of jax Arrays (typed random keys too). It is copied before this returns,
            so its buffers may be donated to the next step.
          extra: JSON values, such as the data position and the configuration.
          loss: validation loss, by which the best is chosen.
          axes: logical axes of arrays, by name.
          suspect: why the state may be bad, see `Manifest`.
          frozen: names of arrays that are not trained. Those of them that stand in another
            checkpoint, bit for bit, are named and not written, see `CheckpointConfig.frozen`.

        Raises:
          NotFinite: the state holds numbers that are not finite; nothing is written.
          CannotSave: the disk is full or cannot be written. What fails later, in the background,
            `failure` and `wait` tell.
        """
        self._join()
        if processes.agree(step in self.steps()):
            return
        leaves = names.flat(state)
        axes = axes or {}
        arrays = {
            name: Stored(names.fact(leaf), axes.get(name), "") for name, leaf in leaves.items()
        }
        leaves = {name: names.stored(leaf) for name, leaf in leaves.items()}
        digests, strange = own_digests(leaves)
        if strange := processes.first_said(strange):
            raise NotFinite(step, strange)
        known = self._known(step) if frozen else {}
        known = {name: known[name] for name in frozen if name in known}
        named = elsewhere.unchanged(self.folder, known, arrays, digests)
        arrays |= named
        leaves = {name: leaf for name, leaf in leaves.items() if name not in named}
        self._check_room(leaves)
        self._writer = self._writer or Writer()
        partial = self.folder / f"{step}{PARTIAL}"
        try:
            self._writer.start(partial, leaves)
        except (OSError, ValueError, RuntimeError) as error:
            self._give_up(partial)
            raise self._cannot_save(error) from error

        def finish() -> None:
            try:
                self._commit(partial, digests, Manifest(step, loss, arrays, extra, {}, suspect))
                self._prune(step)
            except Exception as error:  # Orbax and TensorStore raise many kinds
                self._give_up(partial)
                self._failures[step] = self._cannot_save(error)

        self._newest = step
        self._thread = threading.Thread(target=finish, name=f"checkpoint {step}")
        self._thread.start()

    def failure(self) -> CannotSave | None:
        """A save that failed in the background and was not told of yet; does not wait."""
        return self._failures.pop(min(self._failures)) if self._failures else None

    def wait(self) -> None:
        """Until what is being saved is on disk.

        Raises:
          CannotSave: the newest save failed.
        """
        self._join()
        if failure := self._failures.pop(self._newest, None):
            raise failure

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self._join()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._clean()

    def latest_good(self) -> tuple[int | None, list[Damaged]]:
        """The newest step that is not suspect and whose every byte is as it was written.

        All processes call it and get the same answer.

        Returns:
          The step, None if there is none; and what is wrong with newer ones that are damaged.
        """
        damaged: list[Damaged] = []
        for step in reversed(self.steps()):
            if self.suspect(step):
                continue
            try:
                self.check(step)
                return step, damaged
            except Damaged as error:
                damaged.append(error)
        return None, damaged

    def set_aside(self, after: int | None, damaged: Collection[int] = ()) -> list[str]:
        """Renames checkpoints newer than a step: a run goes on before them.

        All processes call it.

        Args:
          after: the step; None sets all aside.
          damaged: those of them that are. They become `<step>.damaged`, and saving that step anew
            removes them. The others become `<step>.aside`, or `<step>.aside-2` and so on, which
            nothing removes.

        Returns:
          The new names of those that are not damaged.
        """
        processes.barrier("checkpoints are chosen")
        later = [step for step in self.steps() if after is None or step > after]
        processes.barrier("checkpoints are set aside")
        names = []
        for step in reversed(later):
            self._judged.pop(step, None)
            self._checked.discard(step)
            if not processes.is_first():
                continue
            aside = self.folder / f"{step}{DAMAGED}"
            if step in damaged:
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside = free_name(self.folder / f"{step}{ASIDE}")
                names.append(aside.name)
            os.replace(self.folder / str(step), aside)
        processes.barrier("checkpoints were set aside")
        return names

    # Reading.

    def check(self, step: int) -> None:
        """Reads every byte of a checkpoint once, the processes a share each.

        Raises:
          Damaged: a file that is not as it was written; in all processes alike.
        """
        if step in self._checked:
            return
        reason = ""
        try:
            manifest = self.manifest(step)
            check_files(self.folder / str(step), manifest, processes.rank(), processes.count())
        except Unreadable as error:
            reason = str(error)
        except Damaged as error:
            reason = error.reason
        if reason := processes.first_said(reason):
            raise self._damaged(step, reason)
        self._checked.add(step)

    def restore(self, step: int, abstract: State, *, partial: bool = False) -> State:
        """The state of a step, checked byte by byte and value by value. All processes call it.

        Args:
          step: one of `steps()`.
          abstract: the tree of shapes, dtypes and shardings to restore to.
          partial: whether the checkpoint may hold more than is asked for.

        Raises:
          UserError: no such checkpoint, or one of other names, shapes or dtypes.
          Damaged: it is not as it was written.
        """
        self.check(step)
        stored = self.manifest(step).arrays
        wanted = names.flat(abstract)
        self._compare(step, stored, wanted, partial)
        elsewhere.check(self, step, {name: stored[name] for name in wanted}, self._whole)
        arrays, digests = self._read(step, {name: _placed(leaf) for name, leaf in wanted.items()})
        for name, value in totals(digests).items():
            if value != stored[name].digest:
                if place := stored[name].place:
                    raise self.not_there(step, name, place, OTHER_VALUES)
                raise self._damaged(step, f"'{name}' has other values than were saved")
        leaves = [
            jax.random.wrap_key_data(arrays[name], impl=names.key_kind(leaf))
            if names.is_key(leaf)
            else arrays[name]
            for name, leaf in wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    # How.

    def _known(self, step: int) -> dict[str, Stored]:
        """Arrays that stand in checkpoints from before a step, as far as they may be named."""
        if self.config.frozen == EACH:
            return {}
        steps = [other for other in self.steps() if other < step]
        if self.config.frozen != SOURCE:
            return elsewhere.held(self, steps)
        return elsewhere.held(self, [0] if 0 in steps else []) | dict(self.elsewhere)

    def _read(self, step: int, wanted: Mapping[str, Any]) -> Any:
        found, reason = ({}, {}), ""
        try:
            found = self.reader(step).restore(wanted)
        except (OSError, ValueError) as error:  # what TensorStore raises
            reason = first_line(error)
        if reason := processes.first_said(reason):
            raise self._damaged(step, reason)
        return found

    def _compare(
        self, step: int, stored: Mapping[str, Stored], wanted: Mapping[str, Any], partial: bool
    ) -> None:
        """Nothing is ever cast, padded or left out."""
        where = f"checkpoint {step} in {self.folder}"
        if missing := [name for name in wanted if name not in stored]:
            raise UserError(
                f"{where} has no '{missing[0]}'"
                + (": it holds parameters only" if missing[0] == "step" else "")
            )
        if not partial and (unwanted := sorted(stored.keys() - wanted.keys())):
            raise UserError(f"{where} has '{unwanted[0]}', which is not expected")
        for name, leaf in wanted.items():
            found, expected = stored[name].fact, names.fact(leaf)
            if found != expected:
                raise UserError(f"{where}: '{name}' is {found}, expected {expected}")

    def _check_room(self, leaves: Mapping[str, Any]) -> None:
        needed, reason = count_bytes(leaves), ""
        try:
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                reason = f"{needed:,} bytes needed, {free:,} free on the disk"
        except OSError as error:
            reason = str(error)
        if reason := processes.first_said(reason):
            raise self._cannot_save(OSError(reason))

    def _commit(self, partial: pathlib.Path, digests: dict[str, int], manifest: Manifest) -> None:
        """Waits for the arrays, then makes the checkpoint visible."""
        assert self._writer is not None
        self._writer.wait()
        complete(partial, self.folder / str(manifest.step), digests, manifest)
        if processes.is_first():
            shutil.rmtree(self.folder / f"{manifest.step}{DAMAGED}", ignore_errors=True)
            self._judged[manifest.step] = manifest.loss, manifest.suspect

    def _prune(self, saved: int) -> None:
        """Removes what need not be kept."""
        if not processes.is_first():
            return
        steps = self.steps()
        suspect = {step for step in steps if self.suspect(step)}
        kept = self.config.kept(steps, self.losses(), suspect) | {saved}
        kept |= self._read_from(kept)
        for step in sorted(set(steps) - kept):
            going = self.folder / f"{step}{DELETING}"
            os.replace(self.folder / str(step), going)
            self._checked.discard(step)
            shutil.rmtree(going)

    def _read_from(self, kept: Collection[int]) -> set[int]:
        """The steps that these, or other runs, read from."""
        found = {step for step in self.steps() if (self.folder / f"{step}{NAMED}").exists()}
        for step in kept:
            try:
                arrays = self.manifest(step).arrays.values()
            except Damaged:
                continue
            own = {x.place.step for x in arrays if x.place and x.place.near == os.curdir}
            found |= own
        return found

    def _give_up(self, partial: pathlib.Path) -> None:
        self._writer = None  # Orbax's may be left in any state
        if not processes.is_first():
            return
        for _ in range(GIVE_UP_TURNS):  # some of its threads may still be writing there
            shutil.rmtree(partial, ignore_errors=True)
            time.sleep(0.05)
            if not partial.exists():
                return

    def _clean(self) -> None:
        """Removes what saves and removals that died, or were given up, have left."""
        for end in (PARTIAL, DELETING) if self._cleans else ():
            for path in self.folder.glob(f"*{end}"):
                shutil.rmtree(path)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _cannot_save(self, error: Exception) -> CannotSave:
        full = "No space left" in str(error)
        reason = "no space left on the disk" if full else first_line(error)
        return CannotSave(
            f"cannot save in {self.folder} ({reason}): make room or name another folder; earlier "
            f"checkpoints are whole"
        )


def _placed(leaf: Any) -> Any:
    """What is restored for a leaf: of random keys, their integers, lying as the keys do."""
    words = names.stored(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)
