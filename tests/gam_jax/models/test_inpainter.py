"""Two paths of one decoder: sizes, what passes, what the coarse path changes, and patches."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.data import Holes
from gam_jax.models.inpainter import CASCADE, ONE, Inpainter
from gam_jax.ops.patches import contextual, overlapped, patches
from gam_jax.params import count_params
from gam_jax.training.step import make_gradients, put_batch
from sharding.errors import UserError
from tests.arrays import compiled, put
from tests.examples import random_like
from tests.meshes import assert_leaves_close, layout_of

MODEL = Inpainter(2, 1, 1, (1, 2), shared=True)
DATA = Holes(side=8, hole=3, fade=4, scored=4)


def test_sizes_are_those_of_the_released_generator():
    table = Inpainter(channels=3).table()
    sizes = {name: count_params(part) for name, part in table.items()}
    assert sizes == {"encoder": 2_937_184, "mixer": 131_328, "decoder": 588_435}
    one_kernel = count_params(Inpainter(channels=3, shared=True).table())
    assert count_params(table) - one_kernel == 3 * 9 * 256 * 256 - 2 * 4 * 256
    first = Inpainter(channels=3, paths=CASCADE).table()["first"]
    assert count_params(first) == sizes["encoder"] + sizes["decoder"]


def read(x, known):
    """Float64, patch by patch."""
    e, hole = np.asarray(x, np.float64), 1 - np.asarray(known, np.float64)
    height, width, channels = e.shape
    masked, around = e * (1 - hole), np.pad(e, ((1, 1), (1, 1), (0, 0)))
    keys = [masked[a : a + 3, b : b + 3] for a in range(height - 2) for b in range(width - 2)]
    total = np.zeros((height + 2, width + 2, channels))
    for a in range(height):
        for b in range(width):
            d = np.array([np.sum((around[a : a + 3, b : b + 3] - key) ** 2) for key in keys])
            weights = np.exp(-50 * np.tanh((d - d.mean()) / d.std()))
            mixed = np.tensordot(weights / weights.sum(), keys, 1)
            total[a : a + 3, b : b + 3] += mixed / 9
    return e * (1 - hole) + total[1:-1, 1:-1] * hole


def test_the_hole_is_read_from_patches_as_a_plain_loop_reads_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5, 6, 3)).astype(np.float32)
    known = np.ones((1, 5, 6, 1), np.float32)
    known[0, 1:3, 2:5] = 0
    found = jax.jit(contextual)(x, known)[0]
    np.testing.assert_allclose(found, read(x[0], known[0]), atol=2e-4)
    np.testing.assert_array_equal(found[known[0, ..., 0] > 0], x[0][known[0, ..., 0] > 0])


def test_patches_laid_over_each_other_count_how_many_meet():
    ones = np.ones((1, 4, 5, 2), np.float32)
    found = np.asarray(jax.jit(lambda x: overlapped(patches(x, pad=1), 4, 5))(ones))[0, ..., 0]
    meet = np.minimum(np.arange(5), 1) + np.minimum(np.arange(5)[::-1], 1) + 1
    np.testing.assert_array_equal(found, meet[:4][[0, 1, 1, 0]][:, None] * meet)


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(model, coarse, params, images, known):
    return model.both(params, images, known, coarse)


@pytest.fixture(scope="module")
def given():
    rows = [DATA.row(0, number) for number in range(2)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    params = jax.tree.map(lambda x: put(0.3 * np.asarray(x)), random_like(MODEL.table()))
    return params, batch


def test_both_decodings_at_once_are_both_and_the_result_does_not_need_the_coarse_one(given):
    params, batch = given
    images, known = batch["images"], batch["known"]
    made, rough = map(np.asarray, call(MODEL, True, params, images, known))
    alone, none = call(MODEL, False, params, images, known)
    one, _ = call(dataclasses.replace(MODEL, paths=ONE), True, params, images, known)
    assert none is None
    np.testing.assert_allclose(made, alone, atol=1e-6)
    np.testing.assert_array_equal(alone, one)
    x = compiled(MODEL.encode, params["encoder"], images * known, known)
    np.testing.assert_allclose(compiled(MODEL.decode, params["decoder"], x), rough, atol=1e-6)
    assert np.abs(made - rough).max() > 1e-3


def test_known_pixels_pass_and_what_the_hole_hides_is_not_read(given):
    params, batch = given
    images, known = batch["images"], batch["known"]
    run = jax.jit(MODEL.__call__)
    made = np.asarray(run(params, images, known))
    shown = np.broadcast_to(known, images.shape) > 0
    np.testing.assert_array_equal(made[shown], images[shown])
    other = np.where(shown, images, 7.0)
    np.testing.assert_array_equal(run(params, other, known), made)


def test_the_coarse_path_teaches_until_it_has_faded(given):
    params, batch = given
    assert [DATA.row(0, n)["coarse"] for n in (0, 1, 4, 9)] == [1, 0.75, 0, 0]
    opened = DATA.open()
    assert not opened.held_out[""]["coarse"].any()
    assert Inpainter(halvings=1).fitted(opened).channels == 1

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(model, coarse):
        own = {**batch, "coarse": jnp.full(2, coarse)}
        return jax.grad(lambda p: model.objective(p, own)[0])(params)

    one = gradient(dataclasses.replace(MODEL, paths=ONE), 1.0)
    assert_leaves_close(gradient(MODEL, 0.0), one, 1e-5)
    more = np.asarray(gradient(MODEL, 1.0)["encoder"]["conv_0"]["weight"])
    assert np.abs(more - one["encoder"]["conv_0"]["weight"]).max() > 1e-3


def test_one_kernel_with_its_first_scales_is_the_plain_dilated_convolution(given):
    params, batch = given
    plain = dataclasses.replace(MODEL, shared=False)
    kernel = params["encoder"]["kernel"]
    own, other = dict(params["encoder"]), dict(params["encoder"])
    for rate in MODEL.rates:
        bias = own[f"rate_{rate}"]["bias"]
        own[f"rate_{rate}"] = {"scale": put([1.0] * 4), "shift": put([0.0] * 4), "bias": bias}
        other[f"rate_{rate}"] = {"weight": kernel, "bias": bias}
    images, known = batch["images"], batch["known"]
    found = compiled(MODEL.encode, own, images, known)
    wanted = compiled(plain.encode, other, images, known)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.slow
def test_rows_over_devices_have_the_gradients_of_one(given):
    params, _ = given
    batch = dict(next(DATA.open().train_stream(4, seed=0)))
    found = []
    for shape in ((1, 1, 1), (4, 1, 1)):
        layout = layout_of(shape, "data")
        placed = put_batch(MODEL, layout, batch)
        run = jax.jit(make_gradients(MODEL, layout))
        found.append(jax.tree.map(np.asarray, run(params, placed, jax.random.key(0))))
    assert_leaves_close(found[1], found[0], 3e-5)


def test_what_does_not_fit_is_refused():
    for change, says in (
        ({"paths": "three"}, "two, one, cascade"),
        ({"rates": ()}, "from 1 to 64"),
        ({"width": 3}, "an even width"),
    ):
        with pytest.raises(UserError, match=says):
            dataclasses.replace(MODEL, **change)
    with pytest.raises(UserError, match="less than the side"):
        Holes(side=8, hole=8)
    with pytest.raises(UserError, match=r"model\.channels=3"):
        dataclasses.replace(MODEL, channels=3).fitted(DATA.open())
    for side, halvings, says in ((30, 2, "a multiple of 4"), (8, 2, "from 12 on")):
        model = dataclasses.replace(MODEL, halvings=halvings)
        with pytest.raises(UserError, match=says):
            model.fitted(Holes(side=side, hole=2, scored=1).open())
        picture = np.ones((1, side, side, 1), np.float32)
        with pytest.raises(UserError, match=says):
            model({}, picture, picture)
    with pytest.raises(UserError, match="no patch of 3 x 3"):
        contextual(*np.ones((2, 1, 5, 2, 1), np.float32))
