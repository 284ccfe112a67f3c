"""An agent for each parameter, or one for all (MARL-DSE): what a factorised search gains and loses.

Source: arXiv 2211.16385. With one shared reward, independent agents are one agent with a
factorised policy; what they gain is the smaller table, and what they lose is what couples values.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.search import Settings, learn
from gam_jax.search.tables import advantages, draw, log_likelihood, uniform

VALUES, ROUND, RATE = 4, 8, 0.5
CHOICES = (2, 4)
"""Parameters of the smaller and of the larger space; each has `VALUES` values."""
SEEDS = {SHORT: 4, CPU: 20}
ROUNDS = {SHORT: 100, CPU: 2000}
XOR = 3
"""Values of each of the two coupled parameters."""
CLIMB = np.array([[11.0, -30.0, 0.0], [-30.0, 7.0, 6.0], [0.0, 0.0, 5.0]])
"""Rewards of the climbing game (Claus and Boutilier 1998): the best cell has bad neighbours."""


def identity(seed: int) -> float:
    """Largest difference of a factorised policy's gradient and its agents', each by itself."""
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = (4, 3, 3, 8, 2, 2, 4, 4, 3, 8)
    logits = uniform(sizes) + jax.random.normal(keys[0], (len(sizes), max(sizes)))
    drawn = draw(logits, keys[1], 32)
    reward = advantages(jax.random.normal(keys[2], (32,)))

    def whole(logits: Array) -> Array:
        return jnp.mean(reward * log_likelihood(logits, drawn))

    def agent(own: Array, values: Array) -> Array:
        return jnp.mean(reward * jax.nn.log_softmax(own)[values])

    together = jax.grad(whole)(logits)
    alone = jnp.stack([jax.grad(agent)(logits[i], drawn[:, i]) for i in range(len(sizes))])
    there = jnp.isfinite(logits)
    return float(jnp.max(jnp.where(there, jnp.abs(together - alone), 0.0)))


def samples(joint: bool, choices: int, scale: str) -> float:
    """Samples until the likeliest design is the best one, the median over seeds.

    A cost that is a sum over parameters, all of whose values but one cost 1.
    """
    sizes = (VALUES**choices,) if joint else (VALUES,) * choices

    def cost(points: Array) -> Array:
        if joint:
            places = VALUES ** jnp.arange(choices)
            points = points // places % VALUES
        return jnp.sum(points != 1, axis=1).astype(jnp.float32)

    best = jnp.asarray([sum(VALUES**i for i in range(choices))] if joint else [1] * choices)
    count, step = _until(cost, sizes, best, ROUNDS[scale], SEEDS[scale])
    return float(np.median(count)) * step


def _until(cost, sizes, best, rounds: int, seeds: int) -> tuple[np.ndarray, int]:
    """Rounds after which the last table's likeliest design stays the best, of each seed."""

    def one(key: Array) -> Array:
        drawn = learn(cost, "reinforce", sizes, rounds, ROUND, Settings(RATE), key)[1]
        right = jnp.mean(jnp.all(drawn == best, axis=2), axis=1) > 0.5
        return jnp.where(jnp.any(right), jnp.argmax(right), rounds)

    keys = jax.random.split(jax.random.key(0), seeds)
    return np.asarray(jax.vmap(one)(keys)) + 1, ROUND


def _expected(rewards: np.ndarray, joint: bool, logits: Array) -> Array:
    """Expected reward of two parameters under a table."""
    own = jnp.asarray(rewards)
    if joint:
        return jnp.sum(jax.nn.softmax(logits[0]) * own.ravel())
    p = jax.nn.softmax(logits, axis=1)
    return p[0] @ own @ p[1]


def _logits(size: int, joint: bool) -> Array:
    return uniform((size * size,) if joint else (size, size))


def xor(joint: bool) -> float:
    """Length of the gradient at the uniform table, where a reward needs a + b = 1 (mod n)."""
    a, b = np.indices((XOR, XOR))
    rewards = ((a + b) % XOR == 1).astype(float)
    gradient = jax.grad(functools.partial(_expected, rewards, joint))(_logits(XOR, joint))
    return float(jnp.linalg.norm(gradient))


def climbed(joint: bool) -> float:
    """Reward that exact gradients from the uniform table end at, in the climbing game."""
    expected = functools.partial(_expected, CLIMB, joint)

    def step(logits: Array, _: None) -> tuple[Array, None]:
        return logits + 0.1 * jax.grad(expected)(logits), None

    last, _ = jax.lax.scan(step, _logits(3, joint), length=4000)
    return float(expected(last))


def policy(joint: bool, setting: Setting, seed: int) -> Numbers:
    """All measures of one form of the table."""
    few, many = (samples(joint, choices, setting.scale) for choices in CHOICES)
    return {
        "few": few,
        "many": many,
        "growth": many / few,
        "gradient": xor(joint),
        "climbed": climbed(joint),
    }


CLAIMS = (
    Claim(
        "The gradient of a factorised policy is that of independent agents with one reward",
        "at_most",
        ("identity",),
        "difference",
        1e-6,
        source="derived",
    ),
    Claim(
        "Samples of agents grow about with the number of values: 8 to 16 values, up to 4 times",
        "at_most",
        ("agents",),
        "growth",
        4.0,
        source="derived",
    ),
    Claim(
        "Samples of one table grow about with the number of designs: 16 to 256, at least 8 times",
        "at_least",
        ("joint",),
        "growth",
        8.0,
        source="derived",
    ),
    Claim(
        "Where values are coupled as by XOR, agents that begin alike have no gradient",
        "at_most",
        ("agents",),
        "gradient",
        1e-6,
        source="derived: must stall",
    ),
    Claim(
        "One table has one there",
        "at_least",
        ("joint",),
        "gradient",
        0.1,
        source="derived",
    ),
    Claim(
        "In the climbing game one table finds the reward of 11",
        "near",
        ("joint",),
        "climbed",
        11.0,
        0.5,
        source="Claus and Boutilier 1998",
    ),
    Claim(
        "and agents do not",
        "at_most",
        ("agents",),
        "climbed",
        7.5,
        source="Claus and Boutilier 1998",
    ),
)

STUDY = Study(
    name="marl-dse",
    title="An agent for each parameter of a search",
    source="arXiv 2211.16385",
    page="search.md",
    arms={
        "identity": Arm(
            "gradients side by side",
            numbers=lambda setting, seed: {"difference": identity(seed)},
            exact=True,
        ),
        "agents": Arm(
            "an agent for each parameter",
            numbers=functools.partial(policy, False),
            exact=True,
        ),
        "joint": Arm("one table for all", numbers=functools.partial(policy, True), exact=True),
    },
    measures={
        "few": Measure("samples, 2 parameters", "lower", form=".0f"),
        "many": Measure("samples, 4 parameters", "lower", form=".0f"),
        "growth": Measure("times as many", "lower", form=".2f"),
        "gradient": Measure("gradient where values are coupled", "higher", form=".3g"),
        "climbed": Measure("reward of the climbing game", "higher", form=".2f"),
        "difference": Measure("difference of gradients", "lower", form=".2g"),
    },
    claims=CLAIMS,
    notes=(
        f"parameters of {VALUES} values, one of which costs nothing and the others 1 each; samples "
        "until more than half of a round are the best design, the median over seeds",
    ),
    absent=(
        Absent(
            "Agents beat PPO and SAC on a memory controller",
            "no figures are published in the abstract, and the simulator is not here",
        ),
    ),
)
