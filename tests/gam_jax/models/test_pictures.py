"""Several pictures at once: adapters that begin as nothing, rows, order, and views over devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.data import BoxViews, MovingSquares
from gam_jax.layers.pictures import FULL, ROWS, TIME, BetweenPictures, exchanged_bytes
from gam_jax.models.pictures import ADAPTERS, PictureDenoiser
from gam_jax.optimizer import OptimizerConfig, make_optimizer, trained
from gam_jax.params import abstract_params, names_of
from gam_jax.training.state import init_state
from gam_jax.training.step import make_eval_step, make_gradients, put_batch
from sharding.errors import UserError
from sharding.messages import Message, messages_of
from tests.examples import random_like
from tests.meshes import assert_leaves_close, layout_of

SMALL = {"width": 8, "depth": 2, "heads": 2, "patch": 2}
BASE = PictureDenoiser(**SMALL, pictures=1, side=8, channels=3)
MODEL = dataclasses.replace(BASE, sees=ROWS, guided=True, pictures=4)
DATA = BoxViews(views=4, side=8, scored=2)


@functools.cache
def batch(rows, views):
    """As the model reads it."""
    drawn = [dataclasses.replace(DATA, views=views).row(0, number) for number in range(rows)]
    return {name: np.stack([row[name] for row in drawn]) for name in drawn[0]}


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, given):
    return model(params, given["pictures"], given["time"], given)


def drawn(table):
    return jax.tree.map(lambda x: 0.5 * x, random_like(table))


FROZEN = drawn(BASE.table())


@functools.cache
def alone(views):
    """What the frozen model gives for each picture by itself."""
    given = batch(2, views)
    each = {"pictures": given["pictures"].reshape(-1, 1, 8, 8, 3)}
    each["time"] = np.repeat(given["time"], views)
    return np.asarray(run(BASE, FROZEN, each)).reshape(given["pictures"].shape)


@pytest.mark.parametrize(
    ("views", "sees", "beside", "copied"),
    [
        (3, ROWS, True, True),
        (2, ROWS, False, True),
        pytest.param(2, FULL, True, False, marks=pytest.mark.slow),
        pytest.param(1, TIME, False, False, marks=pytest.mark.slow),
    ],
)
def test_it_begins_as_the_frozen_model_for_any_number_of_views(views, sees, beside, copied):
    model = dataclasses.replace(MODEL, pictures=views, sees=sees, beside=beside)
    begin = jax.jit(functools.partial(model.begun, copied=copied))
    params = begin(FROZEN, jax.random.key(0))
    np.testing.assert_allclose(run(model, params, batch(2, views)), alone(views), atol=2e-6)
    own, other = (params["block_1"][name] for name in ("within", "between"))
    assert np.array_equal(own["query"], other["attention"]["query"]) == copied
    if copied and not beside:
        np.testing.assert_array_equal(params["block_1"]["norm_0"]["scale"], other["norm"]["scale"])


@pytest.mark.parametrize("sizes", [{"depth": 3}, {"depth": 1}, {"width": 4}], ids=str)
def test_it_does_not_begin_from_another_model(sizes):
    """A deeper one has blocks that there are not, of a shallower one some would stay as drawn."""
    other = drawn(dataclasses.replace(BASE, **sizes).table())
    with pytest.raises(UserError, match=r"not those of this model without adapters: see [a-z]"):
        MODEL.begun(other, jax.random.key(0))


def test_scales_of_zero_give_the_frozen_model_at_any_time():
    params = {**drawn(MODEL.table()), **{k: v for k, v in FROZEN.items() if "block" not in k}}
    for name in ("block_0", "block_1"):
        params[name] = {**params[name], **FROZEN[name]}
    params["rays"] = {**params["rays"], "second": 0 * params["rays"]["second"]}
    quiet = dataclasses.replace(MODEL, scales=(0.0, 0.0))
    np.testing.assert_allclose(run(quiet, params, batch(2, 4)), alone(4), atol=2e-6)
    assert np.abs(np.asarray(run(MODEL, params, batch(2, 4))) - alone(4)).max() > 1e-2


def test_an_untrained_model_is_the_best_denoiser_of_gaussians_of_its_spread():
    """E[v | x_t] of x ~ N(0, s^2), in float64."""
    params = {**FROZEN, "head": 0 * FROZEN["head"]}
    given, s = batch(2, 1), BASE.spread
    t = given["time"].astype(np.float64)[:, None, None, None, None]
    alpha, sigma = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    noise = sigma * given["pictures"] / (sigma**2 + (alpha * s) ** 2)
    clean = (given["pictures"] - sigma * noise) / alpha
    np.testing.assert_allclose(run(BASE, params, given), alpha * noise - sigma * clean, atol=1e-5)


def masked(params, x, sees):
    """Float64: attention over all tokens of all pictures, and a mask of who sees whom."""
    rows, pictures, height, width, _ = x.shape
    x = np.asarray(x, np.float64)
    if sees == TIME:
        x = x + np.asarray(params["place"], np.float64)[:, None, None]
    own = {
        name: np.asarray(value, np.float64)
        for name, value in params["attention"].items()
        if name in ("query", "out")
    }
    pair = jax.tree.map(lambda a: np.asarray(a, np.float64), params["attention"]["source_0"])
    tokens = x.reshape(rows, -1, x.shape[-1])
    q, k, v = (
        np.einsum("btd,dhk->bthk", tokens, w) for w in (own["query"], pair["key"], pair["value"])
    )
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
    _, row, column = np.unravel_index(np.arange(tokens.shape[1]), (pictures, height, width))
    seen = {
        ROWS: row[:, None] == row,
        TIME: (row[:, None] == row) & (column[:, None] == column),
        FULL: np.ones((len(row), len(row)), bool),
    }[sees]
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhts,bshk,hkd->btd", weights, v, own["out"]).reshape(x.shape)
    if sees != TIME:
        return y
    after = {name: np.asarray(params[name], np.float64) for name in ("w_in", "w_out")}
    scale, bias = (np.asarray(params["inner_norm"][n], np.float64) for n in ("scale", "bias"))
    h = x + y - (x + y).mean(-1, keepdims=True)
    h = (h / np.sqrt(np.square(h).mean(-1, keepdims=True) + 1e-5) * scale + bias) @ after["w_in"]
    gelu = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return y + gelu @ after["w_out"]


@pytest.mark.parametrize("sees", [ROWS, TIME, pytest.param(FULL, marks=pytest.mark.slow)])
def test_attention_between_pictures_is_full_attention_under_a_mask(sees):
    layer = BetweenPictures(8, 2, sees, pictures=3)
    params = random_like(layer.table())
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 8)).astype(np.float32)
    found = jax.jit(layer.__call__)(params, x)
    np.testing.assert_allclose(found, masked(params, x, sees), atol=1e-5)


def test_permuted_views_give_permuted_outputs():
    order, given, params = [2, 0, 3, 1], batch(2, 4), drawn(MODEL.table())
    turned = {
        name: x[:, order] if name in ("pictures", "noise", "rays") else x
        for name, x in given.items()
    }
    found, wanted = (np.asarray(run(MODEL, params, own)) for own in (turned, given))
    np.testing.assert_allclose(found, wanted[:, order], atol=1e-5)
    assert np.abs(found - wanted).max() > 1e-2


def test_one_view_does_not_see_its_row_as_it_sees_itself():
    """A row of one picture is not the picture."""
    layer = BetweenPictures(8, 2, ROWS)
    params = random_like(layer.table())
    x = np.random.default_rng(1).normal(size=(1, 1, 2, 3, 8)).astype(np.float32)
    rows, whole = masked(params, x, ROWS), masked(params, x, FULL)
    assert np.abs(rows - whole).max() > 1e-2
    np.testing.assert_allclose(masked(params, x[:, :, :1], ROWS), masked(params, x[:, :, :1], FULL))


@functools.cache
def found(sees, shape, preset="data"):
    """Measures and gradients of one batch."""
    model = dataclasses.replace(MODEL, sees=sees, shift=4.0, depth=1)
    layout = layout_of(shape, preset)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, model.table())
    params = init_state(model, optimizer, layout, seed=0).params
    values = drawn(model.table())
    params = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), values, params)
    given = {**batch(2, 4), "weights": np.array([0.3, 1.0], np.float32)}
    placed = put_batch(model, layout, given)
    gradients = jax.jit(make_gradients(model, layout))
    return jax.tree.map(np.asarray, gradients(params, placed, jax.random.key(0)))


@pytest.mark.parametrize(
    ("sees", "shape", "preset"),
    [
        (ROWS, (2, 4, 1), "fully_sharded+sequence"),
        pytest.param(FULL, (1, 2, 1), "data+sequence", marks=pytest.mark.slow),
        pytest.param(TIME, (1, 4, 1), "data+sequence", marks=pytest.mark.slow),
    ],
)
def test_views_over_devices_are_one_device_s(sees, shape, preset):
    for own, other in zip(found(sees, shape, preset), found(sees, (1, 1, 1)), strict=True):
        assert_leaves_close(own, other, 3e-5)


@pytest.mark.parametrize("sees", [ROWS, FULL])
def test_what_devices_exchange_is_as_the_formula_says(sees):
    """Two all-to-alls a layer, or one gather; and as many backward."""
    model, layout = dataclasses.replace(MODEL, sees=sees), layout_of((1, 4, 1), "data+sequence")
    size = exchanged_bytes(2, 4, 4 * 4, 8, 4)
    params, given = abstract_params(model.table()), DATA.batch(2)
    evaluate = messages_of(make_eval_step(model, layout), params, given)
    exchanged = [m for m in evaluate if m.collective in ("all_to_all", "all_gather")]
    kind, each = ("all_to_all", 2) if sees == ROWS else ("all_gather", 1)
    assert exchanged == [Message(kind, ("seq",), 4, size, each * model.depth)]
    if sees == ROWS:
        back = messages_of(make_gradients(model, layout), params, given, jax.random.key(0))
        twice = [m for m in back if m.collective == "all_to_all"]
        assert twice == [Message(kind, ("seq",), 4, size, 2 * each * model.depth)]


def test_adapters_are_all_that_is_new_and_all_that_is_trained():
    table = MODEL.table()
    optimizer = make_optimizer(OptimizerConfig(warmup=1, only=ADAPTERS), 10, table)
    new = {*names_of(table)} - {*names_of(BASE.table())}
    assert {*names_of(trained(optimizer, table))} == new
    assert any(name.startswith("rays") for name in new)


def test_what_does_not_fit_is_refused():
    for change, says in (
        ({"sees": "columns"}, "rows, time, full"),
        ({"heads": 3}, "does not divide model.width=8"),
        ({"patch": 3}, "side of 8"),
        ({"scales": (1.0,)}, "two numbers"),
    ):
        with pytest.raises(UserError, match=says):
            dataclasses.replace(MODEL, **change)
    with pytest.raises(UserError, match="rows, time, full"):
        BetweenPictures(8, 2, "columns")
    with pytest.raises(UserError, match=r"heads=3 .* do not divide width=8"):
        BetweenPictures(8, 3).table()
    with pytest.raises(UserError, match="4 pictures in 4 rows"):
        MODEL.check_mesh(layout_of((1, 8, 1), "data+sequence"))
    odd, two = dataclasses.replace(MODEL, side=6), layout_of((1, 2, 1), "data+sequence")
    with pytest.raises(UserError, match="4 pictures in 3 rows"):
        odd.check_mesh(two)
    dataclasses.replace(odd, sees=FULL).check_mesh(two)  # nothing is exchanged for pictures
    with pytest.raises(UserError, match=r"model\.pictures=4"):
        MODEL.fitted(dataclasses.replace(DATA, views=3).open())
    with pytest.raises(UserError, match=r"model\.words=5"):
        PictureDenoiser(words=5).fitted(DATA.open())
    assert PictureDenoiser().fitted(MovingSquares(scored=1).open()).words == 11
