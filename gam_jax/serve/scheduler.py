"""Who is next: texts that wait for a row, and prompts that are read a few blocks a turn."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """A queue: first come, first served within a user, and turns between users."""

    def __init__(self) -> None:
        self._queues: dict[str, collections.deque[Item]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Item]:
        for queue in self._queues.values():
            yield from queue

    def push(self, user: str, item: Item) -> None:
        """Puts an item behind those of its user; a user without items behind the other users."""
        self._queues.setdefault(user, collections.deque()).append(item)

    def pop(self) -> Item:
        """Takes out the next one.

        Raises:
          StopIteration: there is none.
        """
        user = next(iter(self._queues))
        queue = self._queues.pop(user)
        item = queue.popleft()
        if queue:
            self._queues[user] = queue
        return item

    def remove(self, which: Callable[[Item], bool]) -> list[Item]:
        """Takes out all of which that holds, and returns them."""
        gone = [item for item in self if which(item)]
        for user, queue in list(self._queues.items()):
            left = collections.deque(item for item in queue if not which(item))
            if left:
                self._queues[user] = left
            else:
                del self._queues[user]
        return gone


def block_of(unread: int, widths: Sequence[int], border: int = 0) -> int:
    """The next block of a text: the widest that leaves its last token, which a step feeds.

    Args:
      unread: tokens of the text that are not read, at least 2.
      widths: falling to 1.
      border: tokens to a place that no block may go over; 0 for none.
    """
    most = min(unread - 1, border) if border else unread - 1
    return next(width for width in widths if width <= most)


def gathered(
    dealt: Sequence[tuple[int, int]], room: Callable[[int], int]
) -> list[tuple[int, list[int]]]:
    """Blocks of as many tokens of several texts, which are read at once.

    Args:
      dealt: see `deal`.
      room: the most texts whose blocks of so many tokens are read at once.

    Returns:
      Width, and the numbers of the texts, in the order in which they are read: the blocks of each
      text in their own order, no text twice in one.
    """
    found: list[tuple[int, list[int]]] = []
    after: dict[int, int] = {}  # of each text: where its next block may be
    for text, width in dealt:
        place = next(
            (
                place
                for place in range(after.get(text, 0), len(found))
                if found[place][0] == width and len(found[place][1]) < room(width)
            ),
            len(found),
        )
        if place == len(found):
            found.append((width, []))
        found[place][1].append(text)
        after[text] = place + 1
    return found


def deal(
    unread: Sequence[int], widths: Sequence[int], borders: Sequence[int], budget: int
) -> list[tuple[int, int]]:
    """The blocks of prompts that are read in one turn.

    Each text takes a block in turn, as long as the tokens of all together are within the budget.
    What a text is read in depends on itself alone, never on the others.

    Args:
      unread: of each text, the one that has waited longest first.
      widths: of blocks, falling to 1.
      borders: of each text, see `block_of`.
      budget: tokens, at least the first width.

    Returns:
      Number of a text and width of its block, in the order in which they are read.
    """
    left = dict(enumerate(zip(unread, borders, strict=True)))
    dealt: list[tuple[int, int]] = []
    while left:
        for text, (count, border) in list(left.items()):
            width = block_of(count, widths, border) if count > 1 else 0
            if not 0 < width <= budget:
                del left[text]
                continue
            budget -= width
            dealt.append((text, width))
            left[text] = count - width, max(border - width, 0)
    return dealt
