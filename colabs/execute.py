"""Runs notebooks and keeps their outputs: python colabs/execute.py quickstart any_mesh"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent
KEPT = ("colab", "kernelspec")
"""Of a notebook's metadata; the rest tells of the machine that it ran on."""
BEGIN = """
import gc, os
import jax, jax.extend
gc.set_threshold(50_000, 20, 20)  # tracing makes many objects: at 700 it takes a quarter longer
jax.extend.backend.clear_backends()  # so that this notebook may choose its devices
jax.config.update("jax_num_cpu_devices", -1)
os.chdir({folder!r})
get_ipython().reset()
"""
"""What a kernel runs before a notebook: no names and no devices of another, and a place for files.
"""


class Kernel:
    """A kernel of this interpreter, in which notebooks run one after another.

    Args:
      environment: of the kernel.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._manager = KernelManager()
        # The kernel named python3 may be another interpreter's; its PATH need not have this one.
        self._manager.kernel_spec.argv[0] = sys.executable
        self._environment = dict(environment)

    def __enter__(self) -> Kernel:
        self._manager.start_kernel(env=self._environment)
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.shutdown_kernel(now=True)

    def execute(self, path: pathlib.Path, folder: pathlib.Path) -> nbformat.NotebookNode:
        """The notebook as it is after a run from top to bottom.

        Args:
          path: of the notebook; its file stays as it is.
          folder: where it runs, and leaves its files.

        Raises:
          nbclient.exceptions.CellExecutionError: a cell failed.
        """
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(BEGIN.format(folder=str(folder))))
        client = NotebookClient(
            notebook, km=self._manager, timeout=600, record_timing=False, coalesce_streams=True
        )
        client.execute()
        del notebook.cells[0]
        _number(notebook)
        notebook.metadata = {
            **{key: value for key, value in notebook.metadata.items() if key in KEPT},
            "language_info": {"name": "python"},
        }
        return notebook


def _number(notebook: nbformat.NotebookNode) -> None:
    """Counts the cells of code from 1, without the one that came before."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number


def main(*names: str) -> None:
    """Runs each notebook in an empty folder and a kernel of its own, and writes it back."""
    paths = [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb"))
    places = filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    for path in paths:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, Kernel(environment) as kernel:
            notebook = kernel.execute(path, pathlib.Path(folder))
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
