"""How every command starts and fails: one clear line and exit code 2 for bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from sharding.errors import UserError

BAD_INPUT = 2


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> NoReturn:
    """Defines and parses the flags, then runs `main`; never shows a trace for bad input."""
    try:
        define_flags()
    except UserError as error:
        fail(str(error))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(f"config: {_one_line(error)}")  # ml_collections reads the overrides here
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def fail(message: str) -> NoReturn:
    """Prints one line on standard error and exits with the code of bad input."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            _ = flags.FLAGS["config"].value.to_dict()  # a file that cannot be read says so here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_one_line(error))
    if len(rest) > 1:
        fail(f"unexpected argument '{rest[1]}'; see --help")
    return rest


def _guarded(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        fail(_one_line(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left


def _one_line(error: BaseException) -> str:
    message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(message).replace("\\n", " ").split())
