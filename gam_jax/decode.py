"""Writing text: prefill in chunks, then a token at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax.model import LanguageModel, ModelCarry
from gam_jax.params import Params

PREFILL_CHUNK = 256
WRITE_CHUNK = 8


def choose(
    logits: Float[Array, "B V"], key: Array, temperature: float | Array, top_p: float | Array
) -> Int[Array, B]:
    """Draws a token from softmax(logits / temperature), cut to its nucleus.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`
    (Holtzman et al. 2020, arXiv 1904.09751); the likeliest is always in it. Temperature 0 takes
    the likeliest.
    """
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    inside = (before < top_p).at[:, 0].set(True)
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    drawn = jax.random.categorical(key, jnp.where(scaled >= least, scaled, -jnp.inf), axis=-1)
    return jnp.where(temperature == 0, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="model")
def _read(
    model: LanguageModel, params: Params, tokens: Array, carry: ModelCarry
) -> tuple[Array, ModelCarry]:
    logits, carry = model(params, tokens, carry)
    return logits[:, -1], carry


def prefill(
    model: LanguageModel,
    params: Params,
    tokens: Int[Array, "B T"],
    carry: ModelCarry | None = None,
) -> tuple[Float[Array, "B V"], ModelCarry]:
    """Reads a prompt of any length in chunks of a fixed size, so that few programs are compiled.

    Returns:
      The logits after the last token and the carry.

    Raises:
      ValueError: no token, or more than the model's learned positions.
    """
    if tokens.shape[1] == 0:
        raise ValueError("a prompt needs at least one token")
    after = model.carry(tokens.shape[0]) if carry is None else carry
    check_length(model, int(after.position) + tokens.shape[1])
    logits, start = jnp.zeros(()), 0
    while start < tokens.shape[1]:
        left = tokens.shape[1] - start
        size = PREFILL_CHUNK if left >= PREFILL_CHUNK else 1 << (left.bit_length() - 1)
        logits, after = _read(model, params, tokens[:, start : start + size], after)
        start += size
    return logits, after


@functools.partial(jax.jit, static_argnames=("model", "count"))
def _write(
    model: LanguageModel,
    params: Params,
    logits: Array,
    carry: ModelCarry,
    key: Array,
    temperature: Array,
    top_p: Array,
    count: int,
) -> tuple[Array, Array, ModelCarry]:
    def step(state: tuple[Array, ModelCarry], _: None) -> tuple[tuple[Array, ModelCarry], Array]:
        logits, carry = state
        place = jax.random.fold_in(key, carry.position)
        token = choose(logits, place, temperature, top_p)
        logits, carry = model(params, token[:, None], carry)
        return (logits[:, 0], carry), token

    (logits, carry), tokens = lax.scan(step, (logits, carry), None, length=count)
    return tokens.T, logits, carry


def generate(
    model: LanguageModel,
    params: Params,
    prompt: Int[Array, "B T"],
    tokens: int,
    key: Array,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Iterator[Int[np.ndarray, "B N"]]:
    """Continues the prompt by `tokens` tokens, given out a few at a time.

    The token at position i is drawn with fold_in(key, i), so the text does not depend on how it
    is cut into chunks.

    Raises:
      ValueError: prompt and tokens together exceed the model's learned positions.
    """
    check_length(model, prompt.shape[1] + tokens)
    logits, carry = prefill(model, params, prompt)
    yield from write(model, params, logits, carry, tokens, key, temperature, top_p)


def write(
    model: LanguageModel,
    params: Params,
    logits: Float[Array, "B V"],
    carry: ModelCarry,
    tokens: int,
    key: Array,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Iterator[Int[np.ndarray, "B N"]]:
    """As `generate`, from what `prefill` returned."""
    settings = jnp.float32(temperature), jnp.float32(top_p)
    for start in range(0, tokens, WRITE_CHUNK):
        count = min(WRITE_CHUNK, tokens - start)
        new, logits, carry = _write(model, params, logits, carry, key, *settings, count=count)
        yield np.asarray(new)


def check_length(model: LanguageModel, tokens: int) -> None:
    """Raises a ValueError if `tokens` tokens exceed the model's learned positions."""
    if model.context and tokens > model.context:
        raise ValueError(
            f"{tokens} tokens do not fit the model's {model.context} learned positions: ask for "
            f"fewer, or train with context=0 (no positions) or a larger one"
        )


def carry_bytes(carry: ModelCarry) -> int:
    """Size of a carry in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
