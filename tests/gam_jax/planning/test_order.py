"""The order of devices: the best of all where they are few, near it where they are many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.planning.order import anneal, best_order, seconds

MESH = {"data": 2, "tensor": 4}
SENT = {"data": 1e3, "tensor": 1e4}


def matrix(count, seed):
    """Bandwidths that differ by as much as ten."""
    return np.random.default_rng(seed).uniform(1, 10, (count, count))


@given(order=st.permutations(range(8)), bandwidth=st.floats(1, 1e9))
def test_uniform_links_make_all_orders_equal(order, bandwidth):
    uniform = np.full((8, 8), bandwidth)
    assert seconds(order, uniform, MESH, SENT) == seconds(range(8), uniform, MESH, SENT)


def test_a_ring_is_as_fast_as_its_slowest_step():
    links = np.full((8, 8), 100.0)
    links[3, 0] = 5.0  # the last step of the first ring over tensor
    assert seconds(range(8), links, MESH, SENT) == 1e3 / 100 + 1e4 / 5


def test_up_to_eight_devices_the_best_of_all_orders_is_found():
    links, mesh, sent = matrix(6, 0), {"data": 2, "tensor": 3}, SENT
    order, least = best_order(links, mesh, sent)
    every = min(seconds(each, links, mesh, sent) for each in itertools.permutations(range(6)))
    assert least == pytest.approx(every)
    assert least == seconds(order, links, mesh, sent)


def test_annealing_is_within_a_hundredth_of_the_best_of_eight():
    links = matrix(8, 1)
    _, best = best_order(links, MESH, SENT)
    _, found = anneal(lambda order: seconds(order, links, MESH, SENT), 8, seed=0, steps=3000)
    assert best <= found <= 1.01 * best


def test_one_slow_link_is_avoided():
    links = np.full((16, 16), 100.0)
    links[2, 3] = links[3, 2] = 1.0
    mesh = {"data": 4, "tensor": 4}
    order, least = best_order(links, mesh, SENT, steps=2000)
    assert sorted(order) == list(range(16))
    assert least == seconds(range(16), np.full((16, 16), 100.0), mesh, SENT)


def test_annealing_is_the_same_for_the_same_seed_and_never_worse_than_the_start():
    links = matrix(9, 2)

    def cost(order):
        return seconds(order, links, {"data": 9}, {"data": 1.0})

    assert anneal(cost, 9, 3, 500) == anneal(cost, 9, 3, 500)
    assert anneal(cost, 9, 3, 50)[1] <= cost(tuple(range(9)))
