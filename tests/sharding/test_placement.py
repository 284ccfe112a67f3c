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
    shares = [
        row_share(OfProcess(NamedSharding(mesh, spec), set(group)), BATCH.shape) for group in groups
    ]
    assert {share.parts for share in shares} == {parts}
    assert [share.part for share in shares] == [i * parts // processes for i in range(processes)]


def test_a_process_whose_rows_are_scattered_reads_them_all():
    mesh = make_mesh(data=8)
    devices = set(mesh.devices.reshape(-1)[::2])
    share = row_share(OfProcess(NamedSharding(mesh, P("data")), devices), BATCH.shape)
    assert share == RowShare(0, 1)


@pytest.mark.parametrize("spec", [P("data", "seq"), P(None, "seq"), P()], ids=str)
def test_a_placed_batch_is_the_batch(spec):
    sharding = NamedSharding(make_mesh(2, 2, 1), spec)
    share = row_share(sharding, BATCH.shape)
    assert share == RowShare(0, 1)
    placed = place({"x": BATCH}, sharding, share)["x"]
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, BATCH)


def test_parts_of_a_batch_keep_their_leading_axis():
    sharding = NamedSharding(make_mesh(2, 2, 1), P(None, "data", "seq"))
    parts = BATCH.reshape(2, 4, 8)
    share = row_share(sharding, parts.shape)
    np.testing.assert_array_equal(place({"x": parts}, sharding, share)["x"], parts)
