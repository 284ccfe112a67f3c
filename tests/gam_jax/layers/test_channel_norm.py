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
from gam_jax.models.base import BATCH, TOKEN, Model
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import Param, normal
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
    """What is found for the running figures stands among the gradients."""
    one = gradients(NORM, (1, 1, 1))
    own = jax.tree.map(lambda x: 0.5 * x + 0.3, random_like(MODEL.table()))["shift"]
    mean, _, sample = moments(entered(X[0], np.asarray(own, np.float64)))
    np.testing.assert_allclose(one[1]["layer"]["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one[1]["layer"]["variance"], sample, rtol=1e-5)
    for found, wanted in zip(
        gradients(NORM, (2, 4, 1), "fully_sharded+sequence"), one, strict=True
    ):
        assert_leaves_close(found, wanted, 2e-5)


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
        (NET, (1, 2, 1)),
        pytest.param(dataclasses.replace(NET, norm=NORM), (2, 2, 1), marks=pytest.mark.slow),
        pytest.param(
            dataclasses.replace(NET, norm=None, how="nearest"), (1, 2, 1), marks=pytest.mark.slow
        ),
    ],
)
def test_a_unet_on_split_space_is_the_whole_one(layer, shape):
    for own, other in zip(
        gradients(layer, shape, "data+sequence"), gradients(layer, (1, 1, 1)), strict=True
    ):
        assert_leaves_close(own, other, 3e-5)


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
        (lambda: UNet(1, 1, dims=4), "1, 2 or 3"),
        (lambda: NORM(random_like(NORM.table()), X[0, :1, :1, :1]), "one number for each"),
        (lambda: NET(random_like(NET.table()), X[0, :, :3]), "does not divide all"),
    ):
        with pytest.raises(UserError, match=says):
            make()
    with pytest.raises(ValueError, match="not both"):
        Param((1,), (None,), normal(1.0), sign_step=1.0, average=0.5)
