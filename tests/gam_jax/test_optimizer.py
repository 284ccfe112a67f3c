"""AdamW after clipping, with warm-up and cosine decay, is what its formula says."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gam_jax.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from gam_jax.params import Param, ones, zeros
from sharding.errors import UserError
from tests.arrays import compiled, put

CONFIG = OptimizerConfig(learning_rate=0.1, warmup=2, weight_decay=0.3, clip=1.0)
STEPS = 6
TABLE = {"w": Param((3, 2), (None, None), ones), "b": Param((2,), (None,), zeros, decay=False)}


def rate_formula(config, step, steps):
    warmup, cooldown = (s * steps if s < 1 else s for s in (config.warmup, config.cooldown))
    if step < warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / (steps - warmup)
    left = {
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "constant": 1,
        "wsd": min(1, (steps - step) / cooldown),
    }[config.schedule]
    share = config.final + (1 - config.final) * left
    return config.learning_rate * share


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(learning_rate=3e-3, warmup=10, final=0.1),
        OptimizerConfig(learning_rate=1.0, warmup=0, final=0.0),
        OptimizerConfig(learning_rate=0.5, warmup=99, final=1.0),
        OptimizerConfig(learning_rate=2.0, warmup=20, final=0.2, schedule="linear"),
        OptimizerConfig(learning_rate=2.0, warmup=0, final=0.0, schedule="linear"),
        OptimizerConfig(learning_rate=2.0, schedule="constant"),
        OptimizerConfig(learning_rate=2.0, schedule="wsd"),
        OptimizerConfig(learning_rate=2.0, warmup=0.25, schedule="wsd", cooldown=30, final=0.0),
        OptimizerConfig(learning_rate=2.0, warmup=70, schedule="wsd", cooldown=0.3),
    ],
)
def test_the_rate_warms_up_and_decays_by_its_schedule(config):
    schedule = learning_rate_schedule(config, 100)
    found = np.asarray(jax.vmap(schedule)(np.arange(101)))
    want = [rate_formula(config, step, 100) for step in range(101)]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6 * config.learning_rate)
    assert max(found) == pytest.approx(config.learning_rate)
    last = 1 if config.schedule == "constant" else config.final
    assert found[-1] == pytest.approx(config.learning_rate * last)


@pytest.mark.parametrize("steps", [1, 2, 5, 60, 1000])
def test_a_warm_up_that_is_a_share_ends_before_the_steps_do_however_few(steps):
    for share in (0, 0.1, 0.5, 0.999):
        config = OptimizerConfig(warmup=share)
        assert config.warmup_steps(steps) == min(round(share * steps), steps - 1)
        _ = learning_rate_schedule(config, steps)
    assert OptimizerConfig().warmup_steps(1000) == 100
    assert OptimizerConfig(warmup=1).warmup_steps(1000) == 1


def test_more_steps_make_the_stable_phase_longer_and_change_nothing_before_its_end():
    config = OptimizerConfig(warmup=10, schedule="wsd", cooldown=20)
    short, long = (
        np.asarray(jax.jit(jax.vmap(learning_rate_schedule(config, steps)))(np.arange(281)))
        for steps in (100, 300)
    )
    assert short[:81].tolist() == long[:81].tolist()
    assert {*long[80::20].tolist()} == {float(short[50])}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"warmup": 10.5}, "optimizer.warmup=10.5: .* whole steps"),
        ({"cooldown": 1.5}, "optimizer.cooldown=1.5: .* whole steps"),
        ({"warmup": 60, "cooldown": 50}, "are 110 steps, more than train.steps=100"),
        ({"warmup": 0.6, "cooldown": 0.5}, "are 110 steps, more than train.steps=100"),
    ],
)
def test_spans_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        learning_rate_schedule(OptimizerConfig(schedule="wsd", **fields), 100)


def test_averages_too_slow_for_bfloat16_are_refused():
    for fields in ({"beta2": 0.999}, {"kind": "muon", "momentum": 0.998}):
        OptimizerConfig(**fields)
        with pytest.raises(UserError, match=r"too slow for optimizer.moments=bfloat16"):
            OptimizerConfig(moments="bfloat16", **fields)
    OptimizerConfig(moments="bfloat16", momentum=0.998)  # not Muon's: not used
    with pytest.raises(UserError, match=r"optimizer.moments: unknown moments 'float16'"):
        OptimizerConfig(moments="float16")


@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warm_up_that_does_not_end_is_refused(warmup):
    with pytest.raises(UserError, match=rf"optimizer.warmup={warmup}.*train.steps=10"):
        learning_rate_schedule(OptimizerConfig(warmup=warmup), 10)


def gradients_of(step):
    """Large at even steps, so that they are clipped, and small at odd ones."""
    random = np.random.default_rng(step)
    scale = 5 if step % 2 == 0 else 0.1
    return {name: scale * random.normal(size=param.shape) for name, param in TABLE.items()}


def start():
    random = np.random.default_rng(99)
    return {name: random.normal(size=param.shape) for name, param in TABLE.items()}


def adamw_formula(config):
    """The parameters after each step, in float64."""
    params = start()
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    history = []
    for step in range(STEPS - 1):
        gradients = gradients_of(step)
        norm = math.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        shrink = min(1, config.clip / norm) if config.clip else 1
        for name in params:
            g = gradients[name] * shrink
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            mean = first[name] / (1 - config.beta1 ** (step + 1))
            variance = second[name] / (1 - config.beta2 ** (step + 1))
            change = mean / (np.sqrt(variance) + config.eps)
            if TABLE[name].decay or config.decay_all:
                change = change + config.weight_decay * params[name]
            params = {**params, name: params[name] - rate_formula(config, step, STEPS) * change}
        history.append(params)
    return history


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, clip=0.0),
        dataclasses.replace(CONFIG, decay_all=True),
        dataclasses.replace(CONFIG, beta1=0.5, beta2=0.6, eps=0.1, warmup=0),
    ],
    ids=["clipped", "not clipped", "decay of everything", "other constants"],
)
def test_five_steps_equal_the_formula(config):
    optimizer = make_optimizer(config, STEPS, TABLE)
    params = {name: put(value, jnp.float32) for name, value in start().items()}
    state = compiled(optimizer.init, params)

    @jax.jit
    def updated(gradients, state, params):
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    for step, want in enumerate(adamw_formula(config)):
        gradients = {n: put(g, jnp.float32) for n, g in gradients_of(step).items()}
        params, state = updated(gradients, state, params)
        for name in TABLE:
            np.testing.assert_allclose(params[name], want[name], rtol=2e-5, atol=2e-6)


def test_decay_reaches_only_what_the_table_marks():
    """Without gradients a parameter moves by its decay alone."""
    optimizer = make_optimizer(dataclasses.replace(CONFIG, warmup=0), STEPS, TABLE)
    params = {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    nothing = jax.tree.map(np.zeros_like, params)
    state = compiled(optimizer.init, params)
    changes, _ = compiled(optimizer.update, nothing, state, params)
    np.testing.assert_allclose(changes["w"], -0.1 * 0.3, rtol=1e-6)
    np.testing.assert_array_equal(changes["b"], 0)
