"""Writes pictures whole or not at all."""

from __future__ import annotations

import pathlib

from matplotlib.figure import Figure

from sharding.whole_file import replacing


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure, in the format that the path's suffix names.

    Raises:
      UserError: the path is there and is no plain file.
      OSError: it cannot be written; the error names it.
    """
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))
