"""HTML and SVG as text in which everything is escaped that was not made here."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into HTML."""


def joined(parts: tuple[object, ...] | list[object], between: str = "") -> Markup:
    """The parts one after another, escaped where they are not Markup."""
    return Markup(between.join(p if isinstance(p, Markup) else html.escape(str(p)) for p in parts))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """`<name attributes>content</name>`.

    An attribute is written with "-" for "_", and without a last "_" (class_); None leaves it out.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown}>{joined(content)}</{name}>")
