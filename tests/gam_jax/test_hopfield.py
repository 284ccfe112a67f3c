"""A Hopfield store obeys its closed formulas, and is what GAM's read and linear attention are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax import hopfield
from gam_jax.ops.memory import memory_read
from sharding.mesh import make_mesh
from tests.arrays import compiled, put, single

NEURONS = 4000
retrieve = jax.jit(hopfield.retrieve)
retrieve_blocks = jax.jit(hopfield.retrieve_blocks, static_argnums=(2, 3, 4))
overlaps = jax.jit(hopfield.overlaps)


@functools.cache
def store(patterns, blank, neurons=NEURONS):
    """Patterns, a state that is the first one with its blanks filled at random, and an order."""
    return drawn(jax.random.key(patterns), patterns, blank, neurons)


@functools.partial(jax.jit, static_argnums=(1, 3))
def drawn(key, patterns, blank, neurons):
    draw, fill, order = jax.random.split(key, 3)
    xi = hopfield.draw_patterns(draw, patterns, neurons, blank)
    spins = jnp.where(xi[0] == 0, jax.random.rademacher(fill, (neurons,), jnp.float32), xi[0])
    return xi, spins, jax.random.permutation(order, neurons)


def couplings(patterns):
    xi = np.asarray(patterns, np.float64)
    w = xi.T @ xi / xi.shape[1]
    return w - np.diag(np.diag(w))


def test_energy_and_steps_are_those_of_the_couplings():
    xi, _, order = store(3, 0.3, 60)
    spins = np.where(np.random.default_rng(0).random(60) < 0.5, -1.0, 1.0)
    w = couplings(xi)
    energy = compiled(hopfield.energy, xi, put(spins, jnp.float32))
    np.testing.assert_allclose(energy, -spins @ w @ spins / 2, rtol=1e-5)
    found = retrieve(xi, put(spins, jnp.float32), order)
    for i in np.asarray(order):
        field = w[i] @ spins
        spins[i] = spins[i] if abs(field) < 1e-12 else np.sign(field)
    np.testing.assert_array_equal(found, spins)


def test_energy_never_rises_from_neuron_to_neuron():
    xi, _, order = store(4, 0.2, 80)
    start = put(np.random.default_rng(9).choice([-1.0, 1.0], 80), jnp.float32)

    def step(spins, i):
        spins = retrieve(xi, spins, i[None])
        return spins, hopfield.energy(xi, spins)

    _, energies = jax.jit(functools.partial(jax.lax.scan, step))(start, np.tile(order, 3))
    energies = np.asarray(energies)
    assert np.all(np.diff(energies) <= 1e-4)
    assert energies[-1] < energies[0]


@pytest.mark.parametrize(("patterns", "blank"), [(2, 0.4), (3, 0.3), (5, 0.45)])
def test_overlaps_form_the_hierarchy_of_the_formula(patterns, blank):
    xi, spins, order = store(patterns, blank)
    assert hopfield.hierarchy_is_stable(patterns, blank)
    for _ in range(4):
        spins = retrieve(xi, spins, order)
    found = overlaps(xi, spins)
    want = jax.jit(hopfield.hierarchy, static_argnums=0)(patterns, blank)
    # Which pattern comes second, and whether it or its opposite does, chance decides.
    found = np.sort(np.abs(found))[::-1]
    np.testing.assert_allclose(found, want, atol=3 / np.sqrt(NEURONS))
    assert np.sum(want) == pytest.approx(1 - blank**patterns)


@pytest.mark.parametrize(("patterns", "threshold"), [(3, 0.618), (5, 0.519), (50, 0.5)])
def test_the_formula_s_thresholds_are_those_derived(patterns, threshold):
    assert hopfield.hierarchy_is_stable(patterns, threshold - 0.002)
    assert not hopfield.hierarchy_is_stable(patterns, threshold + 0.002)
    assert hopfield.hierarchy_is_stable(2, 0.99)


@pytest.mark.parametrize(("blank", "stable"), [(0.55, True), (0.65, False), (0.7, False)])
def test_the_first_pattern_keeps_all_its_neurons_below_the_threshold_alone(blank, stable):
    """The threshold of three patterns is 0.618."""
    xi, spins, order = store(3, blank)
    for _ in range(6):
        spins = retrieve(xi, spins, order)
    kept = np.asarray(overlaps(xi, spins))[0] / np.mean(np.abs(np.asarray(xi)[0]))
    assert hopfield.hierarchy_is_stable(3, blank) == stable
    assert kept == 1.0 if stable else kept < 0.98


def test_without_blanks_a_state_near_a_pattern_falls_into_it_alone():
    xi, spins, order = store(5, 0.0)
    noise = np.random.default_rng(1).random(spins.shape) < 0.2
    spins = np.asarray(spins)
    found = retrieve(xi, put(np.where(noise, -spins, spins)), order)
    np.testing.assert_array_equal(found, np.asarray(xi)[0])


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.1, 0.2, 0.5])
def test_the_part_that_leaves_a_pattern_in_one_step_is_the_tail_of_signal_to_noise(load):
    neurons = 1500
    xi = hopfield.draw_patterns(jax.random.key(0), int(load * neurons), neurons)
    step = jax.jit(jax.vmap(lambda spins: retrieve_blocks(xi, spins, 1)))
    part = float(jnp.mean(step(xi[:100]) != xi[:100]))
    want = float(hopfield.flipped(load))
    assert part == pytest.approx(want, abs=4 * np.sqrt(want / (100 * neurons)) + 0.03 * want)


def test_many_blocks_reach_what_the_sequential_order_reaches():
    xi, spins, order = store(3, 0.3)
    for _ in range(3):
        spins = retrieve(xi, spins, order)
    blocked = retrieve_blocks(xi, store(3, 0.3)[1], 8, 4)
    found, want = overlaps(xi, blocked), overlaps(xi, spins)
    np.testing.assert_allclose(found, want, atol=2 / np.sqrt(NEURONS))


def test_all_at_once_may_swing_between_two_states():
    """Two neurons that want to differ: the pattern (+1, -1), begun at (+1, +1)."""
    xi, start = single(([[1.0, -1.0]], [1.0, 1.0]))
    once = retrieve_blocks(xi, start, 1)
    np.testing.assert_array_equal(once, -np.asarray(start))
    np.testing.assert_array_equal(retrieve_blocks(xi, once, 1), start)
    settled = retrieve_blocks(xi, start, 2)
    assert np.abs(overlaps(xi, settled)).tolist() == [1]


@pytest.mark.parametrize("devices", [2, 8])
def test_neurons_split_over_devices_do_the_same(devices):
    xi, spins, _ = store(3, 0.3, 800)
    mesh = make_mesh(tensor=devices)

    def program(xi, spins):
        after = retrieve_blocks(xi, spins, 4, 2, "tensor")
        return after, hopfield.overlaps(xi, after, "tensor"), hopfield.energy(xi, after, "tensor")

    own = P("tensor")
    found = jax.jit(
        jax.shard_map(
            program, mesh=mesh, in_specs=(P(None, "tensor"), own), out_specs=(own, P(), P())
        )
    )(xi, spins)
    want = retrieve_blocks(xi, spins, 4, 2)  # 4 divides a device's neurons
    np.testing.assert_array_equal(found[0], want)
    np.testing.assert_allclose(found[1], overlaps(xi, want), rtol=1e-5)
    np.testing.assert_allclose(found[2], compiled(hopfield.energy, xi, want), rtol=1e-5)


@pytest.mark.slow
def test_what_is_learned_from_examples_depends_on_their_entropy_alone():
    """Sets of equal rho, few good or many bad examples, know their pattern equally well."""
    neurons, accuracies = 20_000, []
    pattern = hopfield.draw_patterns(jax.random.key(0), 1, neurons)
    for examples, quality in ((9, 0.6), (41, 0.3315), (165, 0.1725)):
        rho = hopfield.dataset_entropy(examples, quality)
        assert rho == pytest.approx(0.1975, rel=0.02)
        keeps = jax.random.bernoulli(
            jax.random.key(examples), (1 + quality) / 2, (examples, 1, neurons)
        )
        mean = hopfield.learned(jnp.where(keeps, pattern, -pattern))
        accuracies.append(float(hopfield.overlaps(pattern, jnp.sign(mean)[0])[0]))
        want = float(hopfield.supervised_accuracy(examples, quality))
        assert accuracies[-1] == pytest.approx(want, abs=0.02)
    assert max(accuracies) - min(accuracies) < 0.02


def test_gam_s_read_is_one_update_of_a_modern_hopfield_store():
    """E(s) = |s|^2 / 2 - log sum_k exp(xi_k . s): s - grad E(s) = softmax(s xi^T) xi.

    Ramsauer et al. 2020 (arXiv 2008.02217), eq. 3; the read never raises that energy.
    """
    random = np.random.default_rng(0)
    bank, s = single((random.normal(size=(6, 8)), random.normal(size=(5, 8))))

    def energy(s):
        return jnp.sum(s * s) / 2 - jax.nn.logsumexp(bank @ s)

    @jax.jit
    def updated(s):
        """Energies, the update that the gradient says, and the read."""
        energies, slopes = jax.vmap(jax.value_and_grad(energy))(s)
        return energies, s - slopes, memory_read(s, bank)

    energies, update, after = updated(s)
    np.testing.assert_allclose(after, update, rtol=1e-4, atol=1e-5)
    for _ in range(4):
        before = np.asarray(energies)
        energies, _, after = updated(after)
        assert np.all(energies <= before + 1e-5)


@pytest.mark.slow
def test_a_sharp_read_retrieves_more_patterns_than_there_are_neurons():
    """Where Hebb's couplings hold 0.14 N patterns, the softmax read holds them all."""
    xi = hopfield.draw_patterns(jax.random.key(0), 96, 48)
    asked = xi.at[:, :4].multiply(-1)  # four neurons wrong
    np.testing.assert_array_equal(jnp.sign(memory_read(asked, xi)), xi)
    classical = jax.vmap(lambda s: retrieve_blocks(xi, s, 48, 2))(asked)
    assert float(jnp.mean(jnp.all(classical == xi, axis=1))) < 0.1


def test_writing_patterns_is_linear_attention_s_state_and_a_field_is_its_read():
    """S_k = S_{k-1} + v_k k_k^T with k = v = xi / sqrt(N) ends in the couplings; S q is a field."""
    xi, spins, _ = store(3, 0.3, 60)
    writes = put(np.asarray(xi) / np.sqrt(60.0), jnp.float32)

    def write(state, v):
        return state + jnp.outer(v, v), None

    zeros = np.zeros((60, 60), np.float32)
    state = np.asarray(jax.jit(functools.partial(jax.lax.scan, write))(zeros, writes)[0])
    np.testing.assert_allclose(state - np.diag(np.diag(state)), couplings(xi), atol=1e-6)
    field = np.asarray(overlaps(xi, spins)) @ np.asarray(xi)
    np.testing.assert_allclose(state @ np.asarray(spins), field, rtol=1e-4, atol=1e-5)
