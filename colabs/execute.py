"""Runs notebooks and keeps their outputs: python colabs/execute.py quickstart any_mesh"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent
KEPT = ("colab", "kernelspec")
"""Of a notebook's metadata; the rest tells of the machine that it ran on."""


def execute(
    path: pathlib.Path, folder: pathlib.Path, environment: Mapping[str, str]
) -> nbformat.NotebookNode:
    """The notebook as it is after a run from top to bottom, in a kernel of its own.

    Args:
      path: of the notebook; its file stays as it is.
      folder: where it runs, and leaves its files.
      environment: of the kernel.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=dict(environment))
    notebook.metadata = {
        **{key: value for key, value in notebook.metadata.items() if key in KEPT},
        "language_info": {"name": "python"},
    }
    return notebook


def main(*names: str) -> None:
    """Runs each notebook in an empty folder and writes it back."""
    paths = [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb"))
    places = filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    for path in paths:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, pathlib.Path(folder), environment)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
