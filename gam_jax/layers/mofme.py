"""Mixtures of feature-wise modulated experts: many experts for little more than one."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gam_jax.layers.base import WHOLE, Layer, inherit, known
from gam_jax.layers.mlp import MLP
from gam_jax.ops.activation import gelu
from gam_jax.ops.dropout import dropout
from gam_jax.ops.linear import linear
from gam_jax.ops.modulation import modulate
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding.axes import Axes
from sharding.bounds import Count, Rate, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class MoFME(Layer):
    """adaptor(sum_e w_e f_e(h)), f_e(h) = (h G_e + g_e) * h + h C_e + c_e: a feed-forward.

    One expert is shared, h = gelu(x A_1 + a_1) * (x A_2 + a_2); each of E experts scales and
    shifts its channels; an MLP that all tokens take follows. An expert costs 2 D^2 parameters,
    where a feed-forward of its own has 8 D^2. Source: Zhang et al. 2024, "Efficient Deweather
    Mixture-of-Experts with Uncertainty-aware Feature-wise Linear Modulation" (arXiv 2312.16610).

    Weights are the softmax over a token's best experts. In training the router is asked several
    times, each time with other inputs dropped, and an expert that it is not sure of counts less:
    by mean / (1 + deviation / mean) of its probability. That formula is ours: the paper's
    inverse covariance of centred samples makes weights that are zero on average.

    The shared expert and the router work on each device's own tokens of the residual stream.
    The adaptor's hidden units are split over `ffn`'s mesh axis, the modulations over `expert`'s.

    Attributes:
      width: D.
      experts: E.
      chosen: K, experts of a token.
      adaptor: the MLP that follows.
      samples: times that the router is asked in training; 0 asks once, as in evaluation.
      doubt: the share of the router's inputs that is dropped each time.
      dropout: rate on the result in training.
      method: of the grouped products, see `gam_jax.ops.grouped.make_groups`.
    """

    width: Size | None = None
    experts: Size = 8
    chosen: Size = 2
    adaptor: MLP = MLP(bias=False)
    samples: Count = 5
    doubt: Rate = 0.1
    dropout: Rate | None = None
    method: str = "auto"

    computed: ClassVar[tuple[str, ...]] = ("method",)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.chosen > self.experts:
            raise ValueError(f"MoFME.chosen={self.chosen} is not from 1 to experts={self.experts}")
        inner = inherit(self.adaptor, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "adaptor", inner)

    def table(self) -> Table:
        """router [D, E], shared expert [D, D] twice, modulation [E, D, 2 D]; biases; adaptor."""
        width, experts = known(self.width, "width", self), self.experts
        table: dict[str, Any] = {
            "router": Param((width, experts), ("embed", None), fan_in(width), precise=True),
            "router_bias": Param((experts,), (None,), zeros, decay=False, precise=True),
        }
        for name in ("gate", "in"):
            table[f"w_{name}"] = Param((width, width), ("embed", None), fan_in(width))
            table[f"b_{name}"] = Param((width,), (None,), fan_in(width), decay=False)
        shape, axes = (experts, width, 2 * width), ("expert", None, None)
        table["modulation"] = Param(shape, axes, fan_in(width))
        shape, axes = (experts, 2 * width), ("expert", None)
        table["modulation_bias"] = Param(shape, axes, _scale_one, decay=False)
        return table | {"adaptor": self.adaptor.table()}

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: tuple[()] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Each token alone; the adaptor's dropout is on the result."""
        keys = (None, None) if key is None else jax.random.split(key)
        experts, weights = self._routed(params, x, keys[0], axes)
        flat = x.reshape(-1, x.shape[-1])
        gate = gelu(linear(flat, params["w_gate"], params["b_gate"]))
        h = gate * linear(flat, params["w_in"], params["b_in"])
        mixed = modulate(
            h,
            experts.reshape(-1, self.chosen),
            weights.reshape(-1, self.chosen),
            params["modulation"],
            params["modulation_bias"],
            axes.of("expert"),
            self.method,
            axes.backend,
        )
        return self.adaptor(params["adaptor"], mixed.reshape(x.shape), None, axes, key=keys[1])

    def _routed(
        self, params: Params, x: Array, key: Array | None, axes: Axes
    ) -> tuple[Int[Array, "B T K"], Float[Array, "B T K"]]:
        """The chosen experts, and weights that sum to 1; float32."""
        x = x.astype(jnp.float32)
        if key is None or not self.samples or not self.doubt:
            probabilities = self._probabilities(params, x)
        else:
            keys = jax.random.split(key, self.samples)
            asked = [dropout(x, self.doubt, own, axes) for own in keys]
            probabilities = calibrated(
                jnp.stack([self._probabilities(params, one) for one in asked])
            )
        _, experts = lax.top_k(lax.stop_gradient(probabilities), self.chosen)
        hot = jax.nn.one_hot(experts, self.experts)
        weights = jnp.einsum("btke,bte->btk", hot, probabilities)
        return experts, weights / jnp.sum(weights, axis=-1, keepdims=True)

    def _probabilities(self, params: Params, x: Array) -> Float[Array, "B T E"]:
        weight, bias = (params[name].astype(jnp.float32) for name in ("router", "router_bias"))
        return jax.nn.softmax(linear(x.reshape(-1, x.shape[-1]), weight, bias)).reshape(
            *x.shape[:-1], self.experts
        )


def calibrated(samples: Float[Array, "M *B E"]) -> Float[Array, "*B E"]:
    """mean / (1 + deviation / mean) over samples of each expert's probability, made to sum to 1.

    Samples that agree leave what they say unchanged.
    """
    mean = jnp.mean(samples, axis=0)
    variance = jnp.mean(jnp.square(samples - mean), axis=0)
    some = variance > 0
    deviation = jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1)), 0)  # its slope is finite
    sure = mean / (1 + deviation / jnp.maximum(mean, TINY))
    return sure / jnp.sum(sure, axis=-1, keepdims=True)


TINY = 1e-20


def _scale_one(key: Array, shape: tuple[int, ...]) -> Array:
    """Scales of 1 and shifts of 0: before training an expert is nearly the shared one."""
    half = (*shape[:-1], shape[-1] // 2)
    return jnp.concatenate([ones(key, half), zeros(key, half)], axis=-1)
