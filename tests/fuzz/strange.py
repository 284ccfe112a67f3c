"""What a person or a damaged disk may put where a value is expected, and where to put it."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

SIZES = (0, 1, 2, 3, 7, 64, 10**6, 2**31 - 1, 2**31, 2**53 + 1, 2**64, 10**18, 10**30, 10**400)
NUMBERS = (0.5, 1.0, 1e-320, 1e30, 1e300, float("nan"), float("inf"), float("-inf"), -0.0)
TEXTS = (
    "", " ", "-", "--", "x", "\n", "a\nb", "\0", "\x1b[2J", "\ufeff", "\u2028", "\u202e", "é" * 130,
    "x" * 300, "y" * 5000, "9" * 5000, "1e999", "nan", "-1", "1,2", "(1, 2)", "[", "{", "None",
    "True", "../x", "..", ".", "/dev/full", "/dev/null/x", "gs://bucket/x", "~nobody/x", "*",
    "bytes", "bpe:0", "bpe:99999999999", "text:", "text:good.txt", "tfds:", "=", "%s", "{0}",
    "\ud800", "\udcff",
)  # fmt: skip
DEEP = 80
"""More than `sharding.json_file.MAX_DEPTH`."""

integers = st.sampled_from([*SIZES, *(-size for size in SIZES if size)]) | st.integers()
floats = st.sampled_from(NUMBERS) | st.floats()
_SIGNS = st.characters(exclude_characters="/")  # no path that leads out of the folder
texts = st.sampled_from(TEXTS) | st.text(_SIGNS, max_size=12)
plain = st.none() | st.booleans() | integers | floats | texts
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def _deep(kind: Any) -> Any:
    value: Any = 1
    for _ in range(DEEP):
        value = [value] if kind is list else {"a": value}
    return value


values = plain | plain | nested | st.sampled_from([list, dict]).map(_deep)
"""Any value of JSON, and those numbers that Python alone writes."""

words = (
    texts.map(lambda text: text.replace("\0", "").replace("\ud800", "?"))
    | (integers | floats | st.booleans()).map(lambda value: ascii(value)[:5000])
    | (nested.map(lambda value: ascii(value)[:5000]))
)
"""What may be typed after the = of a flag: no character 0, at which the system cuts."""


def like(value: Any) -> st.SearchStrategy[Any]:
    """Any value, but mostly of this one's type: what is of another is soon refused."""
    own: st.SearchStrategy[Any] = {
        bool: st.booleans(), int: integers, float: floats, str: texts,
        list: st.lists(plain, max_size=5), tuple: st.lists(plain, max_size=5),
    }.get(type(value), plain)  # fmt: skip
    return st.one_of(own, own, values)


def words_like(value: Any) -> st.SearchStrategy[str]:
    """As `words`, but mostly of a value's type."""
    typed = like(value).map(lambda one: one if isinstance(one, str) else ascii(one))
    cut = typed.map(lambda word: word[:5000].replace("\0", "").replace("\ud800", "?"))
    return st.one_of(cut, cut, words)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values within a value of JSON, but for itself."""
    if not isinstance(value, dict | list):
        return []
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in inside:
        found += [(*path, key), *places(one, (*path, key))]
    return found


@st.composite
def mutated(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """The value with a few of its parts replaced, removed, renamed, swapped or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        paths = places(value)
        if not paths:
            return draw(values)
        *around, last = draw(st.sampled_from(paths))
        holder = value
        for key in around:
            holder = holder[key]
        how = draw(st.sampled_from(["replace"] * 5 + ["remove", "rename", "swap", "grow"]))
        if how == "replace":
            holder[last] = draw(like(holder[last]))
        elif how == "remove":
            del holder[last]
        elif how == "swap":
            inner: Any = value
            for key in draw(st.sampled_from(paths)):
                inner = inner[key]
            holder[last] = copy.deepcopy(inner)
        elif isinstance(holder, list):
            holder.insert(draw(st.integers(0, len(holder))), draw(values))
        elif how == "rename":
            holder[draw(texts)] = holder.pop(last)
        else:
            holder[draw(texts)] = draw(values)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few cut out, put in or changed."""
    for _ in range(draw(st.integers(1, 3))):
        place, length = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 1, 4, 10**6]))
        put = draw(st.binary(max_size=4) | st.sampled_from([b"\0" * 64, b"[" * 10**5, b"9" * 5000]))
        content = content[:place] + put + content[place + length :]
    return content


def as_json(value: Any) -> bytes:
    """The text of a value; half a surrogate pair stays an escape."""
    return json.dumps(value).encode()


def files(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file that should hold this value, and does not quite."""
    good = as_json(value)
    return st.one_of(*[mutated(value).map(as_json)] * 4, values.map(as_json), damaged(good))


@st.composite
def lines(draw: st.DrawFn, rows: list[Any]) -> bytes:
    """A file of lines of JSON, some of which are not what they should be."""
    found = []
    for row in rows:
        good = as_json(row) + b"\n"
        found.append(draw(st.just(good) | files(row).map(lambda bad: bad + b"\n")))
    return b"".join(found)
