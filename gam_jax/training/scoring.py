"""How well a model predicts a split."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gam_jax.data.text import Text
from gam_jax.params import Params
from gam_jax.training.batches import validation_feed
from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class Score:
    """Mean loss of a model on a text.

    Attributes:
      loss: nats per token.
      perplexity: exp(loss).
      bits_per_byte: bits per byte of the text that the tokens stand for; comparable between
        tokenizers.
      tokens: how many were predicted.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int


def score(
    eval_step: Callable[..., Any],
    params: Params,
    tokens: np.ndarray,
    config: Text,
    batch: int,
    bytes_per_token: float,
    layout: Layout,
) -> Score:
    """The score on every token but the first, each counted once (float64 sums)."""
    total = count = 0.0
    batches = validation_feed(tokens, config, batch, layout)
    # One batch ahead, so that the device never waits for the sums.
    pending: list[Any] = []
    for values in itertools.chain((eval_step(params, b) for b in batches), [None]):
        if pending:
            loss, weight = (float(x) for x in pending.pop())
            total, count = total + loss * weight, count + weight
        if values is not None:
            pending.append(values)
    loss = total / count
    return Score(loss, safe_exp(loss), loss / math.log(2) / bytes_per_token, int(count))


def safe_exp(loss: float) -> float:
    """exp(loss), infinity where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf
