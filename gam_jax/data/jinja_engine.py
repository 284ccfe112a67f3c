"""Chat templates in jinja2's sandbox, with what Hugging Face gives to them.

That is, as its documentation of chat templates says: blocks are trimmed (`trim_blocks`,
`lstrip_blocks`), loops know `break` and `continue`, `tojson` writes JSON as it is and not for HTML,
`raise_exception(message)` refuses a conversation, `strftime_now(format)` writes the time, and
`{% generation %} ... {% endgeneration %}` stands around what the assistant writes.

This module needs jinja2; `chat_template` imports it where a template is used.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Written where a generation block begins and ends: no characters, by the Unicode standard."""


class Generation(Extension):
    """The tag `generation`: its block between `OPEN` and `CLOSE`."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it from the class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's own nodes, with a mark on either side."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        first, last = (
            nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in (OPEN, CLOSE)
        )
        return [first, *body, last]


def compile_template(source: str, now: str) -> jinja2.Template:
    """A template that can be rendered.

    Args:
      source: of the template.
      now: the day that `strftime_now` writes, in the ISO form; empty where nothing asks for it.

    Raises:
      jinja2.TemplateError: it is no template.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json

    def strftime_now(format: str) -> str:
        return datetime.datetime.fromisoformat(now).strftime(format)

    environment.globals.update(raise_exception=_refuse, strftime_now=strftime_now)
    return environment.from_string(source)


def _refuse(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
