"""What can be wrong with a checkpoint, or with saving one."""

from __future__ import annotations

from sharding.errors import UserError


class Damaged(UserError):
    """A checkpoint that is not as it was written.

    Attributes:
      where: which one.
      reason: what is wrong with it.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"{where} is damaged ({reason}): train on from the newest whole one with "
            f"--resume=latest-good"
        )
        self.where, self.reason = where, reason


class NotFinite(UserError):
    """A state that is not saved, since it holds numbers that are not finite.

    Attributes:
      name: of the first array that does.
    """

    def __init__(self, step: int, name: str) -> None:
        super().__init__(f"step {step} is not saved: '{name}' is not finite")
        self.name = name


class CannotSave(UserError):
    """A save that failed; earlier checkpoints are as they were."""


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else repr(error)
