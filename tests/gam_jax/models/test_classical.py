"""Six predictors give what scikit-learn's give, whole and split over two devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.models import classical
from sharding.mesh import make_mesh
from sharding.messages import messages_of
from tests.arrays import compiled, put, single

CLASSES, FEATURES, ROWS, ASKED, NEAR = 3, 6, 60, 20, 5


@pytest.fixture(scope="module")
def blobs():
    """Rows around three centres, their classes, and rows that are asked for."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 2, (CLASSES, FEATURES))
    labels = np.arange(ROWS + ASKED) % CLASSES
    x = (centres[labels] + rng.normal(0, 1.5, (ROWS + ASKED, FEATURES))).astype(np.float32)
    return x[:ROWS], labels[:ROWS].astype(np.int32), x[ROWS:]


@pytest.fixture(scope="module")
def cases(blobs):
    """Name -> (function of arrays and axis, arrays, what splits them, what scikit-learn says)."""
    pytest.importorskip("sklearn")
    from sklearn.cluster import KMeans
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import LinearSVC

    x, labels, asked = blobs
    found = {}
    features = P(None, "data"), P("data"), P()
    for name, model, function, says in (
        ("linear_svm", LinearSVC(), classical.linear_svm, "predict"),
        (
            "logistic_regression",
            LogisticRegression(),
            classical.logistic_regression,
            "predict_proba",
        ),
    ):
        model.fit(x, labels)
        arrays = asked, model.coef_.T, model.intercept_
        found[name] = function, arrays, features, getattr(model, says)(asked)
    bayes = GaussianNB().fit(x, labels)
    arrays = asked, bayes.theta_, bayes.var_, bayes.class_prior_
    whole = P(None, "data")
    expected = bayes.predict_joint_log_proba(asked)
    found["naive_bayes"] = classical.naive_bayes, arrays, (whole, whole, whole, P()), expected
    known = KNeighborsClassifier(NEAR, algorithm="brute").fit(x, labels)

    def neighbours(asked, x, labels, axis):
        return classical.neighbours(asked, x, labels, NEAR, CLASSES, axis)

    rows = P(), P("data"), P("data")
    found["neighbours"] = neighbours, (asked, x, labels), rows, known.predict(asked)
    begin = x[:CLASSES]
    means = KMeans(CLASSES, init=begin, n_init=1, max_iter=8, tol=0, algorithm="lloyd").fit(x)

    def kmeans(x, begin, axis):
        return classical.fit_kmeans(x, begin, 8, axis)

    found["kmeans"] = kmeans, (x, begin), (P("data"), P()), means.cluster_centers_
    trees = RandomForestClassifier(8, max_depth=4, random_state=0).fit(x, labels)
    packed = classical.pack_trees(
        [
            {name: getattr(tree.tree_, name) for name in ("feature", "threshold", "value")}
            | {
                f"children_{side}": getattr(tree.tree_, f"children_{side}")
                for side in ("left", "right")
            }
            for tree in trees.estimators_
        ]
    )

    def forest(asked, packed, axis):
        return classical.forest(asked, packed, 4, axis)

    found["forest"] = forest, (asked, packed), (P(), P("data")), trees.predict_proba(asked)
    return found


NAMES = ("linear_svm", "logistic_regression", "naive_bayes", "neighbours", "kmeans", "forest")


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_scikit_learn_gives_on_one_device_and_on_two(cases, name):
    function, arrays, specs, expected = cases[name]
    arrays = jax.tree.map(lambda x: put(x, jnp.float32 if x.dtype.kind == "f" else None), arrays)
    alone = jax.jit(functools.partial(function, axis=None))(*arrays)
    np.testing.assert_allclose(alone, expected, rtol=2e-5, atol=2e-5)
    mesh = make_mesh(data=2, devices=jax.devices()[:2])

    def split(*arrays):
        return function(*arrays, axis="data")

    mapped = jax.jit(jax.shard_map(split, mesh=mesh, in_specs=specs, out_specs=P()))
    np.testing.assert_allclose(mapped(*arrays), alone, rtol=2e-6, atol=2e-6)
    sent = {"neighbours": "all_gather"}.get(name, "all_reduce")
    assert {message.collective for message in messages_of(mapped, *arrays)} == {sent}


def test_of_equally_near_rows_the_first_count_and_of_equal_votes_the_lowest_class():
    rows = put([[1.0], [-1.0], [1.0], [-1.0]])
    labels = put([2, 1, 0, 0])
    asked = put([[0.0]])
    mesh = make_mesh(data=2, devices=jax.devices()[:2])

    def nearest(axis, *args):
        """By the nearest alone, and by the two nearest, which have one vote each for 2 and 1."""
        return [classical.neighbours(*args, count, 3, axis)[0] for count in (1, 2)]

    mapped = jax.shard_map(
        functools.partial(nearest, "data"),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    for found in (functools.partial(nearest, None), mapped):
        assert jax.jit(found)(asked, rows, labels) == [2, 1]


def test_of_two_classes_one_column_of_scores_decides():
    given = single(([[2.0], [-2.0]], [[1.0]], [0.0]))
    np.testing.assert_array_equal(compiled(classical.linear_svm, *given), [1, 0])
    chances = np.asarray(compiled(classical.logistic_regression, *given))
    np.testing.assert_allclose(chances[:, 1], 1 / (1 + np.exp([-2.0, 2.0])), rtol=1e-6)


def test_a_centre_without_rows_stays():
    x = put([[0.0], [1.0]])
    centres = jax.jit(classical.fit_kmeans, static_argnums=2)(x, put([[0.4], [9.0]]), 3)
    np.testing.assert_allclose(centres, [[0.5], [9.0]])
    np.testing.assert_array_equal(compiled(classical.assigned, x, put([[0.5], [0.5]])), [0, 0])
