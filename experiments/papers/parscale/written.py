"""What parallel streams cost when text is written here: seconds and bytes, measured."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax import decode
from gam_jax.layers import MLP, Attention, Block, RMSNorm
from gam_jax.models import LanguageModel
from gam_jax.params import count_params

READ, WRITTEN = 128, 32
"""Tokens of the prompt, and those that are written and timed."""


@dataclasses.dataclass(frozen=True)
class Writer:
    """A transformer too large for a processor's cache: weights are read for every token.

    Attributes:
      streams: P.
      batch: texts that are written at once.
      width: of the model.
    """

    streams: int
    batch: int
    width: int = 512

    @property
    def model(self) -> LanguageModel:
        """Four layers, a prefix of 48."""
        attention = Attention(heads=8, kv_heads=2, context=READ + WRITTEN)
        block = Block(attention, MLP(activation="swiglu", bias=False), RMSNorm())
        return LanguageModel(block, self.width, 4, 256, streams=self.streams, unroll=4)

    def numbers(self) -> dict[str, float]:
        """Parameters; bytes of the carry; and of parameters, carry and temporaries of a token."""
        params = jax.eval_shape(self.model.init_params, jax.random.key(0))
        carry = jax.eval_shape(lambda: self.model.carry(self.batch))
        token = jax.ShapeDtypeStruct((self.batch, 1), jnp.int32)
        lowered = jax.jit(self.model.last_logits).lower(params, token, carry)
        needs: Any = lowered.compile().memory_analysis()
        return {
            "parameters": count_params(self.model.table()),
            "carry_bytes": self.model.carry_bytes(self.batch),
            "bytes": needs.argument_size_in_bytes + needs.temp_size_in_bytes,
        }

    def write(self) -> None:
        """Writes tokens after the prompt, which is read once."""
        params, logits, carry = _prompted(self)
        for _ in decode.write(self.model, params, logits, carry, WRITTEN, jax.random.key(0)):
            pass


@functools.cache
def _prompted(writer: Writer) -> tuple[Any, Any, Any]:
    """Parameters, and logits and carry after the prompt."""
    params = writer.model.init_params(jax.random.key(0))
    prompt = np.random.default_rng(0).integers(0, 256, (writer.batch, READ)).astype(np.int32)
    return params, *decode.prefill(writer.model, params, prompt)
