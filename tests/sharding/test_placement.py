"""A process reads the rows that its devices hold, and the parts make the whole batch."""

from __future__ import annotations

import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sharding.mesh import make_mesh
from sharding.placement import RowShare, place, row_share

BATCH = np.arange(8 * 8).reshape(8, 8)


class OfProcess:
    """A sharding as one of several processes sees it: some of the devices are its own."""

    def __init__(self, sharding, devices):
        self._sharding, self._devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        every = self._sharding.devices_indices_map(shape)
        return {device: index for device, index in every.items() if device in self._devices}


@pytest.mark.parametrize(
    ("shape", "spec", "processes", "parts"),
    [
        ((8, 1, 1), P("data"), 2, 2),
        ((2, 4, 1), P("data", "seq"), 2, 2),
        ((2, 4, 1), P("data", "seq"), 4, 2),  # two processes hold each half of the rows
        ((1, 8, 1), P("data", "seq"), 4, 1),
        ((2, 2, 2), P("data", "seq"), 8, 2),
    ],
)
def test_each_process_reads_the_rows_of_its_devices(shape, spec, processes, parts):
    mesh = make_mesh(*shape)
    groups = np.split(mesh.devices.reshape(-1), processes)
    shares = [share_of(OfProcess(NamedSharding(mesh, spec), set(group)), BATCH) for group in groups]
    assert {share.parts for share in shares} == {parts}
    assert [share.part for share in shares] == [i * parts // processes for i in range(processes)]


def share_of(sharding, array, dim=0):
    return row_share({"x": sharding}, {"x": array.shape}, dim)


def test_a_process_whose_rows_are_scattered_reads_them_all():
    mesh = make_mesh(data=8)
    devices = set(mesh.devices.reshape(-1)[::2])
    share = share_of(OfProcess(NamedSharding(mesh, P("data")), devices), BATCH)
    assert share == RowShare(0, 1)


@pytest.mark.parametrize("spec", [P("data", "seq"), P(None, "seq"), P()], ids=str)
def test_a_placed_batch_is_the_batch(spec):
    sharding = NamedSharding(make_mesh(2, 2, 1), spec)
    share = share_of(sharding, BATCH)
    assert share == RowShare(0, 1)
    placed = place({"x": BATCH}, {"x": sharding}, share, 0)["x"]
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, BATCH)


def test_parts_of_a_batch_keep_their_leading_axis():
    sharding = NamedSharding(make_mesh(2, 2, 1), P(None, "data", "seq"))
    parts = BATCH.reshape(2, 4, 8)
    share = share_of(sharding, parts, dim=1)
    placed = place({"x": parts}, {"x": sharding}, share, 1)["x"]
    np.testing.assert_array_equal(placed, parts)


def test_arrays_without_tokens_lie_beside_those_that_have_them():
    """Labels of rank one, images of rank three: each by its own specification."""
    mesh = make_mesh(2, 2, 1)
    arrays = {"labels": np.arange(4), "images": np.arange(36).reshape(4, 3, 3)}
    shardings = {
        "labels": NamedSharding(mesh, P("data")),
        "images": NamedSharding(mesh, P("data", None, None)),
    }
    share = row_share(shardings, {name: x.shape for name, x in arrays.items()}, 0)
    for name, placed in place(arrays, shardings, share, 0).items():
        np.testing.assert_array_equal(placed, arrays[name])
