"""Spectra and signals as torch.stft and torch.istft compute them, mels as transformers does.

    python tests/golden/spectrum.py tests/golden/spectrum.npz

writes, for each of CASES, the spectrum of `signal` and the signal of `bins`, in float64; and mel
filters for each of MELS. It needs torch and transformers.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """Samples of a frame, hop, samples of the window, and whether frames are centred."""

    size: int
    hop: int
    width: int
    center: bool


CASES = (
    Case(16, 4, 16, True),
    Case(16, 3, 10, True),
    Case(12, 5, 11, True),
    Case(15, 4, 15, True),
    Case(16, 4, 16, False),
)
MELS = ((16000, 1024, 80, 0.0, 8000.0), (22050, 64, 12, 50.0, 6000.0))
ROWS, SAMPLES, FRAMES = 2, 61, 7


def window_of(case: Case) -> np.ndarray:
    """A lopsided window without zeros."""
    n = np.arange(case.width)
    return 0.6 + 0.3 * np.sin(0.7 * n) + 0.01 * n


def signal() -> np.ndarray:
    """[B, N], float64."""
    n = np.arange(ROWS * SAMPLES).reshape(ROWS, SAMPLES)
    return np.sin(0.37 * n) + 0.5 * np.cos(1.9 * n + 0.3)


def bins(case: Case) -> np.ndarray:
    """[B, T, F], complex128: of no signal, so that frames disagree where they meet."""
    shape = (ROWS, FRAMES, case.size // 2 + 1)
    n = np.arange(np.prod(shape)).reshape(shape)
    return np.sin(0.61 * n) + 1j * np.cos(1.3 * n)


def main(path: str) -> None:
    """Writes the file."""
    import torch
    from transformers.audio_utils import mel_filter_bank

    found = {}
    for number, case in enumerate(CASES):
        window = torch.tensor(window_of(case))
        given = (case.size, case.hop, case.width, window)
        made = torch.stft(torch.tensor(signal()), *given, center=case.center, return_complex=True)
        found[f"stft {number}"] = made.numpy().swapaxes(1, 2)
        spectrum = torch.tensor(bins(case)).transpose(1, 2)
        found[f"istft {number}"] = torch.istft(spectrum, *given, center=case.center).numpy()
    for number, (rate, size, mels, low, high) in enumerate(MELS):
        found[f"mel {number}"] = mel_filter_bank(
            size // 2 + 1, mels, low, high, rate, norm="slaney", mel_scale="slaney"
        ).astype(np.float32)
    np.savez_compressed(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
