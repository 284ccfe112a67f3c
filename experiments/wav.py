"""Sounds as files that one can hear."""

from __future__ import annotations

import pathlib
import wave

import numpy as np

from sharding.whole_file import replacing


def write_wav(path: pathlib.Path, audio: np.ndarray, rate: int) -> None:
    """Writes one channel of 16 bits.

    Args:
      path: of the file.
      audio: [N], from -1 to 1; what is beyond is cut.
      rate: samples a second.

    Raises:
      UserError: the path is there and is no plain file.
    """
    numbers = np.clip(np.round(np.asarray(audio, np.float64) * 32767), -32768, 32767)
    with replacing(path) as file, wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(numbers.astype("<i2").tobytes())
