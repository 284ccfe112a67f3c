"""Ends a launcher's processes if the launcher itself is gone, however it ended.

No handler runs after signal 9. So a shell of a session of its own reads, from a pipe that the
launcher holds open, which processes there are. The pipe's end without the word `done` means that
nobody watches them any more.
"""

from __future__ import annotations

import contextlib
import subprocess

SCRIPT = """
groups=
while read -r word; do
  [ "$word" = done ] && exit 0
  groups="$groups -$word"
done
[ -n "$groups" ] || exit 0
left() { for group in $groups; do kill -s 0 -- "$group" && return 0; done; return 1; }
kill -s TERM -- $groups
for _ in $(seq "$1"); do left || exit 0; sleep 1; done
kill -s KILL -- $groups
"""
"""Asks the groups of processes to end, and kills what is left after $1 seconds."""


class Guard:
    """While open, the processes that it was told of do not outlive this one for long.

    Args:
      grace: seconds between asking to end and killing.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace

    def __enter__(self) -> Guard:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "guard", str(round(self._grace))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # what ends the launcher must not end it
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._say("done")
        with contextlib.suppress(OSError):
            self._shell.communicate()

    def watch(self, group: int) -> None:
        """A process that leads a group of its own, with all that it starts."""
        self._say(str(group))

    def _say(self, word: str) -> None:
        if self._shell.stdin is not None:
            with contextlib.suppress(OSError):  # somebody has ended the shell
                self._shell.stdin.write(f"{word}\n")
                self._shell.stdin.flush()
