"""What mkdocs does beside building the pages that are there.

The README is the front page; every module gets a page made from its docstrings; links that leave
docs/ lead to those pages, or lose their target where the site has nothing for it.
"""

from __future__ import annotations

import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("gam_jax", "sharding", "experiments")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def modules() -> dict[str, str]:
    """Source path -> dotted name, for every module that others may import."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if not any(part.startswith("_") for part in parts if part != "__init__"):
                dotted = ".".join(part for part in parts if part != "__init__")
                found[path.relative_to(ROOT).as_posix()] = dotted
    return found


def on_config(config: Any) -> Any:
    """The order of pages: those written by hand, then the reference by package."""
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    reference = [
        {package: [_page(name) for name in modules().values() if name.split(".")[0] == package]}
        for package in PACKAGES
    ]
    config["nav"] = ["index.md", *pages, {"Reference": reference}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the front page and the reference."""
    front = (ROOT / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=front))
    for name in modules().values():
        text = f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, _page(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turns links into the tree of sources into links into the site."""
    source = "README.md" if page.file.src_uri == "index.md" else f"docs/{page.file.src_uri}"
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if "://" in target or source.startswith("docs/api/"):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match.group(0)  # mkdocs says that it is broken
        inside = _place(path)
        if inside is None:
            return text
        return f"[{text}]({posixpath.relpath(inside, here or '.')}{anchor})"

    return LINK.sub(turned, markdown)


def _place(path: str) -> str | None:
    """Where the site has what stands at `path` in the tree; None if nowhere."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    return next(
        (
            _page(name)
            for source, name in modules().items()
            if source == path or source == f"{path}/__init__.py"
        ),
        None,
    )


def _page(name: str) -> str:
    return f"api/{name}.md"
