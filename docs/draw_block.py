"""Draws docs/block.png: python docs/draw_block.py"""

import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BOXES = {
    "h": (0.6, 2.0, "h", "#eeeeee"),
    "norm": (2.0, 2.0, "norm", "#eeeeee"),
    "conv": (4.3, 3.1, "causal conv\nlast K tokens", "#cfe3f5"),
    "read": (4.3, 2.0, "memory read\nsoftmax(x Memᵀ) Mem", "#fbe3c4"),
    "gates": (4.3, 0.9, "gates\nsigmoid(x W + b)", "#dcecd4"),
    "fuse": (6.7, 2.0, "g1 · conv\n+ g2 · read", "#dcecd4"),
    "add": (8.3, 2.0, "+", "#eeeeee"),
    "ffn": (9.9, 2.0, "norm,\nfeed-forward", "#e6dcf0"),
    "out": (11.4, 2.0, "+", "#eeeeee"),
}
ARROWS = [
    ("h", "norm"),
    ("norm", "conv"),
    ("norm", "read"),
    ("norm", "gates"),
    ("conv", "fuse"),
    ("read", "fuse"),
    ("gates", "fuse"),
    ("fuse", "add"),
    ("add", "ffn"),
    ("ffn", "out"),
]
SKIPS = [(1.2, "add", 4.1), (8.85, "out", 3.1)]  # from this x on the line, to a sum, at this height


def main() -> None:
    """Writes the picture beside this file."""
    figure = Figure(figsize=(9.5, 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 12.2), ylim=(0.3, 4.4))
    axes.axis("off")
    half = {}
    for name, (x, y, text, colour) in BOXES.items():
        width = 0.35 + 0.105 * max(len(line) for line in text.split("\n"))
        half[name] = width / 2
        box = FancyBboxPatch((x - width / 2, y - 0.33), width, 0.66, boxstyle="round,pad=0.04")
        box.set(facecolor=colour, edgecolor="#555555")
        axes.add_patch(box)
        axes.text(x, y, text, ha="center", va="center", fontsize=9)
    style = {"arrowstyle": "-|>", "color": "#444444", "shrinkA": 0, "shrinkB": 0}
    for start, end in ARROWS:
        (x0, y0, *_), (x1, y1, *_) = BOXES[start], BOXES[end]
        tip, tail = (x1 - half[end] - 0.05, y1), (x0 + half[start] + 0.05, y0)
        axes.annotate("", xy=tip, xytext=tail, arrowprops=style)
    for start, end, height in SKIPS:
        x1, y = BOXES[end][:2]
        axes.plot([start, start, x1], [y, height, height], color="#444444", linewidth=1)
        axes.annotate("", xy=(x1, y + 0.38), xytext=(x1, height), arrowprops=style)
    axes.text(4.3, 4.25, "residual stream", fontsize=8, color="#666666", ha="center")
    figure.savefig(pathlib.Path(__file__).with_name("block.png"))


if __name__ == "__main__":
    main()
