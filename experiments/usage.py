"""What --help prints: the command's description, and each of its flags."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

COLUMNS = 80
INDENT = 26
"""Where the help of a flag begins."""
ENUM = re.compile("^<[^>]*>: ")
"""What absl writes before the help of a choice."""
KINDS = {
    "int": "=N",
    "float": "=X",
    "string": "=TEXT",
    "comma separated list of strings": "=A,B,...",
    "config object": "=NAME",
}
FOOT = "A name may be written with - or with _: --top-p and --top_p are one flag."


def usage(description: str, flags: Iterable[Any]) -> str:
    """The whole help, at most 80 columns wide.

    Args:
      description: a docstring. Lines that are indented stay as they are.
      flags: of absl.
    """
    paragraphs = [_paragraph(text) for text in inspect.cleandoc(description).split("\n\n")]
    listed = "\n".join(map(_flag, sorted(flags, key=lambda flag: flag.name)))
    return "\n\n".join([*paragraphs, f"Flags:\n{listed}", FOOT])


def _paragraph(text: str) -> str:
    if any(line.startswith(" ") for line in text.splitlines()):
        return text
    return textwrap.fill(text, COLUMNS)


def _flag(flag: Any) -> str:
    name = f"  {_named(flag)}"
    said = ENUM.sub("", " ".join(flag.help.split())) + _default(flag)
    said = " ".join(_breakable(word) for word in said.split())
    lines = textwrap.wrap(said, COLUMNS - INDENT, break_long_words=False)
    if len(name) <= INDENT - 2:
        name = name.ljust(INDENT) + lines.pop(0)
    return "\n".join([name, *(" " * INDENT + line for line in lines)])


def _breakable(word: str) -> str:
    """A word, or a list that is too long for a line with room between its items."""
    return word if len(word) <= COLUMNS - INDENT else word.replace(",", ", ")


def _named(flag: Any) -> str:
    kind = flag.flag_type()
    if kind == "bool":
        return f"--[no]{flag.name}"
    if choices := getattr(flag.parser, "enum_values", None):
        return f"--{flag.name}={'|'.join(choices)}"
    return f"--{flag.name}" + KINDS.get(kind, f"[={kind.upper()}]")


def _default(flag: Any) -> str:
    if flag.default_as_str is None or flag.default in (None, False, "", []):
        return ""
    return f" Default: {flag.default_as_str.strip(chr(39))}."
