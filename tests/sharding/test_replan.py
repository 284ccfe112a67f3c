"""The mesh for the devices that are left: always valid, and the best by the written rule."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.data.text import Text
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.training.checks import refusal
from gam_jax.training.experiment import Experiment, TrainConfig
from sharding.errors import UserError
from sharding.mesh import ALWAYS_SHOWN, AXIS_NAMES, arrange, in_words, parse_axes
from sharding.replan import Plan, replan

ORDER = ("tensor", "expert", "seq", "stream", "pipe", "data")
"""What is kept first."""


def anything(sizes):
    return None


def dividing(rows, tokens, width):
    """What a run of that batch, window and width of its layers says of a mesh."""

    def refusal(sizes):
        whole = {"data": rows, "seq": tokens, "tensor": width}
        whole |= dict.fromkeys(("worker", "pipe", "stream", "expert"), 4)
        bad = [name for name, size in sizes.items() if whole[name] % size]
        return f"{bad[0]} does not divide" if bad else None

    return refusal


def valid_meshes(wanted, processes, devices, refusal):
    """Every valid mesh, found the long way: sizes -> the processes that it can lie on."""
    found = {}
    for sizes in itertools.product(*(range(1, wanted[name] + 1) for name in AXIS_NAMES)):
        needed = math.prod(sizes)
        for used in range(1, processes + 1):
            each = needed / used
            if each != (devices if used > 1 else min(needed, devices)):
                continue
            try:
                arrange([i // int(each) for i in range(needed)], sizes)
            except UserError:
                continue
            if refusal(dict(zip(AXIS_NAMES, sizes, strict=True))) is None:
                found.setdefault(sizes, used)
    return found


small = st.integers(1, 4)
runs = st.builds(
    dividing,
    rows=st.sampled_from([4, 6, 8, 12]),
    tokens=st.sampled_from([8, 12, 16]),
    width=st.sampled_from([4, 6, 8, 16]),
)
meshes = st.fixed_dictionaries(
    {name: small if name in ALWAYS_SHOWN else st.integers(1, 2) for name in AXIS_NAMES}
)


def sizes_of(plan):
    sizes = parse_axes(plan.mesh)
    return tuple(sizes.get(name, 1) for name in AXIS_NAMES)


def by_order(plan):
    """Its sizes, what is kept first before the others."""
    return [parse_axes(plan.mesh).get(name, 1) for name in ORDER]


@given(wanted=meshes, processes=small, devices=small, run=runs)
def test_a_plan_is_valid_and_the_best_of_all_valid_meshes(wanted, processes, devices, run):
    plan = replan(in_words(wanted), processes, devices, run)
    valid = valid_meshes(wanted, processes, devices, run)
    assert valid[sizes_of(plan)] == plan.processes
    assert plan.processes * plan.devices == math.prod(sizes_of(plan))
    rank = {name: place for place, name in enumerate(AXIS_NAMES)}
    best = max(valid, key=lambda sizes: [sizes[rank[name]] for name in ORDER])
    assert sizes_of(plan) == best


@given(wanted=meshes, processes=small, run=runs)
def test_a_mesh_for_which_all_is_there_stays(wanted, processes, run):
    needed = math.prod(wanted.values())
    if run(wanted) is None:
        assert replan(in_words(wanted), 1, needed, run) == Plan(in_words(wanted), 1, needed)
    if needed % processes == 0:
        try:
            arrange(
                [i * processes // needed for i in range(needed)],
                [wanted[name] for name in AXIS_NAMES],
            )
        except UserError:
            return
        found = replan(in_words(wanted), processes, needed // processes, anything)
        assert found == Plan(in_words(wanted), processes, needed // processes)


@given(wanted=meshes, devices=st.integers(1, 12), run=runs)
def test_more_devices_never_make_an_axis_give_way_that_was_kept(wanted, devices, run):
    less, more = (by_order(replan(in_words(wanted), 1, n, run)) for n in (devices, devices + 1))
    assert less <= more  # tensor first, then seq, then data


@given(total=st.integers(1, 16), tensor=small, run=runs)
def test_the_axis_of_what_is_left_gives_way_first_and_may_grow(total, tensor, run):
    kept, _, seq, *_, data = by_order(replan(f"tensor={tensor},seq=-1,data=2", 1, total, run))
    most, *_, whole = by_order(replan(f"tensor={tensor},data=2", 1, total, run))
    assert (data, kept) == (whole, most)
    fits = [
        size
        for size in range(1, total // (data * kept) + 1)
        if run({"data": data, "seq": size, "tensor": kept}) is None
    ]
    assert seq == max(fits)


@pytest.mark.parametrize(
    ("wanted", "processes", "devices", "plan"),
    [
        ("data=4,tensor=2", 1, 4, Plan("data=2,seq=1,tensor=2", 1, 4)),
        ("data=2,seq=2,tensor=2", 3, 2, Plan("data=1,seq=2,tensor=2", 2, 2)),
        ("data=4,seq=2,tensor=4", 1, 3, Plan("data=1,seq=1,tensor=2", 1, 2)),
        ("", 3, 4, Plan("data=8,seq=1,tensor=1", 2, 4)),
        ("data=4", 3, 1, Plan("data=2,seq=1,tensor=1", 2, 1)),
        ("data=-1,tensor=8", 7, 8, Plan("data=4,seq=1,tensor=8", 4, 8)),
        ("tensor=8", 1, 7, Plan("data=1,seq=1,tensor=4", 1, 4)),
    ],
)
def test_the_rule_by_example(wanted, processes, devices, plan):
    assert replan(wanted, processes, devices, dividing(16, 64, 16)) == plan


@pytest.mark.parametrize(
    ("wanted", "processes", "words"),
    [
        ("data=2", 0, "none are left to plan for"),
        ("data=-1,seq=-1", 2, "only one axis of a mesh can be -1"),
        ("data=0", 2, "mesh axis data=0"),
        ("dta=2", 2, "did you mean 'data'"),
        ("data=2x2", 2, "with data in one level"),
    ],
)
def test_what_cannot_be_planned_is_refused(wanted, processes, words):
    with pytest.raises(UserError, match=words):
        replan(wanted, processes, 4, anything)


def test_a_run_that_fits_nowhere_says_why():
    with pytest.raises(UserError, match="no mesh of up to 2 devices fits this run: too long"):
        replan("data=2", 1, 2, lambda sizes: "too long")


@pytest.mark.parametrize(
    ("wanted", "devices", "mesh"),
    [
        ("data=2,tensor=4", 7, "data=1,seq=1,tensor=4"),
        ("data=2,tensor=4", 3, "data=1,seq=1,tensor=2"),  # 3 does not divide 16 slots
        ("seq=7", 8, "data=1,seq=4,tensor=1"),  # 32 tokens
        ("seq=4,data=2", 6, "data=1,seq=4,tensor=1"),
        ("data=-1,seq=2", 8, "data=3,seq=2,tensor=1"),  # 6 rows
    ],
)
def test_a_model_is_asked_what_it_accepts(wanted, devices, mesh):
    model = LanguageModel(Block(GAM(slots=16, kernel=8)), width=16, depth=1, vocab=32)
    experiment = Experiment(model, Text(window=32), TrainConfig(batch=6))
    plan = replan(wanted, 1, devices, lambda sizes: refusal(experiment, sizes))
    assert plan.mesh == mesh
