"""The one exception for input that a person can mend."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

BEGINNING, END = 700, 250
"""Signs of a message that are kept where it is longer than both: what is wrong, and the mend."""


class UserError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and how to mend it.

    Commands print the message alone and exit with code 2. Whatever a message quotes, it stays one
    line that can be printed and read, see `one_line`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """A message without line ends or signs that a terminal would obey, cut if long."""
    text = re.sub(r"[ \t]*[\n\r\t\v\f]\s*", " ", message.strip())
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return text if len(text) <= BEGINNING + END else f"{text[:BEGINNING]} ... {text[-END:]}"


def unknown(word: str, valid: Iterable[str]) -> str:
    """What a message says of a word that is none of `valid`: the nearest one, or all of them."""
    near = difflib.get_close_matches(word, list(valid), n=1)
    return f"unknown '{word}'; " + (
        f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(valid)}"
    )


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Says before the message of a UserError where it was raised, such as a run's checkpoint."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
