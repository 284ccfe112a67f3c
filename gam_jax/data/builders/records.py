"""Prompts with completions, and conversations: what a record must hold, and how it is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sharding.errors import UserError

FIELDS = {"prompt": ("prompt", "completion"), "chat": ("messages", "tools")}
"""Format -> the fields of a record that are read."""
EXAMPLES = {
    "prompt": '{"prompt": "...", "completion": "..."}',
    "chat": '{"messages": [{"role": "user", "content": "..."}, ...]}',
}
"""Format -> how a record is written."""
ROLES = ("system", "developer", "user", "assistant", "tool")


def canonical(record: dict[str, Any], format: str, where: str) -> bytes:
    """A record as JSON in UTF-8, with the fields that are read alone, in one order.

    Args:
      record: an object of JSON without nulls.
      format: `prompt` or `chat`.
      where: it stands, for messages.

    Raises:
      UserError: a field is missing or holds something else; a role that is none; an empty
        completion or answer; a conversation without an answer.
    """
    needed = FIELDS[format][: 2 if format == "prompt" else 1]
    if missing := [name for name in needed if name not in record]:
        found = ", ".join(f'"{str(name)[:40]}"' for name in list(record)[:6]) or "none"
        other = "chat" if format == "prompt" else "prompt"
        mending = (
            f"set data.format={other}" if FIELDS[other][0] in record else "write lines such as"
        )
        shown = "" if mending.startswith("set") else f" {EXAMPLES[format]}"
        raise UserError(f'{where}: no field "{missing[0]}" (there are {found}): {mending}{shown}')
    kept = {name: record[name] for name in FIELDS[format] if name in record}
    if format == "prompt":
        _check_prompt(kept, where)
    else:
        _check_messages(kept["messages"], where)
    return json.dumps(kept, ensure_ascii=False).encode()


def mend(names: Iterable[str]) -> str:
    """What reads a record with these fields as more than a text."""
    if "messages" in names:
        return "set data.format=chat"
    if {"prompt", "completion"} <= set(names):
        return "set data.format=prompt"
    return f"write lines such as {EXAMPLES['chat']} and set data.format=chat"


def _check_prompt(record: dict[str, Any], where: str) -> None:
    for name, value in record.items():
        if isinstance(value, list):
            raise UserError(
                f'{where}: "{name}" is a list: write the whole conversation as "messages" and set '
                f"data.format=chat"
            )
        if not isinstance(value, str):
            raise UserError(f'{where}: "{name}" holds no text: write {EXAMPLES["prompt"]}')
    if not record["completion"].strip():
        raise UserError(f"{where}: an empty completion, so nothing counts: leave the line out")


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where}: "messages" is no list of messages: write {EXAMPLES["chat"]}')
    for number, message in enumerate(messages, start=1):
        _check_message(message, f"{where}, message {number}")
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{where}: no message of the assistant, so nothing counts: leave it out")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or "role" not in message:
        raise UserError(f'{where}: no object with a "role": write {EXAMPLES["chat"]}')
    role = message["role"]
    if role not in ROLES:
        raise UserError(f"{where}: role {str(role)[:40]!r}: use one of {', '.join(ROLES)}")
    calls = role == "assistant" and bool(message.get("tool_calls"))
    content = message.get("content", "" if calls else None)
    if not isinstance(content, str):
        raise UserError(f'{where}: "content" holds no text: write {EXAMPLES["chat"]}')
    if role == "assistant" and not content.strip() and not calls:
        raise UserError(f"{where}: an empty answer: leave the conversation out, or fill it")
