"""Every number of every configuration has bounds; what is outside is one line, and not taken."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.configs import gam_small
from gam_jax.config import from_dict, to_dict
from gam_jax.data.audio import Audio
from gam_jax.data.digits import Digits
from gam_jax.data.holes import Holes
from gam_jax.data.narrow_sounds import NarrowSounds
from gam_jax.data.noisy_sounds import NoisySounds
from gam_jax.data.recall import Recall
from gam_jax.data.signals import Sounds, TwoPaths
from gam_jax.data.source_facts import SourceFacts
from gam_jax.data.squares import MovingSquares
from gam_jax.data.videos import Videos
from gam_jax.data.views import BoxViews
from gam_jax.decode import generate
from gam_jax.layers import Layer
from gam_jax.layers.channel_norm import BatchNorm, GroupNorm
from gam_jax.layers.pictures import BetweenPictures
from gam_jax.layers.sources import SourceAttention
from gam_jax.layers.unet import UNet
from gam_jax.models import (
    APNet,
    Autoencoder,
    BandExtender,
    Enhancer,
    ImageClassifier,
    Inpainter,
    LanguageModel,
    MotionTuned,
    PhaseModel,
    PictureDenoiser,
    SourceReader,
    VideoDenoiser,
)
from gam_jax.models.discriminators import Discriminators
from gam_jax.ops.rotary import Positions
from gam_jax.training.experiment import Experiment
from sharding.bounds import FINITE, Bound, _bounds_of
from sharding.errors import UserError
from tests.examples import EXAMPLES

NOTHING: Any = None
SMALL: Any = from_dict(Experiment, gam_small.get_config().to_dict())
CONFIGS = {
    "default": SMALL,
    "digits": Digits(),
    "audio": Audio(),
    "recall": Recall(),
    "sounds": Sounds(),
    "two paths": TwoPaths(),
    "apnet": APNet(),
    "autoencoder": Autoencoder(),
    "phases": PhaseModel(),
    "source facts": SourceFacts(),
    "source reader": SourceReader(),
    "sources": SourceAttention(8, (8, 8)),
    "videos": Videos(),
    "denoiser": VideoDenoiser(),
    "enhancer": Enhancer(),
    "noisy sounds": NoisySounds(),
    "narrow sounds": NarrowSounds(),
    "extender": BandExtender(discriminators=Discriminators()),
    "holes": Holes(),
    "inpainter": Inpainter(),
    "squares": MovingSquares(),
    "views": BoxViews(),
    "pictures": PictureDenoiser(),
    "motion": MotionTuned(),
    "between": BetweenPictures(8, 2),
    "group norm": GroupNorm(4, 2),
    "batch norm": BatchNorm(4),
    "unet": UNet(1, 1),
    "positions": Positions(),
    "classifier": ImageClassifier(SMALL.model.block, width=64, depth=2),
    **EXAMPLES,
}


def parts(config):
    """A dataclass, and all dataclasses within it."""
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from parts(value)


def numbers():
    """One of each class with each of its fields that hold a number: (config, field, bound)."""
    found = {}
    for config in CONFIGS.values():
        for part in parts(config):
            bounds = _bounds_of(type(part))
            for field in dataclasses.fields(part):
                kind, bound = bounds.get(field.name, (None, FINITE))
                if kind is float or bound != FINITE:
                    found.setdefault(
                        (type(part).__name__, field.name), (part, field.name, kind, bound)
                    )
    return found


NUMBERS = numbers()


def outside(kind: type, bound: Bound) -> st.SearchStrategy:
    """Numbers that a field must refuse."""
    beyond: list[st.SearchStrategy] = []
    if bound.low > -math.inf:
        beyond += [st.integers(max_value=int(bound.low) - 1)]
    if bound.high < math.inf:
        beyond += [st.integers(min_value=int(bound.high) + 1)]
    if kind is int:
        return st.one_of(*beyond)
    beyond += [st.sampled_from([math.nan, math.inf, -math.inf])]
    if bound.low > -math.inf:
        beyond += [st.floats(max_value=bound.low, exclude_max=bound.open != "low")]
    if bound.high < math.inf:
        beyond += [st.floats(min_value=bound.high, exclude_min=bound.open != "high")]
    return st.one_of(*beyond)


def with_number(config, field, number):
    """The configuration with that number; of a tuple of numbers the last one."""
    before = getattr(config, field)
    value = (*before[:-1], number) if isinstance(before, tuple) else number
    return dataclasses.replace(config, **{field: value})


@pytest.mark.parametrize("name", NUMBERS, ids=".".join)
@settings(max_examples=25)
@given(data=st.data())
def test_a_number_outside_its_bounds_is_refused_in_one_line(name, data):
    config, field, kind, bound = NUMBERS[name]
    value = data.draw(outside(kind, bound))
    with pytest.raises(UserError) as refused:
        with_number(config, field, value)
    assert "\n" not in str(refused.value)
    assert field in str(refused.value)
    assert str(value) in str(refused.value)


@pytest.mark.parametrize("name", NUMBERS, ids=".".join)
def test_what_is_no_number_is_refused_in_one_line(name):
    config, field, *_ = NUMBERS[name]
    with pytest.raises(UserError, match=f"{field} must be a "):
        with_number(config, field, "many")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_default_and_every_example_is_inside(config):
    for part in parts(config):
        assert dataclasses.replace(part) == part


def test_every_whole_number_of_a_layer_has_bounds():
    for config in CONFIGS.values():
        for part in filter(lambda part: isinstance(part, Layer | LanguageModel), parts(config)):
            bounds = _bounds_of(type(part))
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                first = value[0] if isinstance(value, tuple) and value else value
                if type(first) is int and type(part).__module__[:3] == "gam":
                    assert bounds[field.name][1] != FINITE, f"{type(part).__name__}.{field.name}"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_configuration_is_read_with_a_number_that_is_not_finite(number):
    def places(values, path=()):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from places(value, (*path, key))
            elif type(value) is float:
                yield (*path, key)

    found = list(places(to_dict(SMALL)))
    assert len(found) > 10
    for *groups, name in found:
        values = inner = json.loads(json.dumps(to_dict(SMALL)))
        for group in groups:
            inner = inner[group]
        inner[name] = number
        with pytest.raises(UserError, match=name):
            from_dict(Experiment, values)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", math.nan),
        ("temperature", -0.5),
        ("temperature", math.inf),
        ("top_p", math.nan),
        ("top_p", 1.5),
        ("top_p", -0.1),
        ("tokens", -1),
        ("tokens", 1.5),
    ],
)
def test_text_is_not_drawn_by_numbers_that_make_no_sense(setting, value):
    wanted = {"tokens": 1, setting: value}
    with pytest.raises(UserError, match=f"{setting}={value}"):
        generate(NOTHING, NOTHING, NOTHING, key=NOTHING, **wanted)  # refused at the call, unread
