"""The released engine on synthetic tables, beside the loop with the same tables.

The engine (github.com/microsoft/apex_plus at 8769096) was run as it is, outside of this project, by
its own `main.py --all`. Its tables were made by the laws below, one row for each size that it looks
up; in place of a model's published configuration it was given the sizes below. What it printed is
in the study as published figures. `Tables` prices an iteration by the engine's own rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.papers.apex.loop import Request, Trace, serve
from experiments.study.declare import Numbers

ROOM = 10**9
REQUESTS, GAP = 40, 0.7
"""Requests of the trace, and seconds between two, where they do not come at once."""


def trace(gap: float) -> list[Request]:
    """Requests of unlike lengths, told by formulas."""
    return [Request(i * gap, 16 + 37 * i % 240, 4 + 13 * i % 60) for i in range(REQUESTS)]


def product(m: int, k: int, n: int) -> float:
    """Microseconds of a product [m, k] x [k, n] in the tables."""
    return 10_000 + m * k * n / 5e3


def attention(heads: int, batch: int, queries: float, keys: float) -> float:
    """Microseconds of attention of heads of 64 channels in the tables, where both are the same."""
    return 5_000 + heads * batch * queries * keys / 40


@dataclasses.dataclass(frozen=True)
class Tables:
    """A model on one device of the tables, priced as the engine prices it.

    Attributes:
      width: of the model.
      heads: of 64 channels.
      kv_heads: heads with keys and values of their own.
      hidden: units of the feed-forward.
      products: of the feed-forward.
      blocks: of the model.
      thrice: whether projections are of three times the heads, as in the engine; else of those
        that there are.
      alone: whether a token that is written looks at one other, which the tables round up to 16, as
        in the engine; else at its context.
    """

    width: int
    heads: int
    kv_heads: int
    hidden: int
    products: int
    blocks: int = 4
    thrice: bool = True
    alone: bool = True

    def mixer(self, prompts: Sequence[int], contexts: Sequence[int]) -> float:
        """Seconds of attention and its projections in all blocks."""
        tokens = self._padded(sum(prompts) + len(contexts))
        inner = 64 * self.heads
        projected = 3 * inner if self.thrice else inner + 2 * 64 * self.kv_heads
        spent = product(projected, self.width, tokens) + product(self.width, inner, tokens)
        if prompts:
            mean = (sum(prompts) / len(prompts) + 15) // 16 * 16
            spent += attention(self.heads, len(prompts), mean, mean)
        if contexts:
            keys = 16.0 if self.alone else sum(contexts) / len(contexts)
            spent += attention(self.heads, len(contexts), 16, keys)
        return self.blocks * spent / 1e6

    def ffn(self, prompts: Sequence[int], contexts: Sequence[int]) -> float:
        """Seconds of the feed-forward in all blocks."""
        tokens = self._padded(sum(prompts) + len(contexts))
        return self.blocks * self.products * product(self.width, self.hidden, tokens) / 1e6

    def __call__(self, prompts: Sequence[int], contexts: Sequence[int]) -> float:
        """Seconds of an iteration."""
        return self.mixer(prompts, contexts) + self.ffn(prompts, contexts)

    @staticmethod
    def _padded(tokens: int) -> int:
        return -(-tokens // 128) * 128 if tokens > 64 else 64


SAME = Tables(width=256, heads=4, kv_heads=4, hidden=1024, products=2)
"""A head of keys and values for each of queries: projections are priced right."""
SHARED = Tables(width=512, heads=8, kv_heads=2, hidden=1024, products=3)
"""Four heads of queries share those of keys and values."""


def told(found: Trace) -> Numbers:
    """What the engine prints of a simulation, by its own definitions: seconds of the first token
    without those of waiting, and of the later ones of a text over all of its tokens.
    """
    seconds, running, tokens = map(np.asarray, zip(*found.iterations, strict=True))
    spent = [np.asarray(own) for own in found.spent.values()]
    later = [own[1:].sum() / len(own) for own in spent]
    whole = [own.sum() for own in spent]
    return {
        "requests": float(running.mean()),
        "tokens": float(tokens.mean()),
        "first": 1e3 * float(np.mean([own[0] for own in spent])),
        "later": 1e3 * float(np.concatenate([own[1:] for own in spent]).mean()),
        "later_50": 1e3 * float(np.percentile(later, 50)),
        "later_95": 1e3 * float(np.percentile(later, 95)),
        "whole_50": float(np.percentile(whole, 50)),
        "whole_95": float(np.percentile(whole, 95)),
        "short": float(seconds[:-1].sum()),
        "all": float(seconds.sum()),
    }


def beside(tables: Tables, gap: float, room: int = ROOM) -> Numbers:
    """The loop with the engine's prices, and what it takes to the first token with waiting."""
    requests = trace(gap)
    found = serve(requests, room, tables)
    waited = np.mean([found.firsts[i] - one.arrives for i, one in enumerate(requests)])
    return {**told(found), "waited": 1e3 * float(waited)}


def parts(gap: float) -> Numbers:
    """Seconds of attention, and of the feed-forward."""
    spent = {"mixer": 0.0, "ffn": 0.0}

    def noted(prompts: Sequence[int], contexts: Sequence[int]) -> float:
        own = {"mixer": SAME.mixer(prompts, contexts), "ffn": SAME.ffn(prompts, contexts)}
        for name, seconds in own.items():
            spent[name] += seconds
        return sum(own.values())

    serve(trace(gap), ROOM, noted)
    return spent


def mended(tables: Tables, gap: float, **fields: bool) -> Numbers:
    """Seconds with some of the engine's rules changed, over those by its own."""
    own = dataclasses.replace(tables, **fields)
    changed, kept = (serve(trace(gap), ROOM, each).seconds for each in (own, tables))
    return {"over": changed / kept}
