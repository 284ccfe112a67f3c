"""The prompts that a command is given: one by --prompt, or a file of them."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

from sharding.errors import UserError
from sharding.json_file import MAX_BYTES, BadJson, parse_json

STANDARD_INPUT = "-"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to go on with.

    Attributes:
      text: as it was given.
      where: it was given, for messages.
    """

    text: str
    where: str


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file, one a line: as they stand, or in JSON as {"prompt": ...}.

    The lines are JSON if the first is an object of JSON with a field `prompt`, or the file's name
    ends in .jsonl. Other fields are left.

    Args:
      path: of the file; "-" is standard input.

    Raises:
      UserError: a file that cannot be read or is no UTF-8; no lines; a line that is empty, or is
        not JSON as the first one is, by its number.
    """
    name = "standard input" if path == STANDARD_INPUT else path
    lines = _content(path, name).split("\n")
    lines = lines[:-1] if not lines[-1] else lines
    if not lines:
        raise UserError(f"{name} holds no prompt: give one a line")
    in_json = path.endswith(".jsonl") or _is_record(lines[0])
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{name}, line {number}"
        text = _of_record(line, where) if in_json else line.removesuffix("\r")
        if not text:
            raise UserError(f"{where} is an empty prompt: give at least one character")
        found.append(Prompt(text, where))
    return found


def _content(path: str, name: str) -> str:
    try:
        if path == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with pathlib.Path(path).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{name} is larger than {MAX_BYTES:,} bytes: give it in parts")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"cannot read the prompts of {name}: {reason}; mend it") from error


def _is_record(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and "prompt" in parse_json(line, "")
    except BadJson:
        return False


def _of_record(line: str, where: str) -> str:
    record = parse_json(line, where, mend='write it as {"prompt": "..."}')
    if not isinstance(record.get("prompt"), str):
        raise UserError(f'{where} has no text named prompt: write it as {{"prompt": "..."}}')
    return record["prompt"]
