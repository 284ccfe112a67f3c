"""The gate of the documentation: the very command of `.ci/run`, on a small site with one fault."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")

ROOT = pathlib.Path(__file__).parents[2]
FRONT = "# Front\n\n[a page](docs/data.md), [its second part](docs/data.md#second)\n"
DATA = "# Data\n\n## Second\n\n[the front](../README.md)\n"


def command() -> str:
    """The line of `.ci/run` that builds the documentation."""
    lines = (ROOT / ".ci/run").read_text().splitlines()
    (line,) = [line for line in lines if "mkdocs build" in line]
    return line


def build(tree: pathlib.Path, **changed: str) -> subprocess.CompletedProcess[str]:
    """Builds a site with the settings and the page names of this one, and hardly a word.

    `changed` gives the text of README, what the page data ends with, or the text of a module.
    """
    shutil.copytree(ROOT / "docs/site", tree / "docs/site")
    shutil.copy(ROOT / "mkdocs.yml", tree)
    for page in (ROOT / "docs").rglob("*.md"):
        copy = tree / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(f"# {page.stem}\n")
    (tree / "docs/data.md").write_text(DATA + changed.get("data", ""))
    (tree / "README.md").write_text(changed.get("front", FRONT))
    for package in ("gam_jax", "sharding", "experiments"):
        (tree / package).mkdir()
        (tree / package / "__init__.py").write_text('"""A package."""\n')
    (tree / "gam_jax/adding.py").write_text(changed.get("module", '"""Adds."""\n'))
    tools = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command()],
        cwd=tree,
        env={**os.environ, "PATH": tools, "work": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A site without a fault, and where it was built."""
    tree = tmp_path_factory.mktemp("sound")
    text = "\n$a_t$ costs 3$ or 4$, `$b_t$`.\n\n$$\nc_t\n$$\n\n```\n$d_t$\n```\n"
    return build(tree, data=text), tree / "site"


def test_a_site_without_a_fault_is_built(sound):
    result, site = sound
    assert result.returncode == 0, result.stderr
    assert (site / "data/index.html").exists()
    assert (site / "api/gam_jax.adding/index.html").exists()


FAULTS = {
    "a link from the front page": ("front", "[gone](docs/gone.md)", "'docs/gone.md'"),
    "a link from a page": ("data", "[gone](gone_too.md)", "'gone_too.md'"),
    "an anchor of another page": ("front", "[a part](docs/data.md#third)", "'#third'"),
    "an anchor of the page itself": ("data", "[a part](#fourth)", "'#fourth'"),
    "a formula without its end": ("data", "$x_{$", "'x_{'"),
    "a formula's unknown command": ("data", r"$\softmax x$", "softmax"),
    "a docstring's argument without a type": ("module", "      b: not there.", "for parameter 'b'"),
    "a docstring's argument": ("module", "", "'b' does not appear"),
}
"""The page that it is on, the line, and what the one warning about it says."""


def test_each_fault_is_a_warning_and_each_warning_fails_the_build(tmp_path):
    def of(place: str) -> str:
        return "\n\n".join(line for page, line, _ in FAULTS.values() if page == place)

    module = '"""Adds."""\n\n\ndef add(a: int) -> int:\n    """Adds.\n\n    Args:\n'
    module += f'{of("module").rstrip()}\n    """\n    return a\n'
    result = build(
        tmp_path, front=f"# Front\n\n{of('front')}\n", data=f"\n{of('data')}\n", module=module
    )
    warnings = [line for line in result.stderr.splitlines() if line.startswith("WARNING")]
    for name, (_, _, said) in FAULTS.items():
        assert len([line for line in warnings if said in line]) == 1, name
    assert len(warnings) == len(FAULTS)
    assert f"Aborted with {len(FAULTS)} warnings in strict mode!" in result.stdout
    assert result.returncode != 0


def test_formulas_become_mathml_and_code_does_not(sound):
    page = (sound[1] / "data/index.html").read_text()
    found = [page.count(f"<msub><mi>{letter}</mi><mi>t</mi></msub>") for letter in "abcd"]
    assert found == [1, 0, 1, 0]
    assert "costs 3$ or 4$" in page
    assert "$b_t$" in page
    assert "$d_t$" in page


def test_a_page_needs_nothing_from_elsewhere(sound):
    page = (sound[1] / "data/index.html").read_text()
    fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page)
    assert fetched == []
