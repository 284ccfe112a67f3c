"""The recurrence of single numbers against its equation."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from gam_jax.ops.scan import diagonal_scan
from gam_jax.ops.scan.diagonal import DIAGONAL_METHODS
from tests import scan_oracle
from tests.gam_jax.ops.test_scan import EXTREME, assert_close


@functools.partial(jax.jit, static_argnames=("how", "chunk"))
def run_and_pull(args, cotangents, starts=None, *, how, chunk):
    method, backend = how

    def function(log, write, state, begin):
        given = {"method": method, "chunk": chunk, "starts": starts, "begin": begin}
        return diagonal_scan(log, write, state=state, backend=backend, **given)

    outputs, pull = jax.vjp(function, *args)
    return outputs, pull(cotangents)


@pytest.mark.parametrize("how", [("chunked", "tpu"), *((m, "cpu") for m in DIAGONAL_METHODS)])
@pytest.mark.parametrize(
    ("shape", "packed"),
    [((37, 3), False), ((37, 3), True), ((16, 2, 3), False), ((5, 1), False)],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_equation(shape, packed, how):
    """Where rows are packed with documents, each of these begins with a state that is given."""
    random = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        log = np.log(random.choice(EXTREME, (2, *shape)))
    write, *states = (random.normal(size=(2, *n)) for n in (shape, shape[1:], shape[1:]))
    args = tuple(x.astype(np.float32) for x in (log, write, *states))
    cotangents = tuple(random.normal(size=x.shape).astype(np.float32) for x in args[1:3])
    starts = random.random((2, shape[0])) < 0.3 if packed else None
    outputs, gradients = run_and_pull(args, cotangents, starts, how=how, chunk=8)
    states, pull = scan_oracle.diagonal(*args[:3], starts, args[3])
    assert_close(outputs, (states, states[:, -1]))
    last = cotangents[0].astype(np.float64)
    last[:, -1] += cotangents[1]
    assert_close(gradients, pull(last))


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="'fast' is not one of chunked, associative, recurrent"):
        diagonal_scan(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), method="fast")
