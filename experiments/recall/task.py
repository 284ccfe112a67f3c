"""Multi-query associative recall (MQAR): sequences drawn from a key, with nothing stored.

Source: Zoology (Arora et al. 2023, arXiv 2312.04927), section 4 and appendix on its generator.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sharding.errors import UserError

Batch = dict[str, Array]
"""inputs and targets, int32 [B, T]; weights, float32 [B, T]: 1 where a value is asked for."""


@dataclasses.dataclass(frozen=True)
class Recall:
    """The task: n (key, value) pairs are written, then each key is asked for once.

    A sequence is k_1 v_1 ... k_n v_n, then slots of two tokens. A slot that asks holds a key and
    the filler 0, and the target at the key is its value; a slot that does not is 0 0. Keys are n
    different ones of 1 .. V/2 - 1, values n different ones of V/2 .. V - 1. Slot i asks with a
    probability in proportion to power * (i + 1)^(power - 1), without replacement.

    Attributes:
      tokens: T, even.
      pairs: n.
      vocab: V, even.
      power: 1 spreads the questions evenly; the source's 0.01 puts most of them early.

    Raises:
      UserError: a length, count or vocabulary that leaves no room.
    """

    tokens: int = 128
    pairs: int = 16
    vocab: int = 256
    power: float = 0.01

    def __post_init__(self) -> None:
        if self.tokens % 2 or self.vocab % 2:
            raise UserError(f"recall: {self.tokens} tokens of {self.vocab}: give even numbers")
        if not 1 <= self.pairs <= self.tokens // 4:
            raise UserError(
                f"recall: {self.pairs} pairs do not fit {self.tokens} tokens: four tokens for "
                f"each, so give 1 to {self.tokens // 4}"
            )
        if self.pairs > self.vocab // 2 - 1:
            raise UserError(
                f"recall: {self.pairs} pairs need as many keys, and a vocabulary of {self.vocab} "
                f"has {self.vocab // 2 - 1}: give a larger one"
            )

    @property
    def chance(self) -> float:
        """How often one of the values written, taken at random, is the right one."""
        return 1 / self.pairs


@functools.partial(jax.jit, static_argnums=(0, 2))
def draw(task: Recall, key: Array, rows: int) -> Batch:
    """A batch of the task: the same key gives the same batch."""
    return jax.vmap(lambda own: _sequence(task, own))(jax.random.split(key, rows))


def mixed(tasks: tuple[Recall, ...], key: Array, rows: int) -> Batch:
    """A batch that holds equally many rows of each task, all of one length."""
    keys = jax.random.split(key, len(tasks))
    parts = [draw(task, own, rows // len(tasks)) for task, own in zip(tasks, keys, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _sequence(task: Recall, key: Array) -> Batch:
    """One row of a batch."""
    to_keys, to_values, to_slots = jax.random.split(key, 3)
    half, written = task.vocab // 2, 2 * task.pairs
    keys = 1 + jax.random.permutation(to_keys, half - 1)[: task.pairs]
    values = half + jax.random.permutation(to_values, half)[: task.pairs]
    asked = written + 2 * _slots(task, to_slots)
    pairs = jnp.stack([keys, values], axis=1).reshape(-1)
    blank = jnp.zeros(task.tokens, jnp.int32)
    return {
        "inputs": blank.at[:written].set(pairs).at[asked].set(keys),
        "targets": blank.at[asked].set(values),
        "weights": jnp.zeros(task.tokens).at[asked].set(1.0),
    }


def _slots(task: Recall, key: Array) -> Int[Array, " n"]:
    """The slot at which each key is asked for.

    The n largest of the logits plus Gumbel noise are n draws without replacement, in order.
    """
    count = task.tokens // 2 - task.pairs
    logits = (task.power - 1) * np.log1p(np.arange(count))
    return jax.lax.top_k(logits + jax.random.gumbel(key, (count,)), task.pairs)[1]
