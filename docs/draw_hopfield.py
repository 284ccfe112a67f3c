"""Draws docs/hopfield.png: python docs/draw_hopfield.py"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gam_jax import hopfield

NEURONS, PATTERNS, SWEEPS = 4000, 3, 6
COLOURS = ("#2f6db3", "#d98a1f", "#4f9a4a")
retrieve = jax.jit(hopfield.retrieve)


def retrieved(blank: float, seed: int) -> np.ndarray:
    """Overlaps, largest first, after sequential sweeps from the first pattern."""
    draw, fill, order = jax.random.split(jax.random.key(seed), 3)
    xi = hopfield.draw_patterns(draw, PATTERNS, NEURONS, blank)
    spins = jnp.where(xi[0] == 0, jax.random.rademacher(fill, (NEURONS,), jnp.float32), xi[0])
    for _ in range(SWEEPS):
        spins = retrieve(xi, spins, jax.random.permutation(order, NEURONS))
    return np.sort(np.abs(hopfield.overlaps(xi, spins)))[::-1]


def main() -> None:
    """Writes the picture beside this file."""
    figure = Figure(figsize=(6.4, 3.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    blanks, line = np.linspace(0.05, 0.9, 18), np.linspace(0, 0.95, 200)
    found = np.stack([retrieved(float(d), i) for i, d in enumerate(blanks)])
    for k, colour in enumerate(COLOURS):
        axes.plot(line, line**k * (1 - line), color=colour, linewidth=1)
        axes.plot(blanks, found[:, k], "o", color=colour, markersize=4, label=f"pattern {k + 1}")
    axes.axvline(0.618, color="#888888", linestyle="--", linewidth=1)
    axes.text(0.63, 0.9, "the hierarchy is stable\nto the left", fontsize=8, color="#666666")
    axes.set(xlabel="blank entries d", ylabel="overlap", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper center", title="lines: dᵏ⁻¹ (1 - d)")
    figure.savefig(pathlib.Path(__file__).with_name("hopfield.png"))


if __name__ == "__main__":
    main()
