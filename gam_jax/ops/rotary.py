"""Rotary positions, and the ways to stretch them over longer sequences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float, Int

from sharding.bounds import Count, Positive, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class Positions:
    """How the angles of rotary positions are stretched, and which channels are turned.

    Kinds, each a rule for the angle that a pair of channels turns by from one token to the next:

    - default: theta^(-2i/R) for pair i of R turned channels.
    - linear: all `factor` times slower (Chen et al. 2023, arXiv 2306.15595).
    - dynamic: a larger theta for sequences longer than `original`, see `length`; as it is
      otherwise (the "dynamic NTK" rule, as Hugging Face transformers computes it).
    - yarn: pairs that turn less than `slow` times in `original` tokens turn `factor` times slower,
      those that turn more than `fast` times as before, between them a straight line over pairs
      (Peng et al. 2023, arXiv 2309.00071, section 3.2).
    - llama3: likewise, with the line over turns (Llama 3.1's; arXiv 2407.21783).
    - longrope: each pair is slowed by a number of its own, out of `short` for sequences of at most
      `original` tokens and out of `long` for longer ones (Ding et al. 2024, arXiv 2402.13753).

    Attributes:
      kind: one of `KINDS`.
      factor: how many times longer the sequences are to be.
      original: tokens of the training.
      fast, slow: turns in `original` tokens. Of llama3: its high and low frequency factor.
      whole: of yarn: whether the ends of the line are whole pairs.
      scale: turned channels of queries and keys are multiplied by this.
      short, long: of longrope: a divisor for each pair.
      turned: R, how many channels of a head are turned, the first ones; 0 for all.
      neighbours: whether pairs are channels (2i, 2i + 1), as in the paper; if not, they are
        (i, i + R/2), as in most published models.
      length: tokens of the sequences, which dynamic and longrope ask for; 0 for at most `original`.
        It is the same for all tokens of a sequence, so that a sequence read in pieces is turned as
        one read at once. `Layer.for_length` sets it; a call on a whole sequence does so by itself.
    """

    kind: str = "default"
    factor: Positive = 1.0
    original: Size = 4096
    fast: Positive = 32.0
    slow: Positive = 1.0
    whole: bool = True
    scale: Positive = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    turned: Count = 0
    neighbours: bool = False
    length: Count = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.kind not in KINDS:
            raise ValueError(f"Positions.kind '{self.kind}' is not one of {', '.join(KINDS)}")
        if self.turned % 2:
            raise ValueError(f"Positions.turned={self.turned} is odd: channels turn in pairs")
        if self.kind == "llama3" and self.fast <= self.slow:
            raise ValueError(
                f"Positions.fast={self.fast:g} must be above slow={self.slow:g} for llama3"
            )
        self._check_divisors()

    def _check_divisors(self) -> None:
        wanted = self.kind == "longrope"
        for name in ("short", "long"):
            value = getattr(self, name)
            if bool(value) != wanted:
                raise ValueError(
                    f"Positions.{name} is for kind='longrope', which needs it: "
                    f"it has {len(value)} numbers with kind='{self.kind}'"
                )
            if not all(math.isfinite(x) and x > 0 for x in value):
                raise ValueError(f"Positions.{name} must hold finite numbers above 0")

    def for_length(self, tokens: int) -> Positions:
        """These positions for sequences of that many tokens."""
        if self.kind not in LENGTHS or tokens <= self.original:
            return dataclasses.replace(self, length=0)
        tokens = tokens if self.kind == "dynamic" else self.original + 1
        return dataclasses.replace(self, length=tokens)

    @property
    def reach(self) -> float:
        """The most tokens of a sequence that these angles are for."""
        if self.kind not in LENGTHS or (self.kind == "longrope" and self.length):
            return math.inf
        return max(self.original, self.length)

    def reaching(self, tokens: int, whole: bool) -> Positions:
        """The positions for a call that reaches so many tokens.

        Args:
          tokens: of the call, and those before it as far as they are known.
          whole: whether the call is one whole sequence, so that its length is known.

        Raises:
          ValueError: a part of a sequence that is longer than these angles are for: its other
            parts may have been turned otherwise.
        """
        if tokens <= self.reach:
            return self
        if whole and not self.length:
            return self.for_length(tokens)
        raise ValueError(
            f"{tokens} tokens in parts are more than the {self.reach} that {self.kind} positions "
            f"are set for here: make the model by model.for_length(tokens)"
        )

    def speeds(self, theta: float, size: int) -> np.ndarray:
        """The angle of each pair from a token to the next, float64 [R/2].

        Args:
          theta: base of the wavelengths.
          size: channels of a head.

        Raises:
          ValueError: more turned channels than the head has, or divisors for another number.
        """
        turned = self.turned or size
        if turned > size or turned % 2:
            raise ValueError(f"Positions: {turned} turned channels in a head of {size}")
        plain = theta ** (-np.arange(0, turned, 2) / turned)
        return KINDS[self.kind](self, theta, plain)


def _default(positions: Positions, theta: float, plain: np.ndarray) -> np.ndarray:
    return plain


def _linear(positions: Positions, theta: float, plain: np.ndarray) -> np.ndarray:
    return plain / positions.factor


def _dynamic(positions: Positions, theta: float, plain: np.ndarray) -> np.ndarray:
    """theta grows by (factor * length / original - factor + 1)^(R / (R - 2))."""
    longer = max(positions.length, positions.original) / positions.original
    channels = 2 * len(plain)
    if channels == 2:  # its one pair turns by 1, whatever theta
        return plain
    theta *= (positions.factor * (longer - 1) + 1) ** (channels / (channels - 2))
    return theta ** (-np.arange(0, channels, 2) / channels)


def _yarn(positions: Positions, theta: float, plain: np.ndarray) -> np.ndarray:
    half = len(plain)
    if theta == 1:
        raise ValueError("Positions: yarn needs another base than 1, by which all pairs turn alike")

    def pair(turns: float) -> float:
        """The pair (as a real number) that turns so often in the training's tokens."""
        return half * math.log(positions.original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair(positions.fast), pair(positions.slow)
    if positions.whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = (np.arange(half) - low) / (high - low if high != low else 1e-3)
    slowed = np.clip(ramp, 0, 1)
    return plain * (1 - slowed + slowed / positions.factor)


def _llama3(positions: Positions, theta: float, plain: np.ndarray) -> np.ndarray:
    turns = positions.original * plain / (2 * math.pi)
    kept = np.clip((turns - positions.slow) / (positions.fast - positions.slow), 0, 1)
    return plain * (kept + (1 - kept) / positions.factor)


def _longrope(positions: Positions, theta: float, plain: np.ndarray) -> np.ndarray:
    name = "long" if positions.length > positions.original else "short"
    divisors = getattr(positions, name)
    if len(divisors) != len(plain):
        raise ValueError(
            f"Positions.{name} has {len(divisors)} numbers, and there are {len(plain)} pairs"
        )
    return plain / np.asarray(divisors)


KINDS: Mapping[str, Callable[[Positions, float, np.ndarray], np.ndarray]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
"""Kind -> (positions, theta, angles of the default) -> angles."""
LENGTHS = ("dynamic", "longrope")
"""Kinds whose angles depend on how long a sequence is."""


def rotary(
    x: Float[Array, "B T H K"],
    places: Int[Array, "... T"],
    theta: float,
    positions: Positions = Positions(),
) -> Float[Array, "B T H K"]:
    """Turns pairs of channels of each head by the angle place * `positions.speeds`.

    The product of a turned query and a turned key depends on how far apart they stand alone.
    Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864), eq. 34.

    Args:
      x: queries or keys.
      places: of each token in the whole sequence, [T], or [B, T] where rows stand at unlike places.
      theta: base of the wavelengths, usually 10,000 or more.
      positions: which channels turn, and how fast.

    Returns:
      The dtype of x; angles in float32.
    """
    speeds = jnp.asarray(positions.speeds(theta, x.shape[-1]), jnp.float32)
    with set_xla_metadata(inlineable="false"):
        cos, sin = _cos_and_sin(places.astype(jnp.float32)[..., None, None] * speeds)
    if positions.scale != 1:
        cos, sin = positions.scale * cos, positions.scale * sin
    turned, rest = jnp.split(x, [2 * speeds.size], axis=-1)
    turned = turned.astype(jnp.float32)
    if positions.neighbours:
        pairs = turned.reshape(*turned.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = jnp.split(turned, 2, axis=-1)
    both = [first * cos - second * sin, second * cos + first * sin]
    if positions.neighbours:
        found = jnp.stack(both, axis=-1).reshape(turned.shape)
    else:
        found = jnp.concatenate(both, axis=-1)
    found = found.astype(x.dtype)
    return jnp.concatenate([found, rest], axis=-1) if rest.shape[-1] else found


# A function of its own in the compiled program too: fused into what follows, a processor would
# find both again for each head, which takes eight times as long with eight heads.
@jax.jit
def _cos_and_sin(angles: Float[Array, "... T 1 F"]) -> tuple[Array, Array]:
    return jnp.cos(angles), jnp.sin(angles)
