"""Outputs of APNet's released generator, small, with parameters by a formula.

    python tests/golden/apnet.py FOLDER tests/golden/apnet.npz

FOLDER is a copy of github.com/YangAi520/APNet, commit 03ffa6af. Log amplitudes, phases and sound of
one batch of mel spectra are written. It needs torch; matplotlib, which that code imports, is not
used. The released call of istft, with pairs of real numbers, is given complex ones, as torch now
asks for.
"""

from __future__ import annotations

import sys
import types
import zlib
from collections.abc import Iterator

import numpy as np

WIDTH, KERNELS, DILATIONS, MELS = 8, (3, 5), (1, 2, 3), 6
SIZE, WINDOW, HOP, FRAMES = 32, 16, 4, 11


def values(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of ours: taps, inputs, outputs."""
    n = np.arange(np.prod(shape)).reshape(shape)
    wave = np.sin(0.37 * n + zlib.crc32(path.encode()) % 100)
    return 1.0 + 0.2 * wave if path.endswith("gain") else 0.3 * wave


def mel() -> np.ndarray:
    """[B, T, mels]."""
    n = np.arange(2 * FRAMES * MELS).reshape(2, FRAMES, MELS)
    return np.cos(0.53 * n)


def names() -> Iterator[tuple[str, str]]:
    """(our path of a convolution, its name there)."""
    for ours, theirs in (("amplitudes", "ASP"), ("phases", "PSP")):
        yield f"{ours}/0", f"{theirs}_input_conv"
        for j in range(len(KERNELS)):
            for i in range(len(DILATIONS)):
                for place, which in (("1", "convs1"), ("3", "convs2")):
                    yield f"{ours}/1/{j}/{i}/0/{place}", f"{theirs}_ResNet.{j}.{which}.{i}"
    yield "amplitudes/3", "ASP_output_conv"
    yield "phases/3/0", "PSP_output_R_conv"
    yield "phases/3/1", "PSP_output_I_conv"


def config() -> types.SimpleNamespace:
    """The fields that the generator reads."""
    found = {"num_mels": MELS, "n_fft": SIZE, "win_size": WINDOW, "hop_size": HOP}
    for part in ("ASP", "PSP"):
        found |= {
            f"{part}_channel": WIDTH,
            f"{part}_resblock_kernel_sizes": KERNELS,
            f"{part}_resblock_dilation_sizes": [DILATIONS] * len(KERNELS),
            f"{part}_input_conv_kernel_size": 7,
        }
    for end in ("ASP_output", "PSP_output_R", "PSP_output_I"):
        found[f"{end}_conv_kernel_size"] = 7
    return types.SimpleNamespace(**found)


def main(folder: str, path: str) -> None:
    """Writes the file, and prints how large the fields' initial values are."""
    import torch

    for name in ("matplotlib", "matplotlib.pylab", "matplotlib.pyplot"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["matplotlib"].use = lambda *_: None
    sys.path.insert(0, folder)
    real = torch.istft
    torch.istft = lambda spec, *args, **kw: real(
        torch.view_as_complex(spec.contiguous()), *args, **kw
    )
    from models import Generator

    model = Generator(config()).double()
    with torch.no_grad():
        model(torch.tensor(mel()).transpose(1, 2))
        head = dict(model.named_modules())["ASP_output_conv"]
        print("initial weights of a head have a deviation of", float(head.weight.std()))
        modules = dict(model.named_modules())
        for ours, theirs in names():
            conv = modules[theirs]
            outputs, inputs, taps = conv.weight_v.shape
            weight = values(f"{ours}/weight", (taps, inputs, outputs))
            conv.weight_v.copy_(torch.tensor(weight.transpose(2, 1, 0)))
            conv.weight_g.copy_(torch.tensor(values(f"{ours}/gain", (outputs,)))[:, None, None])
            conv.bias.copy_(torch.tensor(values(f"{ours}/bias", (outputs,))))
        given = torch.tensor(mel()).transpose(1, 2)
        window = torch.hann_window
        torch.hann_window = lambda size: window(size, dtype=torch.float64)
        log_amplitude, phase, _, _, audio = model(given)
    found = {"log_amplitude": log_amplitude, "phase": phase}
    arrays = {name: x.numpy().swapaxes(1, 2) for name, x in found.items()}
    np.savez_compressed(path, audio=audio[:, 0].numpy(), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
