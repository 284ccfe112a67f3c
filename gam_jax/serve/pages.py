"""Pages of growing caches: which are free, and how many texts and snapshots hold the others."""

from __future__ import annotations

from collections.abc import Iterable


class Pages:
    """Pages counted by reference. Page 0 is nobody's, see `executor.Sizes`.

    Args:
      pages: how many there are, with page 0.
    """

    def __init__(self, pages: int) -> None:
        self._free = list(range(pages - 1, 0, -1))
        self._held: dict[int, int] = {}

    @property
    def free(self) -> int:
        """How many nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many somebody holds."""
        return len(self._held)

    def take(self) -> int:
        """A free page, held once from now on.

        Raises:
          IndexError: none is free.
        """
        page = self._free.pop()
        self._held[page] = 1
        return page

    def hold(self, pages: Iterable[int]) -> None:
        """Counts one more holder of each."""
        for page in pages:
            self._held[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Counts one holder less of each; what nobody holds any more is free."""
        for page in pages:
            self._held[page] -= 1
            if not self._held[page]:
                del self._held[page]
                self._free.append(page)

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._held.get(page, 0)

    def wanted(self, own: list[int], start: int, end: int, size: int) -> tuple[int, bool]:
        """What a text needs before its tokens from `start` to `end` - 1 can be written.

        Args:
          own: its pages, in order.
          start: tokens that stand in them.
          end: tokens that will stand in them.
          size: tokens of a page.

        Returns:
          How many pages it needs besides, and whether one of them is for a copy of the page in
          which `start` lies, since that is not the text's alone.
        """
        place = start // size
        shared = place < len(own) and self.holders(own[place]) > 1
        return max(pages_of(end, size) - len(own), 0) + shared, shared


def pages_of(tokens: int, size: int) -> int:
    """How many pages so many tokens fill, the last one perhaps in part; 0 where there are none."""
    return -(-tokens // size) if size else 0
