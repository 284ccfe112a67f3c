"""Pictures: drawn late, since matplotlib takes half a second to import; written whole or not."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sharding.whole_file import check_place, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def drawn(path: pathlib.Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of that size in inches; where the block ends well, it is written.

    Raises:
      UserError: the path is there and is no plain file.
      OSError: it cannot be written; the error names it.
    """
    check_place(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    save(figure, path)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure, in the format that the path's suffix names.

    Raises:
      UserError: the path is there and is no plain file.
      OSError: it cannot be written; the error names it.
    """
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))


def shade(name: str, place: int | float) -> Any:
    """A colour of a colour map: by its number, or at a place from 0 to 1."""
    from matplotlib import colormaps

    return colormaps[name](place)
