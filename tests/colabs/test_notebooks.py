"""Every notebook runs from top to bottom, offline, and is kept as it ran."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import sys

import nbformat
import pytest

from colabs.execute import Kernel

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
LONG = (
    "any_mesh",
    "checkpoints",
    "finetune",
    "ops",
    "recall",
    "serving",
    "streaming",
    "your_own_model",
)
"""What they run, other tests run too: laws of meshes, checkpoints, streams, rows and ops."""
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
def kernel(tmp_path_factory):
    """It sees this checkout, no network, an empty home, and no PATH of ours.

    All notebooks run in it, since to start one takes longer than most cells.
    """
    home = tmp_path_factory.mktemp("home")
    cheap = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        **proxies,
        "GAM_JAX_SHORT": "1",
        "XLA_FLAGS": " ".join(cheap),  # each notebook emulates the devices that it wants
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PATH": os.defpath,  # as in a kernel whose environment is not activated
        "TFDS_DATA_DIR": str(home / "data"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
    }
    with Kernel(environment) as started:
        yield started


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_it_runs_from_top_to_bottom_offline(path, kernel, tmp_path):
    kept = nbformat.read(path, as_version=4)
    # The short form draws all that is drawn.
    found = kernel.execute(path, tmp_path)
    assert len(pictures(found)) == len(pictures(kept))


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


@each_notebook
def test_it_calls_the_interpreter_of_its_kernel(path):
    """A `python` or `gam` of the PATH may be another environment's, or none."""
    bare = re.compile(r"^\s*(!|%sx\s|%system\s)?\s*(python3?|gam|pip3?)\b", re.MULTILINE)
    called = re.compile(r"""(run|Popen|check_\w+|system)\(\s*\[?\s*["'](python3?|gam|pip3?)\b""")
    for cell in code(nbformat.read(path, as_version=4)):
        assert not bare.search(cell.source)
        assert not called.search(cell.source)


def first_cell():
    (found,) = {code(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}
    return found


@pytest.mark.parametrize(
    ("plugin", "smi", "source"),
    [
        (False, False, ".."),
        (False, True, "..[cuda12]"),
        (True, True, "..[cuda13]"),
    ],
)
def test_all_begin_with_the_same_cell_that_installs_for_what_is_there(
    plugin, smi, source, tmp_path, monkeypatch
):
    """It runs here as on a machine without the package, with a pip that writes what it is asked."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "colabs").mkdir()
    monkeypatch.chdir(tmp_path / "colabs")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = []
    monkeypatch.setattr("subprocess.run", lambda words, check: asked.append(words))
    if smi:
        (tmp_path / "nvidia-smi").touch(mode=0o755)
    if plugin:
        (tmp_path / "jax_cuda13_plugin-0.10.2.dist-info").mkdir()
        words = "Metadata-Version: 2.1\nName: jax-cuda13-plugin\nVersion: 0.10.2\n"
        (tmp_path / "jax_cuda13_plugin-0.10.2.dist-info" / "METADATA").write_text(words)
        monkeypatch.syspath_prepend(str(tmp_path))
    exec(first_cell(), {})
    assert asked == [[sys.executable, "-m", "pip", "install", "--quiet", source]]
