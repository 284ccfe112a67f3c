"""Writes enhancer.npz: one block of MP-SENet by PyTorch's own modules, batch first.

Source: the released code of MP-SENet (arXiv 2308.08926), whose modules expect time first and are
given rows first; here they are told so. Parameters are by a formula, so that outputs alone are
kept: python tests/golden/enhancer.py, with torch.
"""

from __future__ import annotations

import pathlib

import numpy as np

ROWS, PLACES, WIDTH, HEADS = 3, 7, 8, 2


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that depend on a name and a place, in -0.5 .. 0.5."""
    seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(name))
    return 0.5 * np.sin(seed + 1.7 * np.arange(np.prod(shape))).reshape(shape)


def given() -> np.ndarray:
    """The inputs."""
    return 2 * numbers("x", (ROWS, PLACES, WIDTH))


def main() -> None:
    """Runs PyTorch and writes the file."""
    import torch
    from torch import nn

    torch.set_default_dtype(torch.float64)
    modules = {
        "norm_0": nn.LayerNorm(WIDTH),
        "attention": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        "norm_1": nn.LayerNorm(WIDTH),
        "gru": nn.GRU(WIDTH, 2 * WIDTH, bidirectional=True, batch_first=True),
        "out": nn.Linear(4 * WIDTH, WIDTH),
        "norm_2": nn.LayerNorm(WIDTH),
    }
    for name, module in modules.items():
        for key, value in module.named_parameters():
            value.data = torch.tensor(numbers(f"{name}.{key}", tuple(value.shape)))
    with torch.no_grad():
        x = torch.tensor(given())
        y = modules["norm_0"](x)
        x = x + modules["attention"](y, y, y)[0]
        y, _ = modules["gru"](modules["norm_1"](x))
        x = modules["norm_2"](x + modules["out"](nn.functional.leaky_relu(y)))
    np.savez(pathlib.Path(__file__).with_suffix(".npz"), block=x.numpy())


if __name__ == "__main__":
    main()
