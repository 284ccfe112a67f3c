"""A double of the executor: a function of the tokens so far and the key stands for the model.

It keeps what the interface says, and nothing of the engine's: a row's tokens stand in its pages
where there are any, so that a page that is lost, shared by mistake or copied too late changes the
text. It refuses what an executor may not be asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle

import numpy as np

from gam_jax.serve.executor import (
    LAST_DRAWN,
    MOST_TOP,
    Blocks,
    Drawn,
    Draws,
    Scores,
    Sizes,
    Work,
)
from sharding.errors import UserError


def next_token(tokens: list[int], key: int, draws: Draws, written: list[int], vocab: int) -> int:
    """What stands for the model's draw."""
    recent = [len(tokens), *tokens[-3:]] if draws.temperature else tokens[-2:]
    penalised = sorted(written) if draws.presence_penalty else []
    told = repr((recent, sum(tokens) % 7 * (draws.temperature > 0), key, penalised))
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=4).digest(), "big") % vocab


@dataclasses.dataclass
class State:
    """A row: how many tokens it has read, and those, if they stand in no pages."""

    count: int = 0
    tokens: tuple[int, ...] = ()


class Result:
    """What was asked for; the answer is there at once, and may be read late."""

    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


class FakeExecutor:
    """See `gam_jax.serve.executor.Executor`."""

    def __init__(self, sizes: Sizes, fingerprint: str = "fake", allowed_by_default: bool = False):
        self.sizes, self.fingerprint = sizes, fingerprint
        self.states = [State() for _ in range(sizes.rows)]
        self.seats: list = [None] * sizes.rows
        self.last: list[int | None] = [None] * sizes.rows
        self.pages = np.full((max(sizes.pages, 1), max(sizes.page, 1)), -7)
        self.fed: list[tuple[str, int, list[int]]] = []  # kind, tokens, rows
        self.fails_after: int | None = None
        self.unsound: set[int] = set()
        self.asleep = False

    def compile(self):
        return ("fake",)

    def row_bytes(self):
        return 64, 8 * self.sizes.page

    def sleep(self):
        """What rows and pages held is lost."""
        assert not self.asleep
        self.asleep = True
        self.states = [State() for _ in self.states]
        self.pages[:] = -7

    def wake(self):
        assert self.asleep
        self.asleep = False

    def _called(self):
        assert not self.asleep
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                raise RuntimeError("the device is gone")

    def seat(self, row, key, draws, seen, written=None):
        self.seats[row] = [key, draws, list(map(int, written if written is not None else []))]
        self.last[row] = None

    def load(self, row, saved):
        self.states[row] = State() if saved is None else dataclasses.replace(saved)
        self.last[row] = None

    def save(self, row):
        return dataclasses.replace(self.states[row])

    def copy_page(self, source, target):
        assert source != 0 != target
        self.pages[target] = self.pages[source]

    def bytes_of(self, saved, pages):
        assert len(pages) == (-(-saved.count // self.sizes.page) if self.sizes.page else 0)
        return pickle.dumps((self.fingerprint, saved, self.pages[list(pages)]))

    def from_bytes(self, data, pages):
        name, saved, content = pickle.loads(data)
        if name != self.fingerprint or len(content) != len(pages):
            raise UserError("a state of another model")
        self.pages[list(pages)] = content
        return saved

    def tokens_of(self, row, table):
        """All that a row has read, as its pages or its state tell."""
        state = self.states[row]
        if not self.sizes.page:
            assert len(state.tokens) == state.count
            return list(state.tokens)
        places = np.arange(state.count)
        return self.pages[table[places // self.sizes.page], places % self.sizes.page].tolist()

    def _put(self, row, tokens, table):
        state, page = self.states[row], self.sizes.page
        if page:
            for place, token in enumerate(tokens, state.count):
                self.pages[table[place // page], place % page] = token
        return State(state.count + len(tokens), state.tokens if page else (*state.tokens, *tokens))

    def read(self, blocks: Blocks):
        self._called()
        rows, width = blocks.rows.tolist(), blocks.tokens.shape[1]
        assert width in self.sizes.widths
        assert 0 < len(rows) <= self.sizes.together(width)
        assert len(rows) == len(set(rows))
        assert blocks.tokens.shape == (len(rows), width)
        assert blocks.pages.shape == (len(rows), self.sizes.row_pages)
        self.fed.append(("read", width, rows))
        before = [self.tokens_of(*pair) for pair in zip(rows, blocks.pages, strict=True)]
        for row, tokens, pages in zip(rows, blocks.tokens, blocks.pages, strict=True):
            self.states[row] = self._put(row, tokens.tolist(), pages)
        if blocks.follows is None:
            return Result(None)
        assert blocks.follows.shape == blocks.tokens.shape
        sums = np.asarray([sum(tokens) for tokens in before])[:, None]
        scores = -((sums + np.cumsum(blocks.tokens, axis=1) + blocks.follows) % 97)
        top = np.zeros((*scores.shape, MOST_TOP))
        return Result(Scores(scores.astype(float), top.astype(int), top))

    def step(self, work: Work):
        self._called()
        sizes = self.sizes
        width = work.tokens.shape[1]
        assert width in (1, sizes.block)
        assert work.tokens.shape == (sizes.rows, width)
        assert work.pages.shape == (sizes.rows, sizes.row_pages)
        rows = np.flatnonzero(work.known).tolist()
        assert rows
        used = [page for row in rows for page in self._written_pages(work, row, width)]
        assert 0 not in used
        assert len(used) == len(set(used)), "two rows write one page"
        self.fed.append(("step", width, rows))
        tokens, right = np.zeros((sizes.rows, width), int), np.zeros(sizes.rows, int)
        for row in rows:
            right[row] = self._step_row(work, row, tokens[row])
        sound = np.asarray([row not in self.unsound for row in range(sizes.rows)])
        top = np.zeros((sizes.rows, width, MOST_TOP))
        return Result(Drawn(tokens, right, sound, -tokens / 7, top.astype(int), top))

    def _written_pages(self, work, row, width):
        if not self.sizes.page:
            return set()
        start, size = self.states[row].count, int(work.known[row] + work.guesses[row])
        assert size <= width
        return {int(work.pages[row, p // self.sizes.page]) for p in range(start, start + size)}

    def _step_row(self, work, row, out):
        width, known = work.tokens.shape[1], int(work.known[row])
        given = known + int(work.guesses[row])
        block = work.tokens[row, :given].tolist()
        if block[0] == LAST_DRAWN:
            assert width == 1
            assert self.last[row] is not None
            block[0] = self.last[row]
        assert all(0 <= token < self.sizes.vocab for token in block)
        written = self.seats[row][-1]
        seen = [*self.tokens_of(row, work.pages[row]), *block[: known - 1]]
        right = known - 1
        for place in range(known - 1, given):
            if place >= known and block[place] != out[place - 1]:
                break
            right = place + 1
            seen.append(block[place])
            out[place] = self._draw(work, row, seen, place == known - 1)
            written.append(int(out[place]))
        for place in range(given, width if right == given else 0):  # as placeholders look ahead
            seen.append(int(out[place - 1]))
            out[place] = self._look(work, row, list(seen))
        after = self._put(row, block, work.pages[row])
        if right == width:
            self.states[row] = after
        self.last[row] = int(out[right - 1]) if width == 1 else None
        return right

    def _look(self, work, row, seen):
        """What is drawn at a place that is filled up: nothing, unless a double looks ahead."""
        return 0

    def _draw(self, work, row, seen, first):
        key, draws, written = self.seats[row]
        token = next_token(seen, key, draws, written, self.sizes.vocab)
        if work.allowed is None or not first:
            return token
        mask = work.allowed[row]
        for step in range(self.sizes.vocab):
            at = (token + step) % self.sizes.vocab
            if mask[at // 32] >> (at % 32) & 1:
                return at
        raise AssertionError("nothing may be drawn")


def alone(prompt, count, key, draws, vocab, ends=()):
    """The tokens of a text that has the model to itself, with the one that ends it."""
    tokens, written = list(prompt), []
    for _ in range(count):
        written.append(next_token(tokens, key, draws, written, vocab))
        tokens.append(written[-1])
        if written[-1] in ends:
            break
    return written
