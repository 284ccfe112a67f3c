"""What `import gam_jax` offers, and that it is cheap; one version everywhere."""

import pathlib
import subprocess
import sys

import pytest
import yaml

import gam_jax
from gam_jax.layers import LAYERS

ROOT = pathlib.Path(__file__).parents[2]


def printed(program: str) -> list[str]:
    """The words that a program prints in a Python of its own."""
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize("name", gam_jax.__all__)
def test_every_name_is_there(name):
    assert getattr(gam_jax, name) is not None
    assert name in dir(gam_jax)


def test_every_layer_is_one_of_the_names():
    assert {name: getattr(gam_jax, name) for name in LAYERS} == LAYERS


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'GMA'"):
        _ = gam_jax.GMA


def test_the_import_loads_nothing_but_itself_and_the_standard_library():
    loaded = printed(
        "import sys; before = set(sys.modules); import gam_jax; print(*set(sys.modules) - before)"
    )
    assert "gam_jax" in loaded
    roots = {module.split(".")[0] for module in loaded}
    assert roots - sys.stdlib_module_names == {"gam_jax"}


def test_a_name_loads_what_it_needs():
    assert printed("import gam_jax; print(gam_jax.GAM(slots=3).slots)") == ["3"]


def test_the_version_is_written_once():
    assert 'version = {attr = "gam_jax.__version__"}' in (ROOT / "pyproject.toml").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == gam_jax.__version__
    assert f"## {gam_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()
