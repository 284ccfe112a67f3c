"""What mkdocs does beside building the pages that are there.

The README is the front page; every module gets a page made from its docstrings; links that leave
docs/ lead to those pages, or lose their target where the site has nothing for it; formulas become
MathML.
"""

from __future__ import annotations

import ast
import pathlib
import posixpath
import re
from typing import Any

from formulas import Formulas
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("gam_jax", "sharding", "experiments")
CODE = r"^(?P<fence>```+|~~~+).*?^(?P=fence)|(?P<ticks>`+)(?!`).+?(?P=ticks)"
LINK = r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
LINK_OR_CODE = re.compile(f"{LINK}|{CODE}", re.MULTILINE | re.DOTALL)


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
    """Adds the modules, by package, to the section Reference; and formulas to Markdown."""
    (reference,) = (section["Reference"] for section in config["nav"] if "Reference" in section)
    for package in PACKAGES:
        names = [name for name in modules().values() if name.split(".")[0] == package]
        reference.append({package: [_page(name) for name in names]})
    config["markdown_extensions"].append(Formulas())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the front page and the reference."""
    front = (ROOT / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=front))
    for source, name in modules().items():
        files.append(File.generated(config, _page(name), content=_reference(source, name)))
    return files


def _reference(source: str, name: str) -> str:
    """The page of a module; a package shows what it defines, and names what it passes on."""
    text = f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n"
    if not source.endswith("__init__.py"):
        return text
    body = ast.parse((ROOT / source).read_text()).body
    own = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    own += [target.id for node in body for target in _targets(node) if target.id != "__all__"]
    passed = sorted(_exported(body) - set(own))
    text += f"      members: {own}\n"
    return text + (f"\nPassed on: {', '.join(f'`{name}`' for name in passed)}.\n" if passed else "")


def _targets(node: ast.stmt) -> list[ast.Name]:
    """The names that a statement gives a value."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [target for target in targets if isinstance(target, ast.Name)]


def _exported(body: list[ast.stmt]) -> set[str]:
    """What `__all__` says."""
    for node in body:
        if isinstance(node, ast.Assign) and "__all__" in [name.id for name in _targets(node)]:
            return set(ast.literal_eval(node.value))
    return set()


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turns links into the tree of sources into links into the site; code is left as it is."""
    source = "README.md" if page.file.src_uri == "index.md" else f"docs/{page.file.src_uri}"
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        if target is None or "://" in target or source.startswith("docs/api/"):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match.group(0)  # mkdocs says that it is broken
        inside = _place(path)
        if inside is None:
            return text
        return f"[{text}]({posixpath.relpath(inside, here or '.')}{anchor})"

    return LINK_OR_CODE.sub(turned, markdown)


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
