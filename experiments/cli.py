"""How every command starts and fails: one clear line and exit code 2 for bad input.

A fault of the program itself is one line too, with code 70, and a file with the trace.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from experiments.usage import ENUM, usage
from sharding import processes
from sharding.errors import UserError, one_line
from sharding.fault import shortage, tell_fault
from sharding.freed_memory import keep_freed
from sharding.paths import check_local, local_path

BAD_INPUT = 2
READERS = re.compile(r"(\w+(?:, \w+)*)(?: --(\w+))?: ")
"""How the help of a flag begins that some words of a command read, and others do not."""
HELP = ("help", "h", "helpshort", "?")
MAX_SEED = 2**32 - 2
"""The largest seed, see `sharding.bounds.Seed`."""


def run(
    main: Callable[..., None],
    define_flags: Callable[[], None],
    choices: Sequence[str] = (),
    takes_command: bool = False,
    takes: str = "",
    files: Mapping[str, int] | None = None,
    otherwise: str = "",
) -> NoReturn:
    """Defines and parses the flags, then runs `main`; never shows a trace for bad input.

    With `choices`, the command takes one word of them, which is given to `main`, and after it as
    many files as `files` says; it is `otherwise` where none is given. A flag whose help begins with
    such words, as "law, stages: widths.", is read by these alone, and one of "serve --url: ..."
    beside that flag alone: others are refused. With `takes_command`, all that follows `--` is given
    to it. With `takes`, which says what they are, any number of words,
    but at least one.
    """
    keep_freed()
    before = set(flags.FLAGS)
    try:
        define_flags()
    except Exception as error:  # ml_collections runs the config file and reads overrides here
        fail(f"config: {_one_line(error)}")
    takes = takes or ("the command to run after --" if takes_command else "")
    new = set(flags.FLAGS) - before
    own = [flags.FLAGS[name] for name in new if "." not in name]  # overrides are of --config
    description = sys.modules[main.__module__].__doc__ or ""
    parse = functools.partial(
        _parse,
        own=own,
        choices=choices,
        takes=takes,
        files=files,
        paths=not takes_command,
        otherwise=otherwise,
    )

    def parser(argv: list[str]) -> list[str]:
        argv = normalised(argv)
        if any(_name(argv[place]) in HELP for place in _places(argv)):
            _guarded(lambda: print(usage(description, own), flush=True))
            sys.exit(0)
        return parse(argv)

    app.run(lambda rest: _guarded(lambda: main(*rest[1:])), flags_parser=parser)


def define_path(name: str, default: str | None, help_text: str) -> None:
    """A flag that names a local file or folder; ~ is read as the person's folder.

    An address such as gs://bucket is refused when the command line is read.
    """
    flags.DEFINE(_Path(), name, default, help_text)


class _Path(flags.ArgumentParser):
    syntactic_help = "a local path"

    def parse(self, argument: Any) -> str:
        """The path as text."""
        return argument and str(local_path(argument))

    def flag_type(self) -> str:
        """Its name in --help."""
        return "path"


def normalised(argv: Sequence[str]) -> list[str]:
    """The command line with the flags' names as they are defined: --top-p becomes --top_p.

    Values stay as they are, and so do dotted names and all that follows `--`.
    """
    argv = list(argv)
    for place in _places(argv):
        word, name = argv[place], _name(argv[place])
        if "." not in name and (meant := name.replace("-", "_")) != name:
            argv[place] = word.replace(name, meant, 1)
    return argv


def _places(argv: Sequence[str]) -> Iterator[int]:
    """Where the words are that name flags."""
    value = False
    for place, word in enumerate(argv[1:], 1):
        if value or len(word) < 2 or not word.startswith("-"):
            value = False
            continue
        if word == "--":
            return
        yield place
        name = _name(word).replace("-", "_")
        value = "=" not in word and name in flags.FLAGS and not flags.FLAGS[name].boolean


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0]


def seeds_of(given: Sequence[str]) -> list[int]:
    """The numbers of --seeds, each once; a UserError where they are none."""
    bad = [seed for seed in given if not (seed.isdecimal() and int(seed[:12]) <= MAX_SEED)]
    if bad or not given:
        but = f", not '{bad[0]}'" if bad else ""
        shown = ",".join(given)
        raise UserError(f"--seeds={shown}: give whole numbers, none below 0, as 0,1,2{but}")
    return list(dict.fromkeys(map(int, given)))


def fail(message: str) -> NoReturn:
    """Prints one line on standard error and exits with the code of bad input."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _parse(
    argv: list[str],
    own: Sequence[Any],
    choices: Sequence[str],
    takes: str,
    files: Mapping[str, int] | None,
    paths: bool,
    otherwise: str,
) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if otherwise and len(rest) == 1:
            rest.append(otherwise)
        _check_finite()
        if "config" in flags.FLAGS:
            file: Any = flags.FLAGS["config"].value
            if not isinstance(file, str):
                file.to_dict()  # a file that cannot be read says so here
    except Exception as error:  # a config file may raise anything
        fail(_one_line(error))
    if choices and (len(rest) < 2 or rest[1] not in choices):
        fail(f"say one of {', '.join(choices)}; see --help")
    if choices:
        _check_read(own, rest[1], choices)
    wanted = (files or {}).get(rest[1], 0) if choices else 0
    if choices and len(rest) != 2 + wanted:
        fail(f"{rest[1]} takes {wanted or 'no'} file{'' if wanted == 1 else 's'}; see --help")
    if takes and len(rest) == 1:
        fail(f"give {takes}; see --help")
    if not choices and not takes and len(rest) > 1:
        fail(f"unexpected argument '{rest[1]}'; see --help")
    if wanted or paths:
        _check_paths(rest[1:])
    return rest


def _check_read(own: Sequence[Any], word: str, choices: Sequence[str]) -> None:
    """Refuses a flag that is given and that this word does not read, see `run`."""
    for flag in own:
        found = READERS.match(ENUM.sub("", flag.help))
        words = found[1].split(", ") if found else []
        if not flag.present or found is None or not set(words) <= set(choices):
            continue
        if word not in words:
            fail(f"--{flag.name} is for {' and '.join(words)}: {word} does not read it")
        if found[2] and not flags.FLAGS[found[2]].value:
            fail(f"--{flag.name} is read beside --{found[2]} alone: give that too")


def _check_paths(words: Sequence[str]) -> None:
    try:
        for word in words:
            check_local(word)
    except UserError as error:
        fail(str(error))


def _check_finite() -> None:
    """Flags have bounds of their own, but NaN is inside all of them, and infinity inside some."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"--{name}={number}: give a finite number")


def _guarded(main: Callable[[], None]) -> None:
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells of every file, and of a failed one in whole traces; what matters is raised.
        logging.set_verbosity(logging.FATAL)
    try:
        main()
        _flush()
    except UserError as error:
        fail(_one_line(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left
    except Exception as error:
        if line := shortage(error):
            fail(line)
        if (line := processes.lost_another(error)) is None:
            sys.exit(tell_fault(error))
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)


def _flush() -> None:
    """Writes what was printed, here where a failure can still be told."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is tried again at exit
        error.filename = "standard output"
        raise


def _one_line(error: BaseException) -> str:
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if message.startswith("Error whilst parsing config file"):  # then comes a whole trace
        message = message.strip().splitlines()[-1]
    return " ".join(message.replace("\\n", " ").replace("\\'", "'").split())
