"""An independent reading of the GAM paper's equations: float64 NumPy, one token at a time.

It shares nothing with the code under test, not even the layout of the weights: those carry the
official implementation's names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]


def norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * scale + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def block(state: State, rows: list[np.ndarray]) -> list[np.ndarray]:
    """One block over the rows of one sequence; gates are absent in the ablations."""
    normed = [norm(h, state["ln1.weight"], state["ln1.bias"]) for h in rows]
    result = []
    for t, (h, x) in enumerate(zip(rows, normed, strict=True)):
        paths = []
        if "causal_conv.weight" in state:
            taps = state["causal_conv.weight"][:, 0, :]
            local = state["causal_conv.bias"].copy()
            for j in range(taps.shape[1]):
                source = t - taps.shape[1] + 1 + j
                if source >= 0:
                    local += taps[:, j] * normed[source]
            paths.append(local)
        if "memory_bank" in state:
            bank = state["memory_bank"]
            paths.append(softmax(bank @ x) @ bank)
        if "gate.weight" in state:
            gates = sigmoid(state["gate.weight"] @ x + state["gate.bias"])
            paths = [g * p for g, p in zip(np.split(gates, 2), paths, strict=True)]
        h = h + sum(paths)
        y = norm(h, state["ln2.weight"], state["ln2.bias"])
        hidden = gelu(state["ffn.0.weight"] @ y + state["ffn.0.bias"])
        result.append(h + state["ffn.2.weight"] @ hidden + state["ffn.2.bias"])
    return result


def logits(state: State, tokens: np.ndarray) -> np.ndarray:
    """[T, V] for one sequence of tokens [T]."""
    state = {name: np.asarray(value, np.float64) for name, value in state.items()}
    rows = [
        state["token_embedding.weight"][token] + state["pos_embedding.weight"][place]
        for place, token in enumerate(tokens)
    ]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        prefix = f"blocks.{i}."
        rows = block(
            {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}, rows
        )
    final = [norm(h, state["ln_f.weight"], state["ln_f.bias"]) for h in rows]
    return np.stack([state["token_embedding.weight"] @ h for h in final])


def cross_entropy(rows: np.ndarray, targets: np.ndarray) -> float:
    """Mean of -log softmax(row)[target]."""
    return float(np.mean([-np.log(softmax(r)[t]) for r, t in zip(rows, targets, strict=True)]))
