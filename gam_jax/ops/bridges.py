"""A long signal from anchors and the bridges between them, all bridges at once.

Frames 0, S, 2 S, ... begin the segments of a Gaussian signal; the first `width` frames of each are
its anchor, and the last anchor has no segment of its own: N = M S + width. The anchors are drawn
first. Then each segment is drawn from what lies at both its ends and nothing else, on a device of
its own if there are as many. Where the signal remembers no more than `width` frames (AR(p) with
p <= width) segments are independent given their anchors, and the law is that of the whole signal.

The scheme is that of Kling-Avatar (arXiv 2509.09595), which draws a clip between two key frames.
Covariances are NumPy arrays of float64.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives
from sharding.axes import Axes
from sharding.errors import UserError


def autoregressive_covariance(coefficients: tuple[float, ...], frames: int) -> np.ndarray:
    """Of the stationary x[t] = sum_k coefficients[k - 1] x[t - k] + a unit normal: [N, N].

    Its first p + 1 entries solve the equations of Yule and Walker, the others follow from them.

    Args:
      coefficients: of the p frames before, the nearest first.
      frames: N.

    Raises:
      UserError: the signal has no stationary law.
    """
    order = len(coefficients)
    companion = np.diag(np.ones(order - 1), -1)
    companion[0] = coefficients
    if np.max(np.abs(np.linalg.eigvals(companion))) >= 1:
        raise UserError(f"coefficients {coefficients}: such a signal grows without bound")
    system = np.eye(order + 1)
    for lag in range(order + 1):
        for back, value in enumerate(coefficients, 1):
            system[lag, abs(lag - back)] -= value
    found = list(np.linalg.solve(system, np.eye(order + 1)[0]))
    while len(found) < frames:
        found.append(float(np.dot(coefficients, found[: -order - 1 : -1])))
    places = np.arange(frames)
    return np.asarray(found)[np.abs(places[:, None] - places)]


class Bridge(NamedTuple):
    """How a segment is drawn: `weights` times both its anchors, plus `factor` times unit normals.

    Attributes:
      weights: [S - width, 2 width], of the left anchor and then of the right one.
      factor: [S - width, S - width], lower triangular.
    """

    weights: np.ndarray
    factor: np.ndarray

    @property
    def width(self) -> int:
        """Frames of an anchor."""
        return self.weights.shape[1] // 2

    @property
    def span(self) -> int:
        """S, frames from a segment's first to that of the next."""
        return self.width + len(self.factor)


def conditional(
    covariance: np.ndarray, wanted: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The law of some frames given others: weights of those given, and the covariance that is left.

    Args:
      covariance: of all frames.
      wanted: places of the frames that are drawn.
      given: places of those that are known.
    """
    across = covariance[np.ix_(wanted, given)]
    weights = np.linalg.solve(covariance[np.ix_(given, given)], across.T).T
    return weights, covariance[np.ix_(wanted, wanted)] - weights @ across.T


def bridge(covariance: np.ndarray, span: int, width: int = 1) -> Bridge:
    """The bridge of every segment, from the covariance of the signal's first S + width frames.

    Args:
      covariance: of a signal for which all segments are alike: [N, N] with N >= S + width.
      span: S.
      width: frames of an anchor, below S.

    Raises:
      UserError: sizes that leave nothing to draw.
    """
    if not 1 <= width < span or len(covariance) < span + width:
        raise UserError(f"a bridge of span {span} and anchors of {width} frames: 1 <= width < span")
    inside = np.arange(width, span)
    ends = np.concatenate([np.arange(width), span + np.arange(width)])
    weights, rest = conditional(covariance, inside, ends)
    return Bridge(weights, np.linalg.cholesky(rest))


def anchor_frames(segments: int, span: int, width: int) -> np.ndarray:
    """Places of the anchors' frames: [M + 1, width]."""
    return span * np.arange(segments + 1)[:, None] + np.arange(width)


def bridged_covariance(covariance: np.ndarray, span: int, width: int = 1) -> np.ndarray:
    """What anchors of the right law and bridges between them give, in closed form: [N, N].

    Args:
      covariance: of the whole signal, N = M S + width.
      span: S.
      width: frames of an anchor.

    Raises:
      UserError: N is no such number.
    """
    segments, rest = divmod(len(covariance) - width, span)
    if rest or segments < 1:
        raise UserError(f"{len(covariance)} frames are not M x {span} + {width}")
    made, frames = bridge(covariance, span, width), len(covariance)
    anchors, inside = anchor_frames(segments, span, width), span - width
    of_anchors = np.zeros((frames, anchors.size))
    of_noise = np.zeros((frames, segments * inside))
    of_anchors[anchors.ravel(), np.arange(anchors.size)] = 1
    for number in range(segments):
        rows = number * span + width + np.arange(inside)
        of_anchors[np.ix_(rows, number * width + np.arange(2 * width))] = made.weights
        of_noise[np.ix_(rows, number * inside + np.arange(inside))] = made.factor
    joint = covariance[np.ix_(anchors.ravel(), anchors.ravel())]
    return of_anchors @ joint @ of_anchors.T + of_noise @ of_noise.T


def draw_anchors(
    covariance: np.ndarray, span: int, width: int, key: Array, rows: int
) -> Float[Array, "B M1 W"]:
    """Anchors of so many signals from their joint law: what the first of both stages gives.

    Args:
      covariance: of the whole signal.
      span: S.
      width: frames of an anchor.
      key: random key.
      rows: B.
    """
    places = anchor_frames((len(covariance) - width) // span, span, width)
    joint = covariance[np.ix_(places.ravel(), places.ravel())]
    factor = jnp.asarray(np.linalg.cholesky(joint), jnp.float32)
    drawn = jax.random.normal(key, (rows, places.size)) @ factor.T
    return drawn.reshape(rows, *places.shape)


def draw_segments(
    made: Bridge, anchors: Float[Array, "B M1 W"], key: Array, axes: Axes = Axes()
) -> Float[Array, "B M SW"]:
    """Segments with both their anchors, each drawn by itself; no message is sent.

    A segment's noise depends on the key, its number in the whole signal and its row's in the whole
    batch, so that any number of devices along `axes.seq` and those of rows draws the same.

    Args:
      made: the bridge.
      anchors: all of them, of this device's rows.
      key: random key.
      axes: mesh axes; `seq` splits the segments, `data` and `expert` the rows.

    Returns:
      This device's segments, S + width frames each: a segment's last `width` frames are the next
      one's first, bit for bit.

    Raises:
      UserError: segments that do not divide over the devices, or anchors of another width.
    """
    rows, parts = anchors.shape[0], collectives.axis_size(axes.seq)
    segments, width = anchors.shape[1] - 1, made.width
    if segments % parts or anchors.shape[2] != width:
        raise UserError(
            f"{segments} segments between anchors of {anchors.shape[2]} frames, over {parts} "
            f"devices: bridges of width {width} need a multiple of the devices, and their own width"
        )
    own = segments // parts
    numbers = collectives.axis_index(axes.seq) * own + jnp.arange(own)
    ends = jnp.stack([anchors[:, numbers], anchors[:, numbers + 1]], 2)

    first = collectives.axis_index(axes.rows) * rows
    shape = collectives.axis_size(axes.rows) * rows, made.span - width

    def noise(number: Array) -> Array:
        """Of this device's rows among those of all."""
        drawn = jax.random.normal(jax.random.fold_in(key, number), shape)
        return lax.dynamic_slice_in_dim(drawn, first, rows)

    z = jax.vmap(noise, out_axes=1)(numbers)
    weights, factor = (jnp.asarray(x, jnp.float32) for x in made)
    inside = ends.reshape(rows, own, 2 * width) @ weights.T + z @ factor.T
    return jnp.concatenate([ends[:, :, 0], inside, ends[:, :, 1]], -1)


def joined(segments: Float[Array, "B M SW"], width: int) -> Float[Array, "B N"]:
    """The signal of all its segments: each without its last anchor, and the last one with it.

    Args:
      segments: of S + width frames.
      width: frames of an anchor.
    """
    kept = segments[:, :, : segments.shape[2] - width]
    return jnp.concatenate([kept.reshape(len(segments), -1), segments[:, -1, -width:]], 1)
