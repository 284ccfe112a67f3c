"""Sound from WAV files of one's own, cut into rows."""

from __future__ import annotations

import dataclasses
import pathlib
import wave
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from gam_jax.data.arrays import ArraysDataset, digest_of_arrays, with_weights
from gam_jax.data.base import Data
from sharding.bounds import Size, check_bounds
from sharding.errors import UserError

OPEN_END = 0xFFFFFFFF
"""The bytes of samples that a header says where its writer could not know them."""
LARGEST = 1 << 15
"""What a sample of 16 bits is divided by, so that all lie in -1 .. 1."""
SHARE = 10
"""One row of so many is held out, at least one."""


@dataclasses.dataclass(frozen=True)
class Audio(Data):
    """A WAV file, or all of a folder and the folders in it: one channel of 16 bits.

    Each file is cut into rows of `samples`, and what is left at its end is not used. The last tenth
    of all rows, in the order of the files' names, is held out. All of it is in memory, 4 bytes a
    sample.

    Attributes:
      name: `audio:PATH`.
      rate: samples a second; a file of another rate is refused.
      samples: of a row.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("audio",)

    name: str = "audio:"
    rate: Size = 16000
    samples: Size = 2048

    def __post_init__(self) -> None:
        check_bounds(self, "data")

    def open(self, files: Mapping[str, str] | None = None) -> ArraysDataset:
        """Reads the files.

        Raises:
          UserError: no file, one that is not understood, has another rate or other samples than
            its header says, or fewer than 2 rows.
        """
        parts = [self._rows(path) for path in self._files()]
        rows = np.concatenate(parts).astype(np.float32) / LARGEST
        if len(rows) < 2:
            raise UserError(
                f"data.name={self.name}: {len(rows)} rows of data.samples={self.samples}: give "
                f"longer files or fewer samples"
            )
        cut = len(rows) - max(1, len(rows) // SHARE)
        own, held = (with_weights({"audio": part}) for part in (rows[:cut], rows[cut:]))
        return ArraysDataset(
            config=self,
            source=own,
            held_out={"": held},
            sizes=self.sizes(),
            fingerprints={"audio": digest_of_arrays({"audio": rows})},
            unit="samples",
            units_per_row=self.samples,
        )

    def sizes(self) -> dict[str, int]:
        """samples and rate."""
        return {"samples": self.samples, "rate": self.rate}

    def batch(self, rows: int) -> dict[str, Any]:
        """audio float32 [rows, samples], weights float32 [rows]."""
        import jax
        import jax.numpy as jnp

        shapes = {"audio": (rows, self.samples), "weights": (rows,)}
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def _files(self) -> list[pathlib.Path]:
        given = self.name.partition(":")[2]
        if not given:
            raise UserError(f"data.name={self.name} names no file: give data.name=audio:PATH")
        path = pathlib.Path(given).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".wav" and p.is_file())
        else:
            found = [path] if path.is_file() else []
        if not found:
            raise UserError(f"data.name={self.name}: there is no WAV file at {path}")
        return found

    def _rows(self, path: pathlib.Path) -> np.ndarray:
        try:
            with path.open("rb") as file, wave.open(file) as sound:
                kind = sound.getnchannels(), 8 * sound.getsampwidth(), sound.getframerate()
                there = path.stat().st_size - file.tell()  # behind the header of the samples
                said = sound.getnframes()
                read = sound.readframes(min(said, there // 2)) if kind[:2] == (1, 16) else b""
        except (wave.Error, EOFError, OSError) as error:
            why = str(error) or "it ends within its header"
            raise UserError(f"{path} is no WAV file that is understood here: {why}") from error
        if kind[:2] != (1, 16):
            raise UserError(
                f"{path} has {kind[0]} channels of {kind[1]} bits: convert it to 1 channel of 16"
            )
        if kind[2] != self.rate:
            raise UserError(
                f"{path} has {kind[2]} samples a second and data.rate={self.rate}: convert it, or "
                f"set data.rate"
            )
        numbers = np.frombuffer(read[: len(read) // 2 * 2], "<i2")
        wanted = there // 2 if said == OPEN_END // 2 else said
        if len(numbers) < wanted or (there and not said):
            raise UserError(
                f"{path}: its header says {said} samples, and {there} bytes follow, of which "
                f"{len(numbers)} samples can be read: write it anew"
            )
        whole = len(numbers) // self.samples * self.samples
        return numbers[:whole].reshape(-1, self.samples)
