"""The rule by which workers meet: stability in closed form, by simulation and in the real round."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.local import Local, with_workers
from gam_jax.models import Model
from gam_jax.params import Param, ones
from gam_jax.training.rounds import make_round, put_round
from gam_jax.training.state import init_state
from sharding.errors import UserError
from tests.meshes import layout_of

STEP, EVERY, WORKERS = 0.1, 3, 4
CURVES = np.array([0.5, 2.0, 6.0])


@dataclasses.dataclass(frozen=True)
class Bowl(Model):
    """A quadratic with its minimum, for each row, at the row's own place."""

    def table(self):
        return {"x": Param((len(CURVES),), (None,), ones)}

    def batch_axes(self):
        return {"place": ("batch", None), "weights": ("batch",)}

    def objective(self, params, batch, axes=None, *, key=None):
        wrong = jnp.sum(CURVES * (params["x"] - batch["place"]) ** 2, axis=1) / 2
        return jnp.sum(batch["weights"] * wrong), 0.0, {}


def places(rounds, workers=WORKERS, spread=1.0):
    """Of each round, step and row; a row a worker."""
    draw = np.random.default_rng(0)
    return spread * draw.normal(size=(rounds, EVERY, workers, len(CURVES))).astype(np.float32)


def trained(local, targets, shape=(1, 1, 1)):
    """x after each round of the compiled program, and what is kept beside it at the end."""
    model, layout = Bowl(), layout_of(shape)
    optimizer = with_workers(optax.sgd(STEP), local)
    state, step = init_state(model, optimizer, layout, 0), make_round(model, optimizer, layout)
    found = []
    for batch in targets:
        weights = np.ones(batch.shape[1], np.float32)
        parts = [{"place": place, "weights": weights} for place in batch]
        state, _ = step(state, put_round(model, layout, parts, local))
        found.append(np.asarray(state.params["x"]))
    return np.array(found), state.opt_state


def simulated(local, targets):
    """The same in float64, from the equations: SlowMo of delay 0, CO2 of delay 1."""
    x = np.ones(len(CURVES))
    momentum, before = np.zeros_like(x), np.zeros_like(x)
    found = []
    for batch in np.asarray(targets, np.float64):
        own = np.repeat(x[None], batch.shape[1], 0)
        for place in batch:
            own = own - STEP * CURVES * (own - place)
        sent = x - own.mean(0)
        use, before = (before, sent) if local.delay else (sent, before)
        momentum = local.momentum * momentum + use / local.penalty
        step = local.momentum * momentum + use / local.penalty if local.nesterov else momentum
        x = x - local.rate * step
        found.append(x)
    return np.array(found)


RULES = {
    "Local SGD": Local(WORKERS, EVERY),
    "SlowMo": Local(WORKERS, EVERY, rate=0.9, momentum=0.5),
    "DiLoCo": Local(WORKERS, EVERY, rate=0.7, momentum=0.9, nesterov=True),
    "CO2": Local(WORKERS, EVERY, delay=1, momentum=0.2, penalty=2.0),
    "CO2 ahead": Local(WORKERS, EVERY, delay=1, rate=0.5, momentum=0.3, nesterov=True, penalty=1.5),
}


@pytest.mark.parametrize("name", RULES)
def test_a_run_of_50_rounds_is_that_of_the_equations(name):
    targets = places(50)
    found, _ = trained(RULES[name], targets)
    np.testing.assert_allclose(found, simulated(RULES[name], targets), rtol=0, atol=3e-5)


def test_one_step_a_round_is_gradient_descent_on_all_rows():
    targets = places(6)[:, :1]
    found, _ = trained(Local(WORKERS, rate=1.0, clip=1e6), targets)
    x = np.ones(len(CURVES))
    for place, after in zip(targets[:, 0].astype(np.float64), found, strict=True):
        x = x - STEP * CURVES * (x - place.mean(0))
        np.testing.assert_allclose(after, x, rtol=0, atol=1e-6)


def test_a_bound_on_the_momentum_holds_and_0_freezes():
    targets = places(8, spread=30.0)
    _, kept = trained(Local(WORKERS, EVERY, 1, momentum=0.5, clip=0.25), targets)
    largest = np.max(np.abs(kept.momentum["x"]))
    assert largest == 0.25
    for rule in ("SlowMo", "DiLoCo", "CO2", "CO2 ahead"):
        found, _ = trained(dataclasses.replace(RULES[rule], clip=0.0), targets)
        assert np.all(found == 1)


momenta = st.floats(0, 0.95)


@given(st.floats(0.05, 2), momenta, st.floats(1, 4), st.floats(0.05, 1))
def test_a_delayed_update_grows_as_the_closed_form_says(rate, momentum, penalty, share):
    local = Local(2, 2, 1, rate, momentum, penalty=penalty)
    wanted = rate * share / penalty + momentum
    grows = local.growth(share)
    if abs(wanted - 1) > 1e-3:
        assert (grows >= 1) == (wanted >= 1)
    if momentum == 0 or grows >= 1:  # two complex eigenvalues, of modulus the product's root
        roots = np.roots([1, -1 - momentum, momentum + rate * share / penalty])
        np.testing.assert_allclose(grows, np.max(np.abs(roots)), rtol=1e-6)
    np.testing.assert_allclose(local.growth(0.0), 1.0, atol=1e-6)


@given(st.floats(0.05, 5), momenta, st.floats(0.05, 1))
def test_an_update_without_delay_is_stable_as_slow_momentum_is(rate, momentum, share):
    if abs(rate * share - 2 * (1 + momentum)) > 1e-3:
        stable = Local(2, 2, 0, rate, momentum).growth(share) < 1
        assert stable == (rate * share < 2 * (1 + momentum))


@pytest.mark.parametrize("beyond", [-0.02, 0.02])
def test_the_real_round_diverges_exactly_beyond_the_bound(beyond):
    share = 1 - (1 - STEP * CURVES[-1]) ** EVERY
    penalty = share / (0.7 + beyond)  # so that share / penalty + momentum is 1 + beyond
    local = Local(1, EVERY, 1, momentum=0.3, penalty=penalty)
    found, _ = trained(local, np.zeros((250, EVERY, 1, len(CURVES)), np.float32))
    early, late = (np.max(np.abs(found[a:b, -1])) for a, b in ((20, 60), (210, 250)))
    assert (late > early) == (beyond > 0)
    assert (local.bound() <= share) == (beyond > 0)


def test_numbers_that_may_diverge_are_told_of():
    quiet = (
        Local(),
        Local(4, 12),
        Local(4, 12, momentum=0.9),
        Local(4, 12, 1, momentum=0.4, penalty=2),
    )
    assert not any(local.warning() for local in quiet)
    told = Local(4, 24, 1, momentum=0.2).warning()
    assert "p >= 0.8 of the way" in told
    assert "rate p / penalty + momentum >= 1" in told
    assert "p >= 1 of" in Local(4, 12, 1).warning()
    assert "clip lets it" in Local(4, 24, 1, momentum=0.2, clip=1.0).warning()
    assert Local(4, 12, rate=4.1, momentum=0.9).warning()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", 0),
        ("every", 0),
        ("delay", 2),
        ("rate", 0.0),
        ("momentum", 1.0),
        ("penalty", 0.5),
    ],
)
def test_numbers_that_make_no_sense_are_refused(field, value):
    with pytest.raises(UserError, match=f"train.local.{field}={value}"):
        Local(**{field: value})


def test_workers_have_no_update_of_one_step():
    optimizer = with_workers(optax.sgd(0.1), Local(2, 2))
    state = jax.eval_shape(optimizer.init, {"x": jnp.ones(3)})
    with pytest.raises(TypeError, match="updated in rounds"):
        optimizer.update({"x": jnp.ones(3)}, state)
