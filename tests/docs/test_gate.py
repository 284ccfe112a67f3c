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


def test_a_site_without_a_fault_is_built(tmp_path):
    result = build(tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site/data/index.html").exists()
    assert (tmp_path / "site/api/gam_jax.adding/index.html").exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"front": "# Front\n\n[gone](docs/gone.md)\n"}, "gone.md"),
        ({"data": "\n[gone](gone.md)\n"}, "gone.md"),
        ({"front": "# Front\n\n[a part](docs/data.md#third)\n"}, "#third"),
        ({"data": "\n[a part](#third)\n"}, "#third"),
        (
            {
                "module": '"""Adds."""\n\n\ndef add(a: int) -> int:\n    """Adds.\n\n    Args:\n'
                '      b: not there.\n    """\n    return a\n'
            },
            "'b'",
        ),
        ({"data": "\n$x_{$\n"}, "x_{"),
        ({"data": "\n$\\softmax x$\n"}, "softmax"),
    ],
    ids=[
        "a link from the front page",
        "a link from a page",
        "an anchor of another page",
        "an anchor of the page itself",
        "a docstring's argument",
        "a formula without its end",
        "a formula's unknown command",
    ],
)
def test_a_fault_is_named_and_fails_the_build(tmp_path, fault, said):
    result = build(tmp_path, **fault)
    assert result.returncode != 0
    assert said in result.stderr


def test_formulas_become_mathml_and_code_does_not(tmp_path):
    text = "\n$a_t$ costs 3$ or 4$, `$b_t$`.\n\n$$\nc_t\n$$\n\n```\n$d_t$\n```\n"
    assert build(tmp_path, data=text).returncode == 0
    page = (tmp_path / "site/data/index.html").read_text()
    found = [page.count(f"<msub><mi>{letter}</mi><mi>t</mi></msub>") for letter in "abcd"]
    assert found == [1, 0, 1, 0]
    assert "costs 3$ or 4$" in page
    assert "$b_t$" in page
    assert "$d_t$" in page


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    build(tmp_path, data="\n$a_t$\n")
    page = (tmp_path / "site/data/index.html").read_text()
    fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page)
    assert fetched == []
