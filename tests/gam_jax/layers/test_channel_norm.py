"""Norms over groups and over the batch, beside NumPy; running figures; any split of space."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers.base import WHOLE
from gam_jax.layers.channel_norm import BatchNorm, GroupNorm
from gam_jax.layers.unet import UNet
from gam_jax.local import Local, with_workers
from gam_jax.models.base import BATCH, TOKEN, Model
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import Param, normal
from gam_jax.training.rounds import make_step, put_round
from gam_jax.training.state import init_state
from gam_jax.training.step import make_eval_step, make_gradients, make_train_step, put_batch
from sharding.errors import UserError
from tests.examples import random_like
from tests.meshes import assert_leaves_close, layout_of

NORM = BatchNorm(3, rate=0.25)
X = np.random.default_rng(0).normal(1, 2, (2, 4, 4, 2, 3)).astype(np.float32)
"""Two batches of 4 rows of 4 x 2 places."""


def entered(x, shift):
    """What the layer is given: no multiple of x, of which a norm forgets the factor."""
    return x * (shift + 0.3 * x)


@dataclasses.dataclass(frozen=True)
class Shaped(Model):
    """A layer of space, and the sum of its squared outputs less what is wanted."""

    layer: BatchNorm | GroupNorm | UNet = NORM
    WANTED: ClassVar[float] = 0.3

    def table(self):
        return {"layer": self.layer.table(), "shift": Param((3,), (None,), normal(1.0))}

    def batch_axes(self):
        return {"x": (BATCH, TOKEN, None, None), "weights": (BATCH,)}

    def objective(self, params, batch, axes=WHOLE, *, key=None):
        x = entered(batch["x"], params["shift"])
        y = self.layer(params["layer"], x, axes, training=key is not None)
        places = batch["x"].shape[1] * batch["x"].shape[2]
        places *= 1 if axes.seq is None else jax.lax.axis_size(axes.seq)
        losses = jnp.sum(jnp.square(y - self.WANTED * batch["x"][..., : y.shape[-1]]), (1, 2, 3))
        return jnp.sum(losses / places * batch["weights"]), 0.0, {}


MODEL = Shaped()


def batch(x):
    return {"x": x, "weights": np.linspace(0.5, 1, x.shape[-4], dtype=np.float32)}


def state_and_step(layout, accumulate=1):
    optimizer = make_optimizer(OptimizerConfig(warmup=1, kind="adamw"), 10, MODEL.table())
    state = init_state(MODEL, optimizer, layout, seed=0)
    return state, make_train_step(MODEL, optimizer, layout, accumulate)


def moments(x):
    flat = x.astype(np.float64).reshape(-1, 3)
    return flat.mean(0), flat.var(0), flat.var(0, ddof=1)


def test_a_batch_norm_is_its_equation_and_running_figures_are_averages_of_batches():
    """The optimizer, its clipping and its decay play no part in them; a validation reads them."""
    layout = layout_of((1, 1, 1))
    state, step = state_and_step(layout)
    mean, variance = np.zeros(3), np.ones(3)
    for x in X:
        shift = np.asarray(state.params["shift"], np.float64)
        state, _ = step(state, put_batch(MODEL, layout, batch(x)))
        found, _, sample = moments(entered(x, shift))
        mean, variance = 0.75 * mean + 0.25 * found, 0.75 * variance + 0.25 * sample
        np.testing.assert_allclose(state.params["layer"]["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.params["layer"]["variance"], variance, rtol=1e-5)
    shift = np.asarray(state.params["shift"], np.float64)
    scale, bias = (np.asarray(state.params["layer"][n], np.float64) for n in ("scale", "bias"))
    y = (entered(X[0], shift) - mean) / np.sqrt(variance + 1e-5) * scale + bias
    losses = np.square(y - 0.3 * X[0]).sum((1, 2, 3)) / 8
    total, _ = make_eval_step(MODEL, layout)(state.params, put_batch(MODEL, layout, batch(X[0])))[
        "loss"
    ]
    np.testing.assert_allclose(total, np.sum(losses * batch(X[0])["weights"]), rtol=1e-5)


@functools.cache
def gradients(layer, shape, preset="data"):
    """Of one batch, by parameters drawn the same on any mesh."""
    model, layout = Shaped(layer), layout_of(shape, preset)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, model.table())
    params = init_state(model, optimizer, layout, seed=0).params
    values = jax.tree.map(lambda x: 0.5 * x + 0.3, random_like(model.table()))
    params = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), values, params)
    placed = put_batch(model, layout, batch(X[0]))
    run = jax.jit(make_gradients(model, layout))
    return jax.tree.map(np.asarray, run(params, placed, jax.random.key(0)))


def test_statistics_are_summed_over_rows_and_space_of_all_devices():
    """How far they are from the running figures stands among the gradients."""
    one = gradients(NORM, (1, 1, 1))
    own = jax.tree.map(lambda x: 0.5 * x + 0.3, random_like(MODEL.table()))
    mean, _, sample = moments(entered(X[0], np.asarray(own["shift"], np.float64)))
    for name, wanted in (("mean", mean), ("variance", sample)):
        off = wanted - np.asarray(own["layer"][name], np.float64)
        np.testing.assert_allclose(one[1]["layer"][name], off, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(
        gradients(NORM, (2, 4, 1), "fully_sharded+sequence"), one, strict=True
    ):
        assert_leaves_close(found, wanted, 2e-5)


def test_running_figures_of_a_norm_used_twice_or_not_at_all():
    """Twice, they go towards the mean of what both uses find; unused, they stay as they are."""
    params = jax.tree.map(np.abs, jax.tree.map(np.asarray, random_like(NORM.table())))
    table = {"twice": NORM.table(), "unused": NORM.table()}
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, table)
    both = {"twice": params, "unused": params}

    @jax.jit
    def step(both, state, first, second):
        def whole(both):
            once = NORM(both["unused"], second)
            twice = NORM(both["twice"], first) + NORM(both["twice"], second)
            return jnp.sum(twice * first) + jnp.sum(jax.lax.stop_gradient(once))

        changes, state = optimizer.update(jax.grad(whole)(both), state, both)
        return jax.tree.map(jnp.add, both, changes), state

    both, state = dict(both), optimizer.init(both)
    for _ in range(30):
        both, state = step(both, state, *X)
    found = [moments(x) for x in X]
    for name, place in (("mean", 0), ("variance", 2)):
        wanted = np.mean([own[place] for own in found], 0)
        np.testing.assert_allclose(both["twice"][name], wanted, rtol=1e-5)
        np.testing.assert_array_equal(both["unused"][name], params[name])


@pytest.mark.parametrize("local", [Local(2, 2, 1, momentum=0.5), Local(2, 2, 0, 0.7, 0.9, True)])
def test_workers_go_on_from_the_mean_of_their_running_figures(local):
    """Whatever they make of weights: a variance stays one, of any momentum and delay."""
    layout, model = layout_of((1, 1, 1)), Shaped(dataclasses.replace(NORM, rate=0.9))
    own = make_optimizer(OptimizerConfig(0.0, warmup=1, weight_decay=0.0), 10, model.table())
    optimizer = with_workers(own, local)
    state = init_state(model, optimizer, layout, seed=0)
    shift = np.asarray(state.params["shift"], np.float64)
    step, flat = make_step(model, optimizer, layout), 0.1 * X.reshape(2, 2, 2, 4, 2, 3)
    wanted = {"mean": np.zeros(3), "variance": np.ones(3)}
    for _ in range(3):
        parts = [batch(x.reshape(4, 4, 2, 3)) for x in flat]
        state, _ = step(state, put_round(model, layout, parts, local))
        ends = []
        for worker in range(2):
            ends.append(dict(wanted))
            for x in flat:
                mean, _, sample = moments(entered(x[worker], shift))
                for name, value in (("mean", mean), ("variance", sample)):
                    ends[-1][name] = 0.1 * ends[-1][name] + 0.9 * value
        wanted = {name: (ends[0][name] + ends[1][name]) / 2 for name in wanted}
        for name, value in wanted.items():
            np.testing.assert_allclose(state.params["layer"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_parts_of_a_batch_count_by_themselves_and_are_averaged():
    layout = layout_of((1, 1, 1))
    state, step = state_and_step(layout, accumulate=2)
    shift = np.asarray(state.params["shift"], np.float64)
    both = {name: np.stack([value, value]) for name, value in batch(X[0]).items()}
    both["x"] = X
    state, _ = step(state, put_batch(MODEL, layout, both, 2))
    found = [moments(entered(x, shift))[0] for x in X]
    np.testing.assert_allclose(state.params["layer"]["mean"], 0.25 * np.mean(found, 0), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_group_norm_is_its_equation(groups):
    layer = GroupNorm(3, groups)
    params = random_like(layer.table())
    x = X[0].astype(np.float64).reshape(4, 8, groups, -1)
    y = (x - x.mean((1, 3), keepdims=True)) / np.sqrt(x.var((1, 3), keepdims=True) + 1e-5)
    wanted = y.reshape(4, 4, 2, 3) * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(layer(params, X[0]), wanted, atol=2e-6)


NET = UNet(3, 2, 4, 1, norm=GroupNorm(4, 2), how="linear")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (GroupNorm(3, 3), (1, 4, 1)),
        pytest.param(NET, (1, 2, 1), marks=pytest.mark.slow),
        pytest.param(dataclasses.replace(NET, norm=NORM), (2, 2, 1), marks=pytest.mark.slow),
        pytest.param(
            dataclasses.replace(NET, norm=None, how="nearest"), (1, 2, 1), marks=pytest.mark.slow
        ),
    ],
)
def test_split_space_is_the_whole_one(layer, shape):
    for own, other in zip(
        gradients(layer, shape, "data+sequence"), gradients(layer, (1, 1, 1)), strict=True
    ):
        assert_leaves_close(own, other, 3e-5)


@pytest.mark.parametrize(
    ("layer", "loss", "slopes"),
    [
        (NORM, 0.5701095193536101, [-0.7555629635, -0.06818424742, -0.02919877641]),
        (NET, 40498.655481714486, [5666.146949531, 10542.6775166, 16403.6443413]),
        pytest.param(
            dataclasses.replace(NET, norm=NORM),
            67798.83943243382,
            [7423.945462841, 16149.84736317, 24193.17552026],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_losses_and_slopes_are_those_of_torch(layer, loss, slopes):
    """Of torch 2.13.0 in float64, through `conv2d`, `avg_pool2d`, `interpolate` without
    `align_corners`, `group_norm` and `batch_norm`, which was given the same numbers."""
    told, found = gradients(layer, (1, 1, 1))
    np.testing.assert_allclose(told["loss"], loss, rtol=2e-5)
    np.testing.assert_allclose(found["shift"], slopes, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 3])
def test_a_unet_of_any_number_of_axes_keeps_sides_and_sees_all_of_them(dims):
    net = UNet(1, 2, 4, 2, dims=dims)
    x = np.random.default_rng(1).normal(size=(1, *(4,) * dims, 1)).astype(np.float32)
    params = random_like(net.table())
    assert net(params, x).shape == (1, *(4,) * dims, 2)
    slope = jax.jit(jax.grad(lambda x: net(params, x)[(0, *(0,) * dims, 0)]))(x)
    assert np.all(slope)


def test_what_does_not_fit_is_refused():
    for make, says in (
        (lambda: GroupNorm(4, 3), "does not divide 4"),
        (lambda: BatchNorm(4, rate=0.0), "never move"),
        (lambda: GroupNorm(1)({}, X[0]), r"GroupNorm\.width=1, and x has 3"),
        (lambda: BatchNorm(1)({}, X[0], training=False), r"BatchNorm\.width=1, and x has 3"),
        (lambda: UNet(1, 1, dims=4), "1, 2 or 3"),
        (lambda: NORM(random_like(NORM.table()), X[0, :1, :1, :1]), "one number for each"),
        (lambda: NET(random_like(NET.table()), X[0, :, :3]), "does not divide all"),
    ):
        with pytest.raises(UserError, match=says):
            make()
    with pytest.raises(ValueError, match="not both"):
        Param((1,), (None,), normal(1.0), sign_step=1.0, average=0.5)
