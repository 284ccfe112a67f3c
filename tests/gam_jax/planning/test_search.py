"""Candidates: all that there are, each priced or refused for a reason, scaled as traced."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.interpreters import partial_eval

from experiments.planned import run_of
from gam_jax.bilevel import Bilevel
from gam_jax.data import Digits
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Attention, Block, Chunked, Mixed
from gam_jax.models import ImageClassifier
from gam_jax.models.language import LanguageModel
from gam_jax.ops import fused_attention
from gam_jax.params import abstract_params
from gam_jax.planning.cluster import Level
from gam_jax.planning.live import lives
from gam_jax.planning.search import (
    LEVELS,
    MEMORY,
    PARAMETERS,
    REASONS,
    REFUSED,
    ROWS,
    Space,
    plan,
)
from gam_jax.planning.traces import abstract_layout, trace
from gam_jax.planning.work import Candidate, own_trace, state_of, tile_bytes, work_of
from gam_jax.traffic import state_bytes, step_traffic
from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.step import make_gradients
from sharding.degrees import legal
from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES
from sharding.products import product_flops
from tests.gam_jax.planning.made import made

MODEL = LanguageModel(Block(GAM(slots=32, kernel=4)), width=32, depth=3, vocab=256)
EXPERIMENT = Experiment(MODEL, Text(window=32), TrainConfig(batch=48))
RUN = run_of(EXPERIMENT)
LINKS = (Level("node", 4, 1e9), Level("network", 16, 1e8))
SPACE = Space(("data", "tensor"), data_words=("zero1", "fully_sharded"), parts=4)
CANDIDATES = list(SPACE.candidates(16, RUN.batch))


@pytest.fixture(scope="module")
def found():
    """All candidates on sixteen devices with room for every one."""
    return plan(RUN, made(*LINKS, capacity=1e12), CANDIDATES)


def test_every_mesh_of_all_devices_is_among_the_candidates_once():
    assert len(set(CANDIDATES)) == len(CANDIDATES)
    for candidate in CANDIDATES:
        assert math.prod(candidate.sizes.values()) == 16
        assert tuple(candidate.sizes) == AXIS_NAMES
    meshes = {(each.sizes["data"], each.sizes["tensor"]) for each in CANDIDATES}
    assert meshes == {(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)}
    assert {each.accumulate for each in CANDIDATES} == {1, 2, 3, 4}


def test_every_refused_candidate_has_a_reason_and_every_other_one_a_price(found):
    priced = [each.candidate for each in found.priced]
    refused = [each.candidate for each in found.refused]
    assert sorted(map(repr, priced + refused)) == sorted(map(repr, CANDIDATES))
    for each in found.refused:
        assert each.reason in REASONS
        assert each.why
    assert sum(found.reasons.values()) == len(refused)
    assert set(found.reasons) == {ROWS}
    assert all(each.cost.seconds > 0 for each in found.priced)
    seconds = [each.cost.seconds for each in found.priced]
    assert seconds == sorted(seconds)


def test_few_programs_are_traced(found):
    """Of data alone, and two sizes of a split width; parameters whole, or in shards."""
    assert found.traces == (1 + 2) * 2


def test_a_thousand_candidates_need_no_more_than_ten_programs():
    """However many parts of a batch there are; three of them are those of the best, their own."""
    run = dataclasses.replace(RUN, batch=55_440)
    space = Space(parts=1000)  # what `gam plan` tries where nothing is said, and more parts
    candidates = list(space.candidates(64, run.batch))
    assert len(candidates) > 1000
    many = plan(run, made(LINKS[0], Level("network", 64, 1e8), capacity=1e12), candidates, own=3)
    assert len(many.own) == 3
    assert len(many.priced) > 100
    assert many.traces <= 10


def test_what_is_stacked_is_that_of_the_candidates_own_program(found):
    drawn = np.random.default_rng(0).choice(len(found.priced), 10, replace=False)
    for each in (found.priced[i].candidate for i in drawn):
        traced = found.traced[each.kind]
        layout = abstract_layout(each.sizes, each.preset)
        rows = RUN.batch // each.accumulate // layout.row_parts
        jaxpr = RUN.program(RUN.with_remat(each.remat), layout, rows)
        own = lives(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])
        scale = traced.scale(rows, each.sizes)
        assert float(traced.stacked.at(scale)) == pytest.approx(own.sizes[own.stacked].sum())
        assert float(traced.peak.at(scale).max()) == pytest.approx(own.peak, rel=0.02)
        flops = sum(float(terms.at(scale)) for terms in traced.flops.values())
        assert flops == pytest.approx(own.flops.sum())


def test_state_and_messages_are_those_of_the_formulas(found):
    each = found.priced[0].candidate
    work = work_of(RUN, each, found.traced[each.kind])
    model = RUN.with_remat(each.remat)
    assert list(work.messages) == step_traffic(model, each.layout, 48, 32, each.accumulate)
    assert work.held > state_bytes(MODEL, EXPERIMENT.optimizer, each.layout).total


def test_the_best_are_priced_by_programs_of_their_own(found):
    best = plan(RUN, made(*LINKS, capacity=1e12), CANDIDATES, known=found.traced, own=2)
    assert best.traces == found.traces + len(best.own)
    assert {each.candidate for each in best.priced[:2]} == set(best.own)
    assert {each.candidate for each in best.priced} == {each.candidate for each in found.priced}
    seconds = {each.candidate: each.cost.seconds for each in found.priced}
    for each in best.priced:
        assert each.cost.seconds == pytest.approx(seconds[each.candidate], rel=0.05)


def test_a_plan_prices_the_program_of_the_machines_backend(monkeypatch):
    """A TPU's kernel counts its products, and holds no scores; blocks of all heads at once do."""
    monkeypatch.setattr(fused_attention, "AT_ONCE", {})
    block = Block(Attention(heads=4, context=256))
    model = LanguageModel(block, width=32, depth=2, vocab=256)
    experiment = Experiment(model, Text(window=256), TrainConfig(batch=8))
    mesh = tuple((name, 8 if name == "data" else 1) for name in AXIS_NAMES)
    one = Candidate(mesh, "data", 1, False)
    held = {}
    for backend in ("cpu", "tpu"):
        run = dataclasses.replace(run_of(experiment), backend=backend)
        layout = abstract_layout(one.sizes, "data", backend=backend)
        jaxpr = run.program(model, layout, 1)
        traced = own_trace(run, one)
        scale = traced.scale(1, one.sizes)
        flops = sum(float(terms.at(scale)) for terms in traced.flops.values())
        assert flops == product_flops(jaxpr).total()
        assert ("opaque" in str(jaxpr)) == (backend == "tpu")
        held[backend] = work_of(run, one, traced).held
    assert held["tpu"] < held["cpu"]


WORDS = ("fully_sharded", "zero2", "mics", "hpz")
DEGREES = {
    "fully_sharded": "weights:16,gradients:16,state:16",
    "mics": "weights:4,gradients:4,state:4",
    "hpz": "weights:16,gradients:16,state:16,secondary:4",
}
"""In the levels of `LINKS`."""


@pytest.mark.parametrize("words", [WORDS, pytest.param((*WORDS, LEVELS), marks=pytest.mark.slow)])
def test_uses_of_data_in_the_levels_of_a_cluster_are_ranked(words):
    cluster = made(*LINKS, capacity=1e12)
    space = Space(("data",), data_words=words, parts=1)
    candidates = list(space.candidates(16, RUN.batch, cluster))
    assert len(set(candidates)) == len(candidates)
    assert len(candidates) == len(WORDS) + (LEVELS in words) * len(legal((4, 4)))
    priced = {
        each.candidate.use.shards or each.candidate.preset: each
        for each in plan(RUN, cluster, candidates).priced
    }
    assert len(priced) == len(candidates)
    for each in priced.values():
        one, apart = each.candidate, each.candidate.preset in ("fully_sharded", "zero2")
        assert ("data_0" in one.layout.mesh.shape) == (not apart)
        assert ("--mesh=data=4x4 " in one.flags) == (not apart)
    slow = {name: priced[name].cost.messages.get("data_0", 0) for name in ("mics", "hpz")}
    assert 0 < slow["mics"] < priced["fully_sharded"].cost.messages["data"]
    assert priced["hpz"].cost.seconds < priced["fully_sharded"].cost.seconds
    assert priced["hpz"].cost.held > priced["fully_sharded"].cost.held
    for word, degrees in DEGREES.items() if LEVELS in words else ():
        one, other = (sum(priced[name].cost.messages.values()) for name in (word, degrees))
        assert one == pytest.approx(other)
        assert priced[word].cost.held == pytest.approx(priced[degrees].cost.held)
        assert f"--config.parallel.shards={degrees}" in priced[degrees].candidate.flags


def test_where_a_cluster_has_one_level_there_are_no_degrees_of_levels():
    one = made(Level("node", 16, 1e9), capacity=1e12)
    space = Space(("data",), data_words=("mics", "hpz", LEVELS), parts=1)
    assert not list(space.candidates(16, RUN.batch, one))
    assert not list(space.candidates(16, RUN.batch))


def test_less_memory_refuses_more_and_nothing_that_fits(found):
    held = sorted(each.cost.held for each in found.priced)
    half = held[len(held) // 2]
    small = made(*LINKS, capacity=half)
    few = plan(RUN, small, CANDIDATES, known=found.traced)
    assert few.reasons[MEMORY] == sum(each > half for each in held)
    tight = plan(RUN, small, CANDIDATES, margin=2.0, known=found.traced)
    assert {each.candidate for each in tight.priced} < {each.candidate for each in few.priced}


def test_what_does_not_divide_says_what():
    odd = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, width=24))
    model = dataclasses.replace(odd.model, block=Block(GAM(slots=24, kernel=4)))
    odd = dataclasses.replace(odd, model=model)
    some = [each for each in CANDIDATES if each.sizes["tensor"] == 16]
    refused = plan(odd, made(*LINKS), some).refused
    assert {each.reason for each in refused} == {PARAMETERS}
    assert "not divisible by mesh axis tensor=16" in refused[0].why


def test_a_program_that_the_model_refuses_is_a_reason():
    def program(model, layout, rows):
        raise ValueError("a shard is shorter than the reach")

    some = plan(dataclasses.replace(RUN, program=program), made(*LINKS), CANDIDATES[:1])
    assert [(each.reason, each.why) for each in some.refused] == [
        (REFUSED, "a shard is shorter than the reach")
    ]


def test_flags_say_the_candidate(found):
    each = next(p.candidate for p in found.priced if p.candidate.sizes["tensor"] == 2)
    assert "--mesh=data=8,tensor=2" in each.flags
    assert f"--config.parallel.preset={each.preset}" in each.flags


@pytest.mark.parametrize("remat", [False, True])
def test_stages_multiply_what_their_own_program_does_masked_ticks_too(remat):
    model = dataclasses.replace(MODEL, depth=4, remat=remat)
    experiment = dataclasses.replace(EXPERIMENT, model=model, train=TrainConfig(batch=64))
    run, parts = run_of(experiment), 4
    mesh = tuple((name, {"pipe": 2, "data": 4}.get(name, 1)) for name in AXIS_NAMES)
    one = Candidate(mesh, "data", parts, remat)
    traced = trace(run, one.kind, {"data": (4,)})
    work = work_of(run, one, traced)
    expected = sum(work.flops.values()) * (1 + work.idle)

    rows = {name: (parts, *x.shape) for name, x in experiment.data.batch(64 // parts).items()}
    kinds = {name: x.dtype for name, x in experiment.data.batch(1).items()}
    batch = {name: jax.ShapeDtypeStruct(shape, kinds[name]) for name, shape in rows.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = abstract_params(model.stored_table())
    gradients = make_gradients(model, one.layout, parts)
    own = product_flops(jax.make_jaxpr(gradients)(params, batch, key).jaxpr).total()
    assert expected == pytest.approx(own, rel=0.15)


def test_stages_hold_less_state_and_idle_less_with_more_parts():
    model = dataclasses.replace(MODEL, depth=4)
    run = run_of(dataclasses.replace(EXPERIMENT, model=model, train=TrainConfig(batch=64)))
    space = Space(("pipe", "data"), data_words=("data",), parts=16)
    found = plan(run, made(*LINKS, capacity=1e12), list(space.candidates(8, 64)))
    staged = [each for each in found.priced if each.candidate.sizes["pipe"] == 2]
    assert {each.candidate.schedule for each in staged} == {"1f1b", "interleaved"}
    plain = [each for each in staged if each.candidate.schedule == "1f1b"]
    shares = {
        each.candidate.accumulate: each.cost.idle / (each.cost.products + each.cost.memory)
        for each in plain
    }
    assert len(shares) > 2
    assert list(map(shares.get, sorted(shares))) == sorted(shares.values(), reverse=True)
    assert {each.reason for each in found.refused} <= set(REASONS)
    assert any("--config.parallel.schedule=1f1b" in each.candidate.flags for each in plain)


def test_logits_that_are_trained_apart_have_a_pass_of_their_own():
    """Of their rows, without products that give gradients of weights; and moments of their own."""
    block = Block(Mixed((GAM(slots=16), MLP(hidden=32)), "sum"), MLP(hidden=64))
    model = LanguageModel(block, width=32, depth=2, vocab=64)
    mesh = tuple((name, 2 if name == "data" else 1) for name in AXIS_NAMES)
    found = {}
    for parts, rate in ((1, 0.0), (2, 0.0), (2, 1e-3), (4, 1e-3)):
        train = TrainConfig(batch=48, accumulate=parts, bilevel=Bilevel(rate))
        run = run_of(dataclasses.replace(EXPERIMENT, model=model, train=train))
        one = Candidate(mesh, "data", parts, False)
        found[parts, rate] = work_of(run, one, own_trace(run, one)), state_of(run, one).total
    both, plain = found[2, 1e-3], found[2, 0.0]
    flops = {kind: sum(work.flops.values()) for kind, (work, _) in found.items()}
    assert flops[2, 1e-3] / flops[1, 0.0] == pytest.approx((3 + 2) / 6, rel=0.01)
    assert flops[4, 1e-3] == pytest.approx(flops[2, 1e-3])
    assert both[1] == plain[1] + 4  # a count more
    assert both[0].held < plain[0].held  # nothing is summed over parts
    odd = [one for one in CANDIDATES if one.accumulate % 2]
    levels = dataclasses.replace(RUN, bilevel=Bilevel(1e-3))
    assert {each.reason for each in plan(levels, made(*LINKS), odd).refused} == {ROWS}
    assert not plan(levels, made(*LINKS), odd).priced
    with pytest.raises(UserError, match="half train logits"):
        levels.through(3)


def test_a_classifier_of_images_is_priced_and_computes_no_blocks_again():
    model = ImageClassifier(Block(GAM(slots=8)), width=8, depth=1, side=8, classes=10, patch=4)
    run = run_of(Experiment(model, Digits(), TrainConfig(batch=8)))
    sizes = {**dict.fromkeys(AXIS_NAMES, 1), "data": 2}
    one = Candidate(tuple(sizes.items()), "data", 1, False)
    found = plan(run, made(Level("node", 2, 1e9)), [one, dataclasses.replace(one, remat=True)])
    assert [each.candidate for each in found.priced] == [one]
    assert found.reasons == {REFUSED: 1}
    assert "ImageClassifier computes no blocks again" in found.refused[0].why


def test_state_takes_whole_tiles_on_a_tpu():
    """Heads of 64 numbers, their width split to 64, lie in rows of 128: twice as large."""
    block = Block(Attention(heads=8, context=256))
    model = LanguageModel(block, width=512, depth=4, vocab=1024)
    run = run_of(Experiment(model, Text(window=256), TrainConfig(batch=8)))
    mesh = tuple((name, 8 if name == "data" else 1) for name in AXIS_NAMES)
    for preset, copies in (("fully_sharded", 3), ("zero1", 2), ("data", 0)):
        one = Candidate(mesh, preset, 1, False)  # copies: parameters and averages in shards
        heads = 4 * 4 * 512 * 512 / 8 * 4
        more = tile_bytes(state_of(run, one), model, one.layout)
        assert copies * heads <= more <= copies * heads * 1.01 + 2**17


def test_a_traced_program_has_rows_that_are_no_factor_of_its_tokens():
    """Else what grows with the tokens alone would be taken to grow with the rows."""
    chunked = Block(Chunked(GAM(slots=16), size=13))
    model = LanguageModel(chunked, width=32, depth=2, vocab=64)
    run = run_of(Experiment(model, Text(window=11 * 26), TrainConfig(batch=48)))
    mesh = tuple((name, 2 if name == "data" else 1) for name in AXIS_NAMES)
    one = Candidate(mesh, "data", 1, False)
    traced = trace(run, one.kind, {"data": (2,)})
    assert traced.rows == 17
    flops = sum(float(terms.at(traced.scale(24, one.sizes))) for terms in traced.flops.values())
    own = own_trace(run, one)
    scale = own.scale(24, one.sizes)
    expected = sum(float(terms.at(scale)) for terms in own.flops.values())
    assert flops == pytest.approx(expected, rel=0.05)  # blocks of the loss are not all full
