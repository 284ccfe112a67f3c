"""Formulas: `$...$` in a line and `$$...$$` on their own become MathML as the site is built.

Browsers show MathML by themselves, so a page needs no script and no font for it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

LOG = logging.getLogger("mkdocs.hooks.formulas")
BLOCK = r"(?<![\\$])\$\$(?!\$)\s*(.+?)\s*\$\$"
INLINE = r"(?<![\\$\w])\$(?![\s$])([^$\n]+?)(?<![\s\\])\$(?![\w$])"
AFTER_CODE = 185
"""Of Python-Markdown's priorities: code is taken out at 190, backslashes are read at 180."""


class Formulas(Extension):
    """Reads formulas before any other mark of Markdown; code is left as it is."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Adds both patterns."""
        for name, pattern, display in (("block", BLOCK, "block"), ("inline", INLINE, "inline")):
            processor = _Formula(pattern, md, display)
            md.inlinePatterns.register(processor, f"formula-{name}", AFTER_CODE + (name == "block"))


class _Formula(InlineProcessor):
    def __init__(self, pattern: str, md: Markdown, display: str) -> None:
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # type: ignore[override]
        found = mathml(m.group(1), self.display)
        return self.md.htmlStash.store(found), m.start(0), m.end(0)


def mathml(source: str, display: str) -> str:
    """A formula in LaTeX as MathML; a warning, which a strict build counts, if it cannot be read.

    Args:
      source: what stands between the dollar signs.
      display: "inline" or "block". A block can be scrolled sideways where it is too wide.
    """
    try:
        found = convert(source, display=display)
    except Exception as error:  # latex2mathml raises many kinds, with a common base in none
        LOG.warning("the formula '%s' cannot be read (%s)", source, type(error).__name__)
        return f"<code>{source}</code>"
    if "\\" in found or ">&<" in found:
        LOG.warning("the formula '%s' has a command that latex2mathml does not know", source)
    if "\\operatorname" in source:  # GitHub, which shows the same pages, refuses it
        LOG.warning("the formula '%s': write mathrm in the place of operatorname", source)
    return f'<span class="formula">{found}</span>' if display == "block" else found
