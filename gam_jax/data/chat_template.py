"""Conversations as text, by the chat template of a tokenizer, and which characters count.

What the assistant writes is between the template's own generation marks, where it has them. Where
it has none it is found by comparing renderings W(m) of messages, and W+(m) with the words that
invite the assistant (`add_generation_prompt`): message i is W(m_1..m_n) from the end of
W+(m_1..m_i-1) to the end of W(m_1..m_i), both of which must be beginnings of W(m_1..m_n). Blanks
after the mark that ends a message are what stands between messages, and do not count.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sharding.errors import UserError
from sharding.json_file import MAX_BYTES, BadJson, parse_json, read_json
from sharding.paths import local_path

JINJA, CONFIG = "chat_template.jinja", "tokenizer_config.json"
"""Files beside a tokenizer.json that hold its template; the first one has the last word."""
SPECIAL = re.compile("(bos|eos|unk|pad|sep|cls|mask)_token")
"""Names of special tokens that templates may use."""
ANSWERS = "put {% generation %} and {% endgeneration %} around what the assistant writes in it"

Messages = Sequence[dict[str, Any]]


class Marked(NamedTuple):
    """A text, and the characters of it that count.

    Attributes:
      text: the text.
      spans: (from, to) of what counts, in order.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template and what it may use.

    Attributes:
      source: in jinja.
      special: name -> text of special tokens, as `bos_token`.
      now: the day that it writes, in the ISO form; empty if it asks for none. It is kept with a
        run, which therefore goes on with the same tokens on another day.
      where: it was found, for messages.
    """

    source: str
    special: tuple[tuple[str, str], ...] = ()
    now: str = ""
    where: str = dataclasses.field(default=CONFIG, compare=False)

    @property
    def fingerprint(self) -> str:
        """Equal for templates that write the same."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()[:16]

    def to_text(self) -> str:
        """The JSON that `template_from_text` reads."""
        kept = {"template": self.source, "special_tokens": dict(self.special), "now": self.now}
        return json.dumps(kept, indent=1, sort_keys=True) + "\n"

    def written(self, messages: Messages, tools: Any, place: str) -> str:
        """A conversation as text.

        Args:
          messages: with a role and a content each.
          tools: what the assistant may call; None for nothing.
          place: of the conversation, for messages.

        Raises:
          UserError: the template refuses it, or cannot be run.
        """
        return _unmarked(self._render(messages, tools, place)).text

    def marked(self, messages: Messages, tools: Any, place: str) -> Marked:
        """The same, with what the assistant writes.

        Raises:
          UserError: as `written`; or the template cannot be split at its messages.
        """
        if re.search(r"{%[-+]?\s*generation\b", self.source) is None:
            return self._by_prefix(messages, tools, place)
        found = _unmarked(self._render(messages, tools, place))
        if not any(end > start for start, end in found.spans):
            raise UserError(
                f"{place}: {self.where} has generation marks and puts nothing between them: "
                f"{ANSWERS}"
            )
        return found

    def _by_prefix(self, messages: Messages, tools: Any, place: str) -> Marked:
        whole = self._render(messages, tools, place)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                spans.append(self._span(whole, messages, number, tools, place))
        return Marked(whole, tuple(spans))

    def _span(
        self, whole: str, messages: Messages, number: int, tools: Any, place: str
    ) -> tuple[int, int]:
        """Where the assistant's message of this number stands in the whole."""
        cannot = functools.partial(self._cannot_split, place, number + 1)
        try:
            bare = self._render(messages[:number], tools, place)
            before = self._render(messages[:number], tools, place, invite=True)
            until = self._render(messages[: number + 1], tools, place)
        except UserError as error:
            raise cannot("cannot write the messages before it alone") from error
        if not whole.startswith(before):
            raise cannot("invites the assistant with other words than it then writes")
        if not whole.startswith(until) or len(until) < len(before):
            raise cannot("writes it otherwise where it is the last")
        content = (messages[number].get("content") or "").strip()
        answer = until[len(before) :]
        if bare == before and not answer.lstrip().startswith(content):
            raise cannot("does not say where the answer begins (it has no generation prompt)")
        unblank = answer.rstrip()
        ends_unmarked = not unblank or (content and unblank.endswith(content))
        return len(before), len(before) + len(answer if ends_unmarked else unblank)

    def _cannot_split(self, place: str, number: int, why: str) -> UserError:
        return UserError(
            f"{place}, message {number}: the chat template {self.where} {why}, so that what counts "
            f"cannot be found: {ANSWERS}, or set data.loss=all"
        )

    def _render(self, messages: Messages, tools: Any, place: str, invite: bool = False) -> str:
        template = self._template
        try:
            return template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=invite,
                **dict(self.special),
            )
        except Exception as error:  # a template may do anything that its sandbox lets it
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"{place}: the chat template {self.where} refuses it ({reason}): mend the "
                f"conversation, or name another by data.template"
            ) from error

    @functools.cached_property
    def _template(self) -> Any:
        try:
            from gam_jax.data.jinja_engine import compile_template
        except ImportError as error:
            raise UserError("data.format=chat needs jinja2: pip install 'gam_jax[chat]'") from error
        try:
            return compile_template(self.source, self.now)
        except Exception as error:
            line = getattr(error, "lineno", None)
            at = f", line {line} of it" if line else ""
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.where}{at} is no chat template: {reason}; mend it") from error


def _unmarked(text: str) -> Marked:
    """A rendering without the marks in it, and what stood between them."""
    from gam_jax.data.jinja_engine import CLOSE, OPEN

    parts = re.split(f"([{OPEN}{CLOSE}])", text)
    plain, begins, spans, place = [], [], [], 0
    for part in parts:
        if part == OPEN:
            begins.append(place)
        elif part == CLOSE:
            start = begins.pop()
            if not begins:  # the outermost
                spans.append((start, place))
        else:
            plain.append(part)
            place += len(part)
    return Marked("".join(plain), tuple(spans))


def find_template(tokenizer: str, template: str = "") -> ChatTemplate:
    """The chat template of a tokenizer.

    Args:
      tokenizer: `bytes`, `bpe:VOCAB`, or the path of a tokenizer.json or of its folder.
      template: a file with a template to use in place of the one beside the tokenizer.

    Raises:
      UserError: there is none, or a file cannot be read.
    """
    of_file = tokenizer != "bytes" and not tokenizer.startswith("bpe:")
    path = local_path(tokenizer) if of_file else None
    folder = path if path is None or path.is_dir() else path.parent
    config = _read_config(folder / CONFIG) if folder else {}
    source, where = None, template
    if template:
        source = _read_source(local_path(template))
    elif folder and (folder / JINJA).is_file():
        source, where = _read_source(folder / JINJA), str(folder / JINJA)
    elif folder and "chat_template" in config:
        where = str(folder / CONFIG)
        source = _source_of(config["chat_template"], where)
    if source is None:
        raise UserError(
            f"data.tokenizer={tokenizer} has no chat template ({JINJA}, or chat_template in "
            f"{CONFIG} beside it): give a file with one by data.template"
        )
    now = datetime.date.today().isoformat()
    return ChatTemplate(source, _special(config), now if "strftime_now" in source else "", where)


def template_in(files: Mapping[str, bytes]) -> str | None:
    """The template among the files that stand beside a tokenizer.json; None for none.

    Args:
      files: what they hold, by name.

    Raises:
      UserError: no text, or no JSON.
    """
    if JINJA in files:
        return files[JINJA].decode("utf-8", "replace")
    config = parse_json(files.get(CONFIG, b"{}"), CONFIG)
    return _source_of(config["chat_template"], CONFIG) if "chat_template" in config else None


def _source_of(value: Any, where: str) -> str:
    """The template of a configuration: a text, or of several by name the one called default."""
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict)]
        value = next((v.get("template") for v in named if v.get("name") == "default"), None)
    if not isinstance(value, str):
        raise UserError(f"{where}: chat_template is no text, and no list with one named default")
    return value


def _special(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if SPECIAL.fullmatch(name) and isinstance(text, str):
            found[name] = text
    return tuple(sorted(found.items()))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _read_source(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise OSError(0, f"larger than {MAX_BYTES:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"cannot read the chat template {path}: {reason}; mend it") from error


def template_from_text(content: str, where: str) -> ChatTemplate:
    """A template from the JSON that a run folder keeps.

    Raises:
      UserError: it is no such JSON.
    """
    kept = parse_json(content, where)
    special, source, now = (kept.get(n) for n in ("special_tokens", "template", "now"))
    if not (isinstance(special, dict) and isinstance(source, str) and isinstance(now, str)):
        raise BadJson(where, "holds no chat template")
    return ChatTemplate(source, _special(special), now, where)
