"""The one exception for input that a person can mend."""


class UserError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and how to mend it.

    Commands print the message alone and exit with code 2.
    """
