"""Six classical predictors as pure functions, on one device or split over a mesh axis.

Each takes arrays, and the mesh axis that splits one of them inside `jax.shard_map`, or None. What
is split, and what is sent: arXiv 2107.09448 runs the same six on eight cores; its partitions are
the usual ones. Fitted values may come from scikit-learn; k-means is fitted here too, and what is
fitted of nearest neighbours is the rows themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


def _summed(x: Array, axis: str | None) -> Array:
    return x if axis is None else lax.psum(x, axis)


def linear_scores(
    x: Float[Array, "N D"],
    weights: Float[Array, "D C"],
    bias: Float[Array, " C"],
    axis: str | None = None,
) -> Float[Array, "N C"]:
    """Scores of classes, x W + b, of a linear support vector machine or logistic regression.

    The axis splits D: partial products are summed, N x C numbers are sent.
    """
    return _summed(x @ weights, axis) + bias


def linear_svm(
    x: Float[Array, "N D"],
    weights: Float[Array, "D C"],
    bias: Float[Array, " C"],
    axis: str | None = None,
) -> Int[Array, " N"]:
    """The class with the highest score; of one column, class 1 where it is above 0."""
    scores = linear_scores(x, weights, bias, axis)
    if scores.shape[-1] == 1:
        return (scores[:, 0] > 0).astype(jnp.int32)
    return jnp.argmax(scores, -1)


def logistic_regression(
    x: Float[Array, "N D"],
    weights: Float[Array, "D C"],
    bias: Float[Array, " C"],
    axis: str | None = None,
) -> Float[Array, "N C"]:
    """Probabilities of classes: the softmax of the scores; of one column, of two classes."""
    scores = linear_scores(x, weights, bias, axis)
    if scores.shape[-1] == 1:
        scores = jnp.concatenate([jnp.zeros_like(scores), scores], -1)
    return jax.nn.softmax(scores)


def naive_bayes(
    x: Float[Array, "N D"],
    means: Float[Array, "C D"],
    variances: Float[Array, "C D"],
    priors: Float[Array, " C"],
    axis: str | None = None,
) -> Float[Array, "N C"]:
    """Logarithms of joint likelihoods, each feature a Gaussian of its own in each class.

    The axis splits D: sums over features are summed, N x C numbers are sent.
    """
    off = (x[:, None] - means) ** 2 / variances + jnp.log(2 * jnp.pi * variances)
    return jnp.log(priors) - _summed(jnp.sum(off, -1), axis) / 2


def squared_distances(x: Float[Array, "N D"], rows: Float[Array, "R D"]) -> Float[Array, "N R"]:
    """Of each of N from each of R."""
    return jnp.sum((x[:, None] - rows) ** 2, -1)


def neighbours(
    x: Float[Array, "N D"],
    rows: Float[Array, "R D"],
    labels: Int[Array, " R"],
    count: int,
    classes: int,
    axis: str | None = None,
) -> Int[Array, " N"]:
    """The class that most of the nearest rows have.

    Of equally near rows the first ones count, of equally many votes the lowest class. The axis
    splits the rows, in order: each device sends its own nearest ones, distance and class.

    Args:
      x: what is asked.
      rows: what is known.
      labels: their classes.
      count: k, neighbours that vote.
      classes: C; labels are below it.
      axis: of the mesh, or None.
    """
    every = jnp.broadcast_to(labels, (len(x), len(rows)))
    near, found = _nearest(squared_distances(x, rows), every, count)
    if axis is not None:
        # Parts stand side by side in the order of their devices, so that first stays first.
        near, found = (
            lax.all_gather(part, axis, axis=1, tiled=True, to="invarying") for part in (near, found)
        )
        near, found = _nearest(near, found, count)
    return jnp.argmax(jnp.sum(jax.nn.one_hot(found, classes), 1), -1)


def _nearest(distances: Array, labels: Array, count: int) -> tuple[Array, Array]:
    """The `count` nearest of each row, the first of equal ones first, and their labels."""
    order = jnp.argsort(distances, -1, stable=True)[:, :count]
    return jnp.take_along_axis(distances, order, -1), jnp.take_along_axis(labels, order, -1)


def assigned(x: Float[Array, "N D"], centres: Float[Array, "K D"]) -> Int[Array, " N"]:
    """The nearest centre of each row, the first of equal ones; nothing is sent."""
    return jnp.argmin(squared_distances(x, centres), -1)


def fit_kmeans(
    x: Float[Array, "N D"],
    centres: Float[Array, "K D"],
    steps: int,
    axis: str | None = None,
) -> Float[Array, "K D"]:
    """Lloyd's steps: rows go to the nearest centre, centres to the mean of their rows.

    A centre without rows stays where it is. The axis splits the rows: a step sends the K sums
    and counts, K (D + 1) numbers.
    """
    count = len(centres)

    def step(_: int, centres: Array) -> Array:
        ours = jax.nn.one_hot(assigned(x, centres), count, dtype=x.dtype)  # [N, K]
        both = _summed(jnp.concatenate([ours.T @ x, jnp.sum(ours, 0)[:, None]], 1), axis)
        sums, members = both[:, :-1], both[:, -1:]
        return jnp.where(members > 0, sums / jnp.maximum(members, 1), centres)

    return lax.fori_loop(0, steps, step, centres)


class Trees(NamedTuple):
    """Trees of decisions, padded to as many nodes: arrays [T, nodes], values [T, nodes, C].

    Attributes:
      feature: that a node asks; 0 at a leaf.
      threshold: x goes left where its feature is at most that.
      left, right: the next node; a leaf's own number at a leaf.
      values: probabilities of classes at a leaf.
    """

    feature: Int[Array, "T nodes"]
    threshold: Float[Array, "T nodes"]
    left: Int[Array, "T nodes"]
    right: Int[Array, "T nodes"]
    values: Float[Array, "T nodes C"]


def pack_trees(trees: Sequence[Mapping[str, np.ndarray]]) -> Trees:
    """Trees as scikit-learn keeps them in `tree_`, as arrays of one shape.

    Args:
      trees: each with children_left, children_right, feature, threshold [nodes], and value
        [nodes, 1, C]; a child of -1 is a leaf's.

    Returns:
      The same decisions on x in float32: thresholds are rounded down, so that x <= threshold
      says what it says in float64.
    """
    nodes = max(len(tree["feature"]) for tree in trees)

    def padded(part: np.ndarray, dtype: type) -> np.ndarray:
        return np.pad(part, [(0, nodes - len(part)), *[(0, 0)] * (part.ndim - 1)]).astype(dtype)

    found: dict[str, list[np.ndarray]] = {name: [] for name in Trees._fields}
    for tree in trees:
        leaf = tree["children_left"] < 0
        own = np.arange(len(leaf))
        wide = np.asarray(tree["threshold"], np.float64)
        narrow = wide.astype(np.float32)
        narrow = np.where(narrow > wide, np.nextafter(narrow, np.float32(-np.inf)), narrow)
        values = tree["value"][:, 0] / tree["value"][:, 0].sum(-1, keepdims=True)
        found["feature"].append(padded(np.where(leaf, 0, tree["feature"]), np.int32))
        found["threshold"].append(padded(narrow, np.float32))
        found["left"].append(padded(np.where(leaf, own, tree["children_left"]), np.int32))
        found["right"].append(padded(np.where(leaf, own, tree["children_right"]), np.int32))
        found["values"].append(padded(values, np.float32))
    return Trees(*(jnp.asarray(np.stack(found[name])) for name in Trees._fields))


def forest(
    x: Float[Array, "N D"], trees: Trees, depth: int, axis: str | None = None
) -> Float[Array, "N C"]:
    """Probabilities of classes, the mean over all trees.

    The axis splits the trees, evenly: sums of their probabilities are summed, N x C numbers.

    Args:
      x: what is asked.
      trees: of this device.
      depth: of the deepest tree: questions that are asked.
      axis: of the mesh, or None.
    """

    def one(tree: Trees) -> Array:
        def ask(_: int, node: Array) -> Array:
            value = jnp.take_along_axis(x, tree.feature[node][:, None], 1)[:, 0]
            return jnp.where(value <= tree.threshold[node], tree.left[node], tree.right[node])

        root = jnp.zeros(len(x), jnp.int32)
        if axis is not None:
            root = lax.pcast(root, axis, to="varying")
        return tree.values[lax.fori_loop(0, depth, ask, root)]

    votes = jnp.sum(jax.vmap(one)(trees), 0)
    count = len(trees.feature) * (1 if axis is None else lax.axis_size(axis))
    return _summed(votes, axis) / count
