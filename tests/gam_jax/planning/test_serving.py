"""Programs that are priced are those of the real device: products, messages, bytes."""

from __future__ import annotations

import functools

import jax
import pytest

from gam_jax.layers import GAM, MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.ops.pages import columns_of
from gam_jax.planning.serving import trace
from gam_jax.serve.device import Device
from gam_jax.serve.programs import SCORES
from sharding.mesh import AXIS_NAMES
from sharding.messages import totals
from tests.examples import WIDTH, random_like
from tests.gam_jax.planning.made import made

ROWS, LIMIT, PAGE = 4, 256, 4
MIXERS = {"gam": GAM(slots=8), "attention": Attention(heads=2, context=LIMIT)}
SIZES = {"limit": LIMIT, "page": PAGE, "widths": (8, 1)}


@functools.cache
def model_of(mixer):
    return LanguageModel(Block(MIXERS[mixer], MLP(expansion=1)), WIDTH, depth=5, vocab=24)


@functools.cache
def traced(mixer, whole=False, **sizes):
    mesh = {name: sizes.get(name, 1) for name in AXIS_NAMES}
    return trace(model_of(mixer), mesh, ROWS, LIMIT, "cpu", PAGE, SIZES["widths"], whole)


@functools.cache
def device_of(mixer):
    model = model_of(mixer)
    return Device(model, random_like(model.table()), ROWS, **SIZES)


@pytest.mark.parametrize("mixer", MIXERS)
def test_products_and_arguments_are_those_of_the_device(mixer):
    device, found = device_of(mixer), traced(mixer)
    assert set(found.programs) == set(device._traced)
    for name in ("step 1", "read 8"):
        most = found.work(name, LIMIT)
        assert sum(most.flops.values()) == device.flops(name, [SCORES])[""]
    pages = device.sizes.pages * found.held.page
    given = sum(x.nbytes for x in jax.tree.leaves((device._params, device._state)))
    assert found.held.params + found.held.rows + pages == given


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_few_blocks_tell_of_all(mixer):
    scaled, whole = traced(mixer, tensor=2), traced(mixer, whole=True, tensor=2)
    assert scaled.held == whole.held
    for name in whole.programs:
        for tokens in (1, LIMIT):
            ours, own = scaled.work(name, tokens), whole.work(name, tokens)
            assert ours.flops == pytest.approx(own.flops)
            assert ours.product_bytes == pytest.approx(own.product_bytes)
            assert ours.other_bytes == pytest.approx(own.other_bytes)
            assert totals(ours.messages) == totals(own.messages)


def test_what_is_sent_falls_to_nothing_on_one_device_and_what_is_read_is_split():
    one, two = traced("attention"), traced("attention", tensor=2)
    assert totals(one.work("step 1").messages) == {}
    (kind,) = {collective for collective, _ in totals(two.work("step 1").messages)} - {"all_gather"}
    assert kind == "all_reduce"
    assert one.held.page == 2 * two.held.page
    assert one.held.params > two.held.params > one.held.params / 2


def test_a_row_that_has_read_more_takes_longer_where_its_cache_grows_and_there_alone():
    cluster = made()
    for mixer in MIXERS:
        few, many = (traced(mixer).seconds(cluster, "step 1", n) for n in (1, LIMIT))
        assert (few < many) == (mixer == "attention")
    turns = traced("attention").programs["step 1"].turns
    columns = columns_of(PAGE, LIMIT // PAGE, "cpu")
    assert turns == LIMIT // columns > 1
    counts = 1, columns, columns + 1
    seconds = [traced("attention").seconds(cluster, "step 1", n) for n in counts]
    assert seconds[0] == seconds[1] < seconds[2]


def test_other_rows_take_the_programs_of_one_row_as_they_are():
    mesh = dict.fromkeys(AXIS_NAMES, 1)
    first = traced("attention")
    more = trace(model_of("attention"), mesh, 8, LIMIT, "cpu", PAGE, SIZES["widths"], like=first)
    assert more.programs["read 8"] is first.programs["read 8"]
    assert set(more.programs) == set(first.programs)
    assert more.sizes.rows == 8
    assert more.held.rows == 2 * first.held.rows
