"""The one exception for input that a person can mend."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and how to mend it.

    Commands print the message alone and exit with code 2.
    """


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Says before the message of a UserError where it was raised, such as a run's checkpoint."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
