"""Command lines: every flag of every command, found where the command declares it."""

from __future__ import annotations

import functools
import importlib
import runpy
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain  # noqa: F401, it defines flags of its own, which stay
import pytest
from absl import flags
from hypothesis import strategies as st

from experiments import cli
from experiments.command import COMMANDS
from experiments.config_flags import config_names
from experiments.papers import STUDIES
from gam_jax.config import flatten
from sharding.checkpoint.__main__ import _parser
from tests.fuzz import strange
from tests.fuzz.case import Case, command
from tests.fuzz.shop import Shop


class Declared(NamedTuple):
    """A command line as a command declares it.

    Attributes:
      flags: name -> the values that are among its choices, if any.
      first: words of which it takes one.
      files: how many more words each of them takes.
      words: whether it takes any number of others.
      command: whether a command comes after --.
    """

    flags: dict[str, tuple[str, ...]]
    first: tuple[str, ...] = ()
    files: Mapping[str, int] = {}
    words: bool = False
    command: bool = False


@functools.cache
def declared(name: str) -> Declared:
    """What a command of `COMMANDS` declares."""
    module = COMMANDS[name].module
    if not module.startswith("experiments."):
        return _of_parser()
    seen: dict[str, Any] = {}

    def run(main: Any, define_flags: Any, **words: Any) -> None:
        before = set(flags.FLAGS)
        define_flags()
        for flag in set(flags.FLAGS) - before:
            kind = flags.FLAGS[flag].parser
            seen[flag] = tuple(getattr(kind, "enum_values", ()) or ())
            delattr(flags.FLAGS, flag)
        seen[""] = words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "run", run)
        patch.setattr(sys, "argv", [name])
        runpy.run_module(module, run_name="__main__")
    words = seen.pop("")
    return Declared(
        dict(sorted(seen.items())),
        tuple(words.get("choices", ())),
        dict(words.get("files") or {}),
        bool(words.get("takes")),
        bool(words.get("takes_command")),
    )


def _of_parser() -> Declared:
    (commands,) = [a for a in _parser()._actions if a.choices and not a.option_strings]
    found: dict[str, tuple[str, ...]] = {}
    files = {}
    for name, parser in commands.choices.items():  # type: ignore[union-attr]
        options = [action for action in parser._actions if action.option_strings]
        found |= {one.option_strings[-1].lstrip("-"): () for one in options}
        files[name] = len(parser._actions) - len(options)
    return Declared(found, tuple(files), files)


SMALL = (
    "data.name=text:good.txt", "data.dir=data", "data.tokenizer=bytes", "data.window=32",
    "train.steps=9",
)  # fmt: skip
GOOD = {
    "train": ("--run=new", *(f"--config.{one}" for one in SMALL)),
    "audit": ("--nocompile", *(f"--config.{one}" for one in SMALL)),
    "evaluate": ("--run=run",),
    "sample": ("--run=run", "--tokens=2"),
    "convert": ("--run=run", "--to_hf=out"),
}
"""What lets a command come far. Without it, it is tried all the same."""
WORDS = ("run", "run@120", "run@best", "figures.json", "good.txt", "words", "new", *STUDIES)


@st.composite
def other_flags(draw: st.DrawFn, shop: Shop) -> Case:
    """Any command with any flags of its own, and words that it does or does not take."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    own = declared(name)
    given = []
    for _ in range(draw(st.integers(0, 3))):
        flag = draw(st.sampled_from([*sorted(own.flags) * 3, "nothing"]))
        known = [strange.words, strange.words]
        if choices := own.flags.get(flag):
            known.append(st.sampled_from(choices))
        value = draw(st.one_of(*known) | st.sampled_from(WORDS) | st.integers(0, 40).map(str))
        given.append(
            draw(st.sampled_from([f"--{flag}={value}"] * 6 + [f"--{flag}", f"--no{flag}"]))
        )
    line = [*_good(name, own), *given]
    if "--config.train.steps=9" in line and draw(st.booleans()):
        line = [*draw(_overrides()), *line]
    some = st.sampled_from(WORDS) | strange.words
    first = [draw(st.sampled_from(own.first))] if own.first and draw(st.integers(0, 9)) else []
    rest = [draw(some) for _ in range(own.files.get(first[0], 0) if first else own.words)]
    rest += [draw(some)] * (draw(st.integers(0, 14)) == 0)
    if name == "checkpoint":
        line = [*first, *rest, *line]
    elif own.command:
        line += ["--", *rest, *[draw(some)] * draw(st.integers(0, 1))]
    else:
        line += [*first, *rest]
    return command(name, *line)


def _good(name: str, own: Declared) -> tuple[str, ...]:
    if "seeds" in own.flags:  # a study
        return ("--data=text:good.txt", "--data_dir=data", "--out=out")
    return GOOD.get(name, ())


@functools.cache
def _fields(name: str) -> list[tuple[str, Any]]:
    """Every dotted field of a config file, with its value."""
    module = importlib.import_module(f"experiments.configs.{name}")
    return sorted(flatten(module.get_config().to_dict()).items())


@st.composite
def _overrides(draw: st.DrawFn) -> list[str]:
    """A config and one or two of its fields, or of another's."""
    name, other = draw(st.sampled_from(config_names())), draw(st.sampled_from(config_names()))
    found = [f"--config={name}"]
    for source in draw(st.sampled_from([[name], [name, name], [other]])):
        field, value = draw(st.sampled_from(_fields(source)))
        found.append(f"--config.{field}={draw(strange.words_like(value))}")
    return found


@st.composite
def flags_of_config(draw: st.DrawFn, shop: Shop) -> Case:
    """A run that is to begin with any field set to anything."""
    return command("train", *draw(_overrides()), *GOOD["train"])
