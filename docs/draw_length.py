"""Draws docs/length.png and prints its figures: python docs/draw_length.py FILE...

The files are what `gam benchmark length --mixers=... --json` prints, one or many.
"""

import json
import pathlib
import re
import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROW = re.compile(r"(.+) (whole|chunked), ([\d,]+) tokens")
PANELS = (
    ("whole", "a token", "microseconds a token, forward and backward"),
    ("chunked", "temporary", "temporary bytes a token, in chunks of 4,096"),
)
Lines = dict[tuple[str, str], dict[str, dict[int, float]]]
"""(mixer, kind) -> column -> tokens -> median."""


def read(paths: list[str]) -> Lines:
    """The rows of some files that are of one length."""
    lines: Lines = {}
    for path in paths:
        for name, row in json.loads(pathlib.Path(path).read_text())["rows"].items():
            if found := ROW.fullmatch(name):
                columns = lines.setdefault((found[1], found[2]), {})
                for column, figure in row.items():
                    tokens = int(found[3].replace(",", ""))
                    columns.setdefault(column, {})[tokens] = figure["median"]
    return lines


def draw(lines: Lines, path: pathlib.Path) -> None:
    """A line a mixer: time of the whole, memory in chunks."""
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, column, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for (mixer, own), columns in lines.items():
            if own == kind:
                style = {"linestyle": "--"} if "Attention" in mixer else {}
                axes.plot(*zip(*sorted(columns[column].items()), strict=True), "o", ms=3, **style)
                axes.lines[-1].set(label=mixer, linestyle=style.get("linestyle", "-"))
        axes.set(xscale="log", yscale="log", xlabel="tokens of a sequence", ylabel=label)
        axes.grid(alpha=0.25, which="both")
    figure.axes[0].legend(fontsize=8, ncols=2)
    figure.savefig(path)


def show(lines: Lines) -> None:
    """The table of times and memory."""
    lengths = sorted({n for columns in lines.values() for n in columns["a token"]})
    for column in ("a token", "temporary"):
        print(f"\n| {column} | | " + " | ".join(f"{n:,}" for n in lengths) + " |")
        print("|---|---|" + "---|" * len(lengths))
        for (mixer, kind), columns in lines.items():
            cells = [f"{columns[column][n]:,.4g}" if n in columns[column] else "" for n in lengths]
            print(f"| {mixer} | {kind} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    found = read(sys.argv[1:])
    draw(found, pathlib.Path(__file__).with_name("length.png"))
    show(found)
