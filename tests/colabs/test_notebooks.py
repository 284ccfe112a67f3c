"""Every notebook runs from top to bottom, offline, and is kept as it ran."""

from __future__ import annotations

import itertools
import os
import pathlib
import sys

import nbformat
import pytest

from colabs.execute import execute

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
NOWHERE = "http://127.0.0.1:9"
"""A proxy that refuses: what a notebook would download fails."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook):
    """The cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    """The base64 text of every PNG among the outputs."""
    outputs = itertools.chain.from_iterable(cell.outputs for cell in code(notebook))
    return [found for out in outputs if (found := out.get("data", {}).get("image/png"))]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a kernel that sees this checkout, no network, and an empty home."""
    home = tmp_path_factory.mktemp("home")
    cheap = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    paths = [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    return {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        **proxies,
        "GAM_JAX_SHORT": "1",
        "XLA_FLAGS": " ".join(cheap),  # each notebook emulates the devices that it wants
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PATH": os.pathsep.join(paths),
        "TFDS_DATA_DIR": str(home / "data"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
    }


@each_notebook
def test_it_runs_from_top_to_bottom_offline(path, environment, tmp_path):
    kept = nbformat.read(path, as_version=4)
    # The short form draws all that is drawn.
    assert len(pictures(execute(path, tmp_path, environment))) == len(pictures(kept))


@each_notebook
def test_it_is_kept_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert pictures(notebook)
    assert path.stat().st_size < 300_000
    assert str(pathlib.Path.home()) not in path.read_text()


@each_notebook
def test_it_is_written_to_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == notebook.cells[-1].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    assert words > 200
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= 25


def test_all_begin_with_the_same_cell_that_works_on_colab_and_here():
    firsts = {code(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}
    assert len(firsts) == 1
    assert "pip" in firsts.pop()
