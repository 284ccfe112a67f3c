"""Ways to serve: each is ranked by what a simulation finds, or refused for a reason."""

from __future__ import annotations

import dataclasses
import math

import pytest

from gam_jax.layers import MLP, Attention, Block, Mixed
from gam_jax.models.language import LanguageModel
from gam_jax.planning.batching import simulate
from gam_jax.planning.cluster import Level
from gam_jax.planning.cost import cost
from gam_jax.planning.requests import Asked
from gam_jax.planning.serve_search import (
    LATE,
    MEMORY,
    REASONS,
    REFUSED,
    SLOW,
    UNSAID,
    Bounds,
    Way,
    in_halves,
    plan,
    told_flags,
    ways,
)
from gam_jax.planning.serving import trace
from gam_jax.planning.traces import abstract_layout
from gam_jax.serve.device import served
from gam_jax.serve.listed import rows_of
from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES
from sharding.parallel import Parallel
from tests.gam_jax.planning.made import made

MODEL = LanguageModel(
    Block(Attention(heads=2, context=256), MLP(expansion=1)), width=16, depth=1, vocab=24
)
LINKS = Level("node", 4, 1e9, 1e-6)
REQUESTS = tuple(Asked(0.05 * i, 5 + i % 7, 4 + i % 5) for i in range(24))


def arriving(rate):
    """The same lengths at any rate."""
    return tuple(dataclasses.replace(r, arrives=i / rate) for i, r in enumerate(REQUESTS))


def again(some, found, cluster=made(LINKS), **options):
    """Plans with programs that are known."""
    return plan(MODEL, cluster, some, arriving, known=found.programs, **options)


@pytest.fixture(scope="module")
def found():
    """Four devices: replicas and splits of both, one split too many."""
    return plan(MODEL, made(LINKS), list(ways(4, ("tensor",), (2, 4), (512,))), arriving)


def test_every_way_takes_all_devices_and_stands_there_once():
    all_ways = list(ways(8, ("data", "tensor"), (4, 8), (256, 512)))
    assert len(set(all_ways)) == len(all_ways) == 4 * 10
    for way in all_ways:
        assert way.replicas * math.prod(dict(way.mesh).values()) == 8
        assert tuple(dict(way.mesh)) == AXIS_NAMES


def test_each_is_served_or_refused_and_the_most_tokens_come_first(found):
    assert len(found.served) + len(found.refused) == 6
    assert found.reasons == {REFUSED: 2}  # two heads over four devices
    assert set(found.reasons) <= set(REASONS)
    assert all(why for _, _, why in found.refused)
    tokens = [each.tokens for each in found.served]
    assert tokens == sorted(tokens, reverse=True)
    assert found.traces == 2 * (10 + 1)  # of each mesh; with other rows the step is another one


def test_a_ways_figures_are_those_of_its_simulation(found):
    each = next(one for one in found.served if one.way.replicas == 4 and one.way.rows == 2)
    program = trace(MODEL, dict(each.way.mesh), 2, max(r.reads + r.writes for r in REQUESTS))
    cluster = made(LINKS)
    outcomes = [
        simulate(
            arriving(math.inf)[i::4],
            each.sizes,
            lambda name, tokens: program.seconds(cluster, name, tokens),
            (1.0, 1.0),
            lambda size: 0.0,
        )
        for i in range(4)
    ]
    written = sum(outcome.counts.written for outcome in outcomes)
    assert written == sum(asked.writes for asked in REQUESTS)
    assert each.tokens == pytest.approx(written / max(o.seconds for o in outcomes))
    assert each.first[0] <= each.first[1]
    assert 0 < each.busy <= 1 + 1e-9


def test_a_pool_has_all_pages_that_rows_can_fill_where_there_is_memory(found):
    for each in found.served:
        assert each.sizes.pages == 1 + each.way.rows * each.sizes.row_pages
        assert each.held <= each.capacity
        assert f"--cache_tokens={64 * (each.sizes.pages - 1)}" in told_flags(each)
        assert f"--rows={each.way.rows}" in told_flags(each)


def test_halves_run_beside_each_other_as_far_as_they_need_different_things(found):
    for each in found.served:
        took = in_halves(MODEL, made(LINKS), each, found.programs)
        rows = each.way.rows // 2
        half = trace(MODEL, dict(each.way.mesh), rows, each.sizes.limit)
        alone = cost(half.work("step 1", each.middle), made(LINKS))
        most = max(alone.products, alone.memory, sum(alone.messages.values()))
        assert took is not None
        assert max(2 * most, alone.seconds) <= took * (1 + 1e-9)
        assert took <= 2 * alone.seconds * (1 + 1e-9)


def test_bounds_are_kept_at_the_highest_rate_that_is_found_or_refused(found):
    one = [way for way in ways(4, ("tensor",), (2,), (512,)) if way.replicas == 4]
    (free,) = again(one, found).served
    bounds = Bounds(first=free.first[1] / 2)
    (kept,) = again(one, found, bounds=bounds).served
    assert kept.keeps(bounds)
    assert math.isfinite(kept.rate)
    assert kept.tokens < free.tokens
    assert plan(
        MODEL, made(LINKS), one, arriving, known=found.programs, bounds=Bounds(first=1e-12)
    ).reasons == {SLOW: 1}
    late = again(one, found, rate=1e9, bounds=bounds)
    assert late.reasons == {LATE: 1}


def test_faster_devices_and_links_never_serve_fewer_tokens(found):
    some = [each.way for each in found.served]
    for cluster in (made(LINKS, bandwidth=4e11), made(dataclasses.replace(LINKS, bandwidth=1e10))):
        better = {each.way: each for each in again(some, found, cluster).served}
        for each in found.served:
            assert better[each.way].tokens >= each.tokens * (1 - 1e-9)


def test_what_does_not_fit_is_refused():
    some = list(ways(1, ("tensor",), (2,), (512,)))
    tight = plan(MODEL, made(capacity=1e3), some, arriving)
    assert tight.reasons == {MEMORY: 1}
    assert "needs" in tight.refused[0][2]
    long = lambda rate: (Asked(0.0, 300, 1),)  # noqa: E731
    with pytest.raises(UserError, match="301 tokens, and the model takes 256"):
        plan(MODEL, made(), some, long)
    staged = Way(1, tuple((name, 2 if name == "pipe" else 1) for name in AXIS_NAMES), 2, 512)
    assert plan(MODEL, made(), [staged], arriving).reasons == {REFUSED: 1}


def test_a_server_with_the_flags_that_are_told_has_the_pages_that_were_planned(found):
    """They hold far more texts than the model's own limit would need pages for."""
    for each in found.served:
        told = dict(word.removeprefix("--").split("=", 1) for word in told_flags(each).split())
        model, limit = served(MODEL, int(told["limit"]))
        layout = abstract_layout(dict(each.way.mesh), Parallel().whole.preset)
        sized = {"limit": limit, "tokens": int(told["cache_tokens"])}
        assert rows_of(model, layout, int(told["rows"]), **sized)[1] == each.sizes


def test_a_way_that_asks_for_a_figure_nobody_has_said_is_refused_alone(found):
    """Four rows in a pool of so few pages park a text, and nobody has said how fast that is."""
    ways_of = [way for way in (each.way for each in found.served) if way.replicas == 4]
    long = lambda rate: (Asked(0.0, 70, 120),) * 16  # noqa: E731
    free = {w.rows: trace(MODEL, dict(w.mesh), w.rows, 190, backend="gpu") for w in ways_of}
    one = {(w.mesh, w.rows): free[w.rows] for w in ways_of}
    most = max(each.least for each in free.values())
    tight = made(LINKS, capacity=most + 8 * free[2].held.page)
    result = plan(MODEL, tight, ways_of, long, known=one)
    assert result.reasons == {UNSAID: 1}
    assert "memory.host.dma" in result.refused[0][2]
    with pytest.raises(UserError, match=r"memory\.host\.dma"):
        plan(MODEL, tight, [result.refused[0][0]], long, known=one)


def test_a_model_that_draws_an_option_is_refused():
    options = (MLP(expansion=1), MLP(expansion=4))
    drawn = dataclasses.replace(MODEL, block=Block(MODEL.block.mixer, Mixed(options, how="one")))
    with pytest.raises(UserError, match="extract it first"):
        plan(drawn, made(), [], arriving)
