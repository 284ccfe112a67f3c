"""Draws docs/meshes.png: python docs/draw_meshes.py"""

import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

OWN, OTHER = ("#cfe3f5", "#fbe3c4", "#dcecd4", "#e6dcf0"), "#f4f4f4"
PANELS = (
    ("data", "rows of the batch", "each: its rows, all tokens\nsums: gradients, once a step"),
    ("fully_sharded", "rows, and parameters", "each layer's parameters are\ngathered as it runs"),
    ("sequence", "tokens", "K-1 tokens to the right\nneighbour, each layer"),
    (
        "tensor",
        "slots, channels, hidden units",
        "softmax completed, results\nsummed inside each layer",
    ),
)
DEVICES = 4


def panel(axes, title: str, what: str, sent: str) -> None:
    """Activations [batch, tokens] above parameters, coloured by the device that holds them."""
    axes.set(xlim=(0, 4.4), ylim=(-1.35, 6.6))
    axes.axis("off")
    axes.set_title(title, fontsize=11, family="monospace")
    axes.text(2.2, 6.15, f"splits {what}", ha="center", fontsize=8.5)
    for i in range(DEVICES):
        if title in ("data", "fully_sharded"):
            spot, size = (0.2, 5.0 - 0.5 * i), (4.0, 0.5)
        elif title == "sequence":
            spot, size = (0.2 + i, 3.5), (1.0, 2.0)
        else:
            spot, size = None, None
        if spot:
            axes.add_patch(Rectangle(spot, *size, facecolor=OWN[i], edgecolor="#555555"))
    if title == "tensor":
        axes.add_patch(Rectangle((0.2, 3.5), 4.0, 2.0, facecolor=OTHER, edgecolor="#555555"))
        axes.text(
            2.2,
            4.5,
            "whole on every device\n(tensor_tokens: split by tokens)",
            ha="center",
            va="center",
            fontsize=7.5,
        )
    if title == "sequence":
        for i in range(1, DEVICES):
            axes.annotate(
                "",
                xy=(0.45 + i, 4.5),
                xytext=(i - 0.05, 4.5),
                arrowprops={"arrowstyle": "-|>", "color": "#444444"},
            )
    axes.text(0.2, 3.2, "activations", fontsize=7.5, color="#666666")
    split = title in ("fully_sharded", "tensor")
    for i in range(DEVICES):
        face = OWN[i] if split else OTHER
        edge = {"edgecolor": "#555555"} if split else {"edgecolor": "none"}
        axes.add_patch(Rectangle((0.2 + i, 1.2), 1.0, 1.4, facecolor=face, **edge))
    axes.add_patch(Rectangle((0.2, 1.2), 4.0, 1.4, facecolor="none", edgecolor="#555555"))
    if not split:
        axes.text(2.2, 1.9, "whole on every device", ha="center", va="center", fontsize=7.5)
    axes.text(0.2, 0.9, "parameters", fontsize=7.5, color="#666666")
    axes.text(2.2, -0.35, sent, ha="center", va="center", fontsize=8.5)


def main() -> None:
    """Writes the picture beside this file."""
    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, words in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        panel(axes, *words)
    handles = [Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#555555") for c in OWN]
    names = [f"device {i}" for i in range(DEVICES)]
    figure.legend(handles, names, loc="outside lower center", ncols=DEVICES, fontsize=8)
    figure.savefig(pathlib.Path(__file__).with_name("meshes.png"))


if __name__ == "__main__":
    main()
