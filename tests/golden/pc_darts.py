"""Genotypes and shuffled channels of the official PC-DARTS code, for drawn logits.

    python tests/golden/pc_darts.py FOLDER tests/golden/pc_darts.json

FOLDER is a copy of github.com/yuhuixu1993/PC-DARTS. It needs torch; calls to `cuda` are left out.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

SEEDS, EDGES, OPTIONS = 12, 14, 8
"""Draws of logits; edges of four nodes; options, of which the first is none."""


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of options [14, 8], the first one large in each second draw; of edges [14]."""
    random = np.random.default_rng(seed)
    options, edges = random.normal(size=(EDGES, OPTIONS)), random.normal(size=EDGES)
    options[:, 0] += 4 * (seed % 2)
    return options, edges


def main(folder: str, path: str) -> None:
    """Writes the file."""
    import torch

    sys.path.insert(0, folder)
    torch.Tensor.cuda = lambda self, *_, **__: self
    import model_search

    net = model_search.Network(16, 10, 2, None)
    found = []
    for seed in range(SEEDS):
        options, edges = map(torch.from_numpy, drawn(seed))
        net.alphas_normal, net.betas_normal = options, edges
        genes = net.genotype().normal
        found.append([[model_search.PRIMITIVES.index(name), edge] for name, edge in genes])
    channels = torch.arange(24.0).reshape(1, 24, 1, 1)
    shuffled = {
        groups: model_search.channel_shuffle(channels, groups).flatten().int().tolist()
        for groups in (1, 2, 4, 8)
    }
    told = {"genotypes": found, "shuffled": shuffled}
    pathlib.Path(path).write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
