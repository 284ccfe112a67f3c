"""What parallel streams cost when text is written: the paper's model of an accelerator.

Source: ParScale (arXiv 2505.10475), section 4, and its cost script, which counts as llm-analysis
does (github.com/cli99/llm-analysis): each part of a layer takes the longer of its arithmetic and of
its reading of weights and activations; all in two bytes. B P rows go through the layers, each with
m more tokens; embedding and head see B rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from experiments.papers.parscale.published import COEFFICIENTS, HEADS, KV_HEADS, LAYERS, PREFIX
from gam_jax.planning import Profile, profile
from gam_jax.planning.cluster import Cluster
from gam_jax.planning.cost import cost
from gam_jax.planning.work import Work

HALF, WHOLE = 2, 4
"""Bytes of weights and activations, and of what a norm reads."""

GIB = 2**30
CHIP, DTYPE = "a100_80.parscale", "float16"
LENGTHS = (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A model of the paper: grouped queries and a gated feed-forward.

    Attributes:
      width, hidden: D and F; they may be fractions, where a size between two is meant.
      layers, heads, kv_heads, vocab, prefix: L, H, G, V and m.
    """

    width: float = 1536
    hidden: float = 8320
    layers: int = LAYERS
    heads: int = HEADS
    kv_heads: int = KV_HEADS
    vocab: int = 151_936
    prefix: int = PREFIX

    def scaled(self, factor: float) -> Transformer:
        """As deep, with `factor` times the parameters in its layers."""
        side = math.sqrt(factor)
        return dataclasses.replace(self, width=self.width * side, hidden=self.hidden * side)

    @property
    def attention(self) -> float:
        """Parameters of a layer's attention."""
        return 2 * self.width**2 * (1 + self.kv_heads / self.heads)

    @property
    def ffn(self) -> float:
        """Parameters of a layer's feed-forward."""
        return 3 * self.width * self.hidden

    def aggregator(self, streams: int) -> float:
        """Parameters of the aggregator, as the script counts them: P D (D + 1)."""
        return streams * self.width * (self.width + 1) if streams > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Written:
    """What writing one batch takes: bytes held, and seconds."""

    memory: float
    seconds: float


def inference(
    model: Transformer,
    streams: int = 1,
    batch: int = 1,
    read: int = 128,
    written: int = 128,
    chip: Profile | None = None,
) -> Written:
    """Memory and time to read a prompt and write after it, by the paper's model.

    Args:
      model: its sizes.
      streams: P.
      batch: B, texts at once.
      read: tokens of the prompt.
      written: tokens written after it.
      chip: what it runs on; the paper's if None.
    """
    chip = profile(CHIP) if chip is None else chip
    rows, more = batch * streams, model.prefix if streams > 1 else 0
    tokens = read + more
    cache = 2 * rows * (tokens + written) * model.width / model.heads * model.kv_heads
    cache *= HALF * model.layers
    weights = model.layers * (model.attention + model.ffn + 2 * model.width)
    weights += model.vocab * model.width + model.width + model.aggregator(streams)
    activations = max(*_activations(model, rows, tokens), HALF * model.vocab * batch * tokens)

    mixing = model.aggregator(streams) / model.ffn * _ffn(model, batch, read + written, chip)
    head = (batch - rows) * (read + written) * _head(model, chip)  # counted for all rows below
    seconds = _forward(model, rows, tokens, chip) + mixing + head
    cached = _seconds(chip, passes=2 * cache)
    seconds += written * (_forward(model, rows, 1, chip) + cached)
    return Written(cache + HALF * weights + activations, seconds)


def _seconds(chip: Profile, flops: float = 0, read: float = 0, passes: float = 0) -> float:
    """Of a part of a layer, as every plan has it.

    Args:
      chip: what it runs on.
      flops: of products.
      read: bytes of their operands.
      passes: bytes of what is no product.
    """
    work = Work({}, {DTYPE: flops}, read, passes, messages=(), held=0)
    return cost(work, Cluster(chip.name, chip, ())).seconds


def _forward(model: Transformer, rows: int, tokens: int, chip: Profile) -> float:
    """Seconds of one pass over [rows, tokens], embedding and head among them."""
    count = rows * tokens
    arithmetic = 2 * count * model.attention + 4 * count * tokens * model.width
    reading = HALF * model.attention + _activations(model, rows, tokens)[0]
    norm = count * model.width * _seconds(chip, 5, WHOLE)
    layer = _seconds(chip, arithmetic, reading) + _ffn(model, rows, tokens, chip) + 2 * norm
    embedding = _seconds(chip, passes=HALF * model.vocab * model.width)
    return model.layers * layer + embedding + count * _head(model, chip)


def _ffn(model: Transformer, rows: int, tokens: int, chip: Profile) -> float:
    """Seconds of one layer's feed-forward."""
    reading = HALF * model.ffn + _activations(model, rows, tokens)[1]
    return _seconds(chip, 2 * rows * tokens * model.ffn, reading)


def _head(model: Transformer, chip: Profile) -> float:
    """Seconds for the logits of one token."""
    return _seconds(chip, 2 * model.vocab * model.width)


def _activations(model: Transformer, rows: int, tokens: int) -> tuple[float, float]:
    """Bytes of the largest arrays in a layer's attention and feed-forward."""
    count = HALF * rows * tokens
    attention = max(3 * count * model.width, count * (2 * model.width + 4 * model.heads))
    return attention, count * max(model.width, model.hidden)


def mean(model: Transformer, streams: int = 1, batch: int = 1) -> Written:
    """Over every pair of the paper's lengths."""
    found = [
        inference(model, streams, batch, *pair) for pair in itertools.product(LENGTHS, LENGTHS)
    ]
    return Written(
        *(sum(x) / len(found) for x in zip(*map(dataclasses.astuple, found), strict=True))
    )


def compared(streams: int, batch: int, corpus: str = "stack") -> dict[str, float]:
    """What P streams need and add, and what as good a loss adds by parameters.

    A model of as good a loss has N (k ln P + 1) parameters.

    Args:
      streams: P.
      batch: B, texts at once.
      corpus: whose k.

    Returns:
      memory (GiB) and seconds; where P > 1 what both are above those of one stream ("added"),
      what the larger model's are above them ("by_parameters"), and their ratios ("saved").
    """
    base, k = Transformer(), COEFFICIENTS[corpus]["k"]
    own = _shown(mean(base, streams, batch))
    if streams == 1:
        return own
    one = _shown(mean(base, 1, batch))
    larger = _shown(mean(base.scaled(1 + k * math.log(streams)), 1, batch))
    found = dict(own)
    for name, least in one.items():
        added, by_parameters = own[name] - least, larger[name] - least
        found |= {f"added_{name}": added, f"by_parameters_{name}": by_parameters}
        found[f"saved_{name}"] = by_parameters / added
    return found


def _shown(written: Written) -> dict[str, float]:
    return {"memory": written.memory / GIB, "seconds": written.seconds}
