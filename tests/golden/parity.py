"""How far logits are from those of transformers, for each folder beside this file."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from gam_jax.convert import from_hf
from gam_jax.convert.folder import read_config
from gam_jax.convert.hf import architecture

if __name__ == "__main__":
    for folder in sorted(pathlib.Path(__file__).parent.glob("hf_*")):
        model, params = from_hf(folder)
        expected = np.load(folder / "expected.npz")
        model = model.for_length(expected["tokens"].shape[1])
        logits, _ = jax.jit(model)(params, expected["tokens"])
        error, largest = (np.abs(x).max() for x in (logits - expected["logits"], logits))
        name = architecture(read_config(folder))
        print(f"{folder.name:22} {name:27} {error:.1e} of {largest:.0f}")
