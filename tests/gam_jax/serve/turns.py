"""A plain engine for tests: rows in any order, with any guesses."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gam_jax.serve.executor import LAST_DRAWN, Blocks, Draws, Work


@dataclasses.dataclass(frozen=True)
class Text:
    """What is asked."""

    prompt: np.ndarray
    tokens: int
    key: int
    draws: Draws


@dataclasses.dataclass
class Row:
    """A text in progress: `unread` is what is known, but for a prompt's beginning."""

    text: Text
    number: int
    left: np.ndarray
    unread: list[int]
    pages: list[int] = dataclasses.field(default_factory=list)
    read: int = 0
    ids: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    stepped: bool = False

    @property
    def done(self):
        return len(self.ids) >= self.text.tokens


class Turns:
    def __init__(self, device, random, departures=0.0, share=0.0, plain=None):
        self.device, self.random = device, random
        self.departures, self.share, self.plain = departures, share, plain
        self.free = list(random.permutation(np.arange(1, device.sizes.pages)))

    def seat(self, text, number):
        self.device.seat(number, text.key, text.draws, text.prompt)
        self.device.load(number, None)
        return Row(text, number, text.prompt[:-1], [int(text.prompt[-1])])

    def table(self, row, tokens):
        sizes = self.device.sizes
        if not sizes.page:
            return np.zeros(0, np.int32)
        wanted = min(-(-(row.read + tokens) // sizes.page), sizes.row_pages)
        while len(row.pages) < wanted:
            row.pages.append(self.free.pop())
        return np.pad(np.array(row.pages, np.int32), (0, sizes.row_pages - len(row.pages)))

    def width(self, row):
        return next(w for w in self.device.sizes.widths if w <= len(row.left))

    def read(self, *rows):
        """The next blocks of some rows, equally wide; texts of odd keys want scores."""
        (width,) = {self.width(row) for row in rows}
        texts = [np.array([*row.left, row.unread[0]]) for row in rows]
        wants = [row.text.key % 2 for row in rows]
        blocks = Blocks(
            np.array([row.number for row in rows]),
            np.stack([text[:width] for text in texts]),
            np.stack([self.table(row, width) for row in rows]),
            np.stack([text[1 : width + 1] for text in texts]) if any(wants) else None,
        )
        found = self.device.read(blocks).result()
        for place, row in enumerate(rows):
            row.left, row.read = row.left[width:], row.read + width
            if wants[place]:
                row.scores += found.log_probs[place].tolist()

    def guesses(self, row, place, room):
        """Of what the text alone was, each right with some chance."""
        if self.plain is None or row.text.draws.bias:
            return []
        right = self.plain[place].ids[len(row.ids) :][:room]
        right = right[: max(0, self.device.sizes.limit - row.read - len(row.unread))]
        other = self.random.integers(0, self.device.sizes.vocab, len(right))
        keep = self.random.random(len(right)) < self.share
        return np.where(keep, right, other).tolist()

    def step(self, rows, places):
        sizes = self.device.sizes
        width = sizes.block if self.plain is not None else 1
        tokens = self.random.integers(0, sizes.vocab, (sizes.rows, width)).astype(np.int32)
        known, count = np.zeros(sizes.rows, np.int32), np.zeros(sizes.rows, np.int32)
        pages = self.random.integers(0, max(sizes.pages, 1), (sizes.rows, sizes.row_pages))
        pages = pages.astype(np.int32)
        for row, place in zip(rows, places, strict=True):
            guessed = self.guesses(row, place, width - len(row.unread))
            own = row.unread + guessed
            if width == 1 and row.stepped and self.random.random() < 0.5:
                own = [LAST_DRAWN]
            tokens[row.number, : len(own)] = own
            known[row.number], count[row.number] = len(row.unread), len(guessed)
            pages[row.number] = self.table(row, width)
        drawn = self.device.step(Work(tokens, known, count, pages)).result()
        for row in rows:
            n, right = row.unread, int(drawn.right[row.number])
            assert drawn.sound[row.number]
            row.stepped = True
            assert len(n) <= right <= width
            new = drawn.tokens[row.number, len(n) - 1 : right].tolist()
            row.ids += new
            row.log_probs += drawn.log_probs[row.number, len(n) - 1 : right].tolist()
            row.unread = [*n, *new]
            if right == width:
                row.read, row.unread = row.read + width, new[-1:]


def run(device, texts: Sequence[Text], random, departures=0.1, share=0.0, plain=None) -> list[Row]:
    """Serves the texts in turns drawn at random; some leave before their end."""
    turns = Turns(device, random, departures, share, plain)
    waiting, rows, ended = list(random.permutation(len(texts))), {}, {}
    while waiting or rows:
        empty = sorted(set(range(device.sizes.rows)) - {row.number for row in rows.values()})
        if waiting and empty and random.random() < 0.5:
            place = int(waiting.pop())
            rows[place] = turns.seat(texts[place], int(random.choice(empty)))
        reading = [row for row in rows.values() if len(row.left)]
        if reading and random.random() < 0.6:
            width = turns.width(reading[random.integers(len(reading))])
            some = [row for row in reading if turns.width(row) == width]
            most = min(len(some), device.sizes.together(width))
            chosen = random.permutation(len(some))[: random.integers(1, most + 1)]
            turns.read(*(some[place] for place in chosen))
        writing = [p for p, row in rows.items() if not len(row.left) and random.random() < 0.8]
        if writing:
            turns.step([rows[p] for p in writing], writing)
        for place, row in list(rows.items()):
            if row.done or random.random() < departures / 10:
                ended[place] = rows.pop(place)
                turns.free += row.pages
                row.ids, row.log_probs = (x[: row.text.tokens] for x in (row.ids, row.log_probs))
    return [ended[place] for place in range(len(texts))]
