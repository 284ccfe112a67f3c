"""Convolutions along time as nodes of a network that runs on a stream: `gam_jax.layers.delayed`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gam_jax.layers.delayed import Node, Parallel, Sequential, check_multiple, kept, with_last
from gam_jax.ops.convolution import convolve, transposed
from gam_jax.ops.spectrum import phase_of
from gam_jax.params import Param, Params, Table, fan_in
from sharding.bounds import Count, Size
from sharding.errors import UserError

CENTERED = -1
"""As `left`: half of the padding stands on each side, the odd one on the right."""


@dataclasses.dataclass(frozen=True)
class Convolution(Node):
    """y[m] = b + sum_j w[j] x[m stride + j dilation - left].

    Attributes:
      out: channels of the output; as many as the input has if 0.
      kernel: taps, K.
      stride: inputs from an output to the next.
      dilation: inputs from a tap to the next.
      left: inputs that it sees before the current one, 0 to (K - 1) dilation; `CENTERED` for half.
      groups: parts of the channels, each with filters of its own.
      bias: whether there is one.
      normed: whether filters are w = gain v / |v|, each output's with a gain of its own
        (weight normalisation, arXiv 1602.07868).
    """

    out: Count = 0
    kernel: Size = 1
    stride: Size = 1
    dilation: Size = 1
    left: int = CENTERED
    groups: Size = 1
    bias: bool = True
    normed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not CENTERED <= self.left <= self.reach:
            raise UserError(
                f"Convolution.left={self.left} must be from 0 to {self.reach}, the inputs beside "
                f"the current one of {self.kernel} taps with dilation {self.dilation}"
            )

    @property
    def reach(self) -> int:
        """Inputs beside the current one."""
        return (self.kernel - 1) * self.dilation

    @property
    def before(self) -> int:
        """Those of them that come before it."""
        return self.reach // 2 if self.left == CENTERED else self.left

    @property
    def ratio(self) -> Fraction:
        """One output for each stride."""
        return Fraction(1, self.stride)

    @property
    def multiple(self) -> int:
        """The stride."""
        return self.stride

    @property
    def field(self) -> int:
        """From the first tap to the last."""
        return self.reach + 1

    def _wait(self, given: int) -> int:
        """Inputs that it waits longer, so that its outputs are those of the whole."""
        return -(self.reach - self.before + given) % self.stride

    def delay(self, given: int = 0) -> int:
        """What it sees of the future, with what it waits, at the rate of its output."""
        return (self.reach - self.before + given + self._wait(given)) // self.stride

    def features(self, width: int) -> int:
        """As declared."""
        return self.out or width

    def table(self, width: int) -> Table:
        """weight [K, D / groups, F]; bias and gain [F] where there are any."""
        return _filters(self, width, self.kernel, self.groups)

    def state_table(self, batch: int, width: int, given: int = 0) -> Any:
        """The last inputs."""
        return kept(batch, self.reach + self._wait(given), width)

    def __call__(self, params: Params, x: Array) -> Array:
        """With zeros on both sides."""
        check_multiple(self, x, self.multiple)
        after = self.field - self.stride - self.before
        return self._made(params, x, (self.before, after))

    def stream(
        self, params: Params, x: Array, state: Any, given: int = 0, axis: str | None = None
    ) -> tuple[Array, Any]:
        """With the last inputs before these."""
        check_multiple(self, x, self.multiple)
        every, state = with_last(x, state, axis)
        every = every[:, : self.reach + x.shape[1]]
        return self._made(params, every, (0, 1 - self.stride)), state

    def _made(self, params: Params, x: Array, pads: tuple[int, int]) -> Array:
        how: Any = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return convolve(x, _weight(self, params), params.get("bias"), pads=[pads], **how)


@dataclasses.dataclass(frozen=True)
class Transposed(Node):
    """y[n stride + k - crop] = b + sum over n and k of w[k] x[n]: `stride` outputs for each input.

    Attributes:
      out: channels of the output; as many as the input has if 0.
      kernel: taps, K.
      stride: outputs from an input to the next.
      crop: outputs that are cut at the beginning, which is how far it sees ahead.
      bias: whether there is one.
      normed: as in `Convolution`.
    """

    out: Count = 0
    kernel: Size = 1
    stride: Size = 1
    crop: Count = 0
    bias: bool = True
    normed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop >= self.kernel:
            raise UserError(f"Transposed.crop={self.crop} must be below its kernel={self.kernel}")

    @property
    def ratio(self) -> Fraction:
        """A stride of outputs for each input."""
        return Fraction(self.stride)

    @property
    def field(self) -> int:
        """Inputs that an output is a sum of."""
        return self._earlier + 1

    @property
    def _earlier(self) -> int:
        """Earlier inputs that an output is a sum of, beside the current one."""
        return (self.kernel - 1) // self.stride

    def delay(self, given: int = 0) -> int:
        """The crop, beside what enters late."""
        return self.crop + self.stride * given

    def features(self, width: int) -> int:
        """As declared."""
        return self.out or width

    def table(self, width: int) -> Table:
        """weight [K, D, F]; bias and gain [F] where there are any."""
        return _filters(self, width, -(-self.kernel // self.stride), 1, self.kernel)

    def state_table(self, batch: int, width: int, given: int = 0) -> Any:
        """The last inputs: no sum of outputs, into which the bias could come twice."""
        return kept(batch, self._earlier, width)

    def __call__(self, params: Params, x: Array) -> Array:
        """Cut to a stride of outputs for each input."""
        end = self.kernel - self.stride - self.crop
        return self._made(params, x, (self.crop, end))

    def stream(
        self, params: Params, x: Array, state: Any, given: int = 0, axis: str | None = None
    ) -> tuple[Array, Any]:
        """With the last inputs before these."""
        every, state = with_last(x, state, axis)
        crops = (self._earlier * self.stride, self.kernel - self.stride)
        return self._made(params, every, crops), state

    def _made(self, params: Params, x: Array, crops: tuple[int, int]) -> Array:
        weight, bias = _weight(self, params), params.get("bias")
        return transposed(x, weight, bias, stride=self.stride, crops=[crops])


@dataclasses.dataclass(frozen=True)
class Repeat(Node):
    """Each input so many times.

    Attributes:
      times: outputs for each input.
    """

    times: Size = 1

    @property
    def ratio(self) -> Fraction:
        """So many outputs for each input."""
        return Fraction(self.times)

    def __call__(self, params: Params, x: Array) -> Array:
        """Each input so many times."""
        return jnp.repeat(x, self.times, axis=1)

    def stream(
        self, params: Params, x: Array, state: Any, given: int = 0, axis: str | None = None
    ) -> tuple[Array, Any]:
        """The same of a chunk."""
        return self(params, x), state


def _halves(x: Array) -> Array:
    """The phase of pairs: real parts in the first half of the channels, imaginary ones behind."""
    return phase_of(*jnp.split(x, 2, axis=-1))


POINTWISE: Mapping[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "leaky_relu": functools.partial(jax.nn.leaky_relu, negative_slope=0.01),
    "leaky_relu_0.1": functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
    "leaky_relu_0.2": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    "phase": _halves,
}
"""Functions of one sample; "phase" makes an angle of two channels."""


@dataclasses.dataclass(frozen=True)
class Pointwise(Node):
    """A function of each sample by itself.

    Attributes:
      name: of the function, in `POINTWISE`.
    """

    name: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in POINTWISE:
            raise UserError(f"Pointwise.name='{self.name}' is not one of {', '.join(POINTWISE)}")

    def features(self, width: int) -> int:
        """Half as many for "phase"."""
        return width // 2 if self.name == "phase" else width

    def __call__(self, params: Params, x: Array) -> Array:
        """The function."""
        return POINTWISE[self.name](x)

    def stream(
        self, params: Params, x: Array, state: Any, given: int = 0, axis: str | None = None
    ) -> tuple[Array, Any]:
        """The function."""
        return self(params, x), state


def causal(network: Any) -> Any:
    """The network with all padding before its inputs: what streams if nothing is ever late.

    Parameters fit both, but it gives something else, since branches no longer meet in time.
    """
    if isinstance(network, Convolution):
        return dataclasses.replace(network, left=network.reach)
    if isinstance(network, Transposed):
        return dataclasses.replace(network, crop=0)
    if isinstance(network, Sequential):
        return Sequential(tuple(map(causal, network.nodes)))
    if isinstance(network, Parallel):
        return Parallel(tuple(map(causal, network.branches)), network.meet)
    return network


def _filters(
    node: Convolution | Transposed, width: int, taps: int, groups: int, kernel: int = 0
) -> Table:
    """weight, bias, gain; they begin as PyTorch's do, of `taps` taps that an output is a sum of."""
    out = node.out or width
    if width % groups or out % groups:
        raise UserError(f"Convolution.groups={groups} does not divide {width} and {out} channels")
    inputs = width // groups
    init, own = fan_in(taps * inputs), (out,)
    found = {"weight": Param((kernel or taps, inputs, out), (None, None, None), init)}
    if node.normed:
        # The expected norm of what is drawn: numbers of variance 1 / (3 taps inputs).
        norm = math.sqrt((kernel or taps) / (3 * taps))
        found["gain"] = Param(own, (None,), lambda key, shape: jnp.full(shape, norm), decay=False)
    if node.bias:
        found["bias"] = Param(own, (None,), init, decay=False)
    return found


def _weight(node: Convolution | Transposed, params: Params) -> Array:
    weight = params["weight"]
    if not node.normed:
        return weight
    return weight * (params["gain"] / jnp.sqrt(jnp.sum(jnp.square(weight), (0, 1))))
