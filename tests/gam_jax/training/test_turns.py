"""Games of two sides: who moves first, what the other sees, and that a mesh changes nothing."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gam_jax.data import arrays
from gam_jax.local import Local
from gam_jax.models import Model
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import Param, ones
from gam_jax.registry import register
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.checks import check_batch
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step, put_batch
from gam_jax.training.turns import in_turn
from sharding.errors import UserError
from tests.meshes import layout_of

CONFIG = OptimizerConfig(0.1, warmup=0.0, schedule="constant", weight_decay=0.1, clip=0.5)
ROWS, WIDE, STEPS = 8, 4, 3
X = np.random.default_rng(0).normal(size=(ROWS, WIDE)).astype(np.float32)


@register
@dataclasses.dataclass(frozen=True)
class Game(Model):
    """The judge follows (v - w)^2, the maker (w x - v - 1)^2: each a constant to the other."""

    @property
    def rivals(self):
        return ("judge",)

    def table(self):
        return {name: {"w": Param((WIDE,), (None,), ones)} for name in ("judge", "maker")}

    def batch_axes(self):
        return {"x": ("batch", None), "weights": ("batch",)}

    def objective(self, params, batch, axes=None, *, key=None):
        v, w = params["judge"]["w"], params["maker"]["w"]
        own = jnp.sum((v - lax.stop_gradient(w) * batch["x"]) ** 2, -1)
        made = jnp.sum((w * batch["x"] - lax.stop_gradient(v) - 1) ** 2, -1)
        weights = batch["weights"]
        told = {"made": (jnp.sum(weights * made), jnp.sum(weights))}
        return jnp.sum(weights * (own + made)), 0.0, told


@functools.cache
def played(shape, preset, dtype="float32"):
    """Parameters and what was told, after some steps."""
    model, layout = Game(param_dtype=dtype), layout_of(shape, preset)
    optimizer = make_optimizer(CONFIG, 10, model.table())
    step, state = make_train_step(model, optimizer, layout), init_state(model, optimizer, layout, 0)
    batch = put_batch(model, layout, {"x": X, "weights": np.ones(ROWS, np.float32)})
    told = []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        told.append(float(metrics["made"]))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), state.params), told


def by_hand():
    """AdamW in float64: the judge first, then the maker, each with its own clipped norm."""

    def adam(w, g, state, count):
        g = g * min(1.0, CONFIG.clip / np.linalg.norm(g))
        mean = CONFIG.beta1 * state[0] + (1 - CONFIG.beta1) * g
        square = CONFIG.beta2 * state[1] + (1 - CONFIG.beta2) * g * g
        m, s = mean / (1 - CONFIG.beta1**count), square / (1 - CONFIG.beta2**count)
        rise = m / (np.sqrt(s) + CONFIG.eps) + CONFIG.weight_decay * w
        return w - CONFIG.learning_rate * rise, (mean, square)

    x, v, w = X.astype(np.float64), np.ones(WIDE), np.ones(WIDE)
    states, told = {"v": (0.0, 0.0), "w": (0.0, 0.0)}, []
    for count in range(1, STEPS + 1):
        v, states["v"] = adam(v, np.mean(2 * (v - w * x), 0), states["v"], count)
        told.append(np.mean(np.sum((w * x - v - 1) ** 2, -1)))
        w, states["w"] = adam(w, np.mean(2 * x * (w * x - v - 1), 0), states["w"], count)
    return {"judge": {"w": v}, "maker": {"w": w}}, told


def test_a_step_moves_the_rivals_and_then_the_others_who_see_them_moved():
    (params, told), (wanted, wanted_told) = played((1, 1, 1), "data"), by_hand()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, wanted)
    np.testing.assert_allclose(told, wanted_told, rtol=1e-5)


@pytest.mark.parametrize("preset", ["zero1", "fully_sharded"])
def test_a_game_is_the_same_on_a_mesh(preset):
    (params, told), (wanted, wanted_told) = played((4, 1, 1), preset), played((1, 1, 1), "data")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, wanted)
    np.testing.assert_allclose(told, wanted_told, rtol=1e-5)


def test_a_game_in_few_bits_keeps_its_master():
    (params, _), (wanted, _) = played((1, 1, 1), "data", "bfloat16"), played((1, 1, 1), "data")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02), params, wanted)


@pytest.mark.parametrize("rivals", [("referee",), ("judge", "maker")])
def test_rivals_that_are_none_are_refused(rivals):
    with pytest.raises(UserError, match="some of the parameters, and not all: judge, maker"):
        in_turn(None, None, None, dict.fromkeys(("judge", "maker")), None, rivals)


def test_workers_play_no_games():
    data = arrays({"x": X}, {"x": X}, unit="rows")
    train = TrainConfig(steps=4, batch=ROWS, local=Local(workers=2, every=2))
    with pytest.raises(UserError, match=r"train.local: Game is trained in turns with judge"):
        check_batch(Experiment(Game(), data.config, train), layout_of((1, 1, 1), "data"))
