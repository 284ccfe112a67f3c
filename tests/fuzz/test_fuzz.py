"""Whatever a person can type, or hand over as a file, ends in one line and code 2, or is taken.

`pytest -n0 -s -m slow tests/fuzz --hypothesis-seed=1` tries 3,000 cases and prints how they ended.
"""

from __future__ import annotations

import collections
import dataclasses
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from experiments.command import COMMANDS
from gam_jax.config import to_dict
from gam_jax.data import DATA
from gam_jax.layers import LAYERS
from gam_jax.models import MODELS
from gam_jax.training.experiment import Experiment
from tests.fuzz.areas import AREAS
from tests.fuzz.fields import configs, parts
from tests.fuzz.law import FellShort, nothing_long, verdict
from tests.fuzz.lines import declared

SLOW = 20
"""Times as many cases in the slow test."""
EVERY = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.filter_too_much,
]


def tried(shop, patch, area, count, derandomize=True):
    """How the cases of an area ended: (taken, refused, those that fell short)."""
    make, _ = AREAS[area]
    ended, bad = collections.Counter(), {}

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=derandomize,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=EVERY,
    )
    @given(make(shop))
    def each(case):
        shop.renew()
        for name, content in case.files.items():
            path = shop.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            with nothing_long(patch, shop.place):
                ended[verdict(case.call, shop.place)] += 1
        except FellShort as short:
            ended["fell short"] += 1
            bad.setdefault(re.sub(r"\[.*|'.*|\d{4,}", "", str(short)), f"{short}\n    {case.told}")

    each()
    print(
        f"\n{area}: {sum(ended.values())} tried, {ended['refused']} refused in one line, "
        f"{ended['taken']} taken, {ended['fell short']} fell short"
    )
    return ended, bad


def test_every_registered_class_is_tried():
    found = {type(part) for _, one in configs().values() for _, part in parts(to_dict(one), one)}
    registered = {*LAYERS.values(), *MODELS.values(), *DATA.values()}
    assert {kind for kind in registered if dataclasses.fields(kind)} <= found
    assert {field.type for field in dataclasses.fields(Experiment)} <= {
        *(kind.__name__ for kind in found), "Model", "Data",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_tried_with_the_flags_that_it_declares(name):
    assert declared(name).flags


@pytest.mark.parametrize("area", AREAS)
def test_whatever_is_given_ends_in_one_line_or_is_taken(area, shop, monkeypatch):
    ended, bad = tried(shop, monkeypatch, area, AREAS[area][1])
    assert not bad, "\n\n".join(bad.values())
    assert ended["refused"] or ended["taken"]


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_three_thousand_cases_end_so(area, shop, monkeypatch):
    _, bad = tried(shop, monkeypatch, area, SLOW * AREAS[area][1], derandomize=False)
    assert not bad, "\n\n".join(bad.values())
