"""Sounds and responses of two paths: what they are, and that a seed tells them whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.config import from_dict, to_dict
from gam_jax.data import (
    DATA,
    BoxViews,
    Data,
    Holes,
    MovingSquares,
    NoisySounds,
    Sounds,
    SourceFacts,
    TwoPaths,
    Videos,
)
from sharding.errors import UserError

SMALL = {
    "sounds": Sounds(samples=512, scored=4),
    "two_paths": TwoPaths(bins=9, scored=4),
    "source_facts": SourceFacts(lengths=(1, 5), scored=4),
    "videos": Videos(frames=8, scored=4),
    "holes": Holes(side=9, hole=4, scored=4),
    "squares": MovingSquares(frames=3, side=6, swapped=True, scored=4),
    "views": BoxViews(views=2, side=6, scored=4),
}
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", SMALL)
def test_rows_are_told_by_seed_and_number_and_have_the_shapes_that_were_said(name):
    data = SMALL[name]
    assert DATA[name] is type(data)
    assert from_dict(Data, to_dict(data)) == data
    opened = data.open()
    batch = next(opened.train_stream(4, seed=5))
    for key, shape in data.batch(4).items():
        assert (batch[key].shape, batch[key].dtype) == (shape.shape, shape.dtype)
        np.testing.assert_array_equal(batch[key][3], data.row(5, 3)[key])
    later = next(opened.train_stream(4, seed=5, position=1))
    second = {key: data.row(5, 4)[key] for key in batch}
    assert all(np.array_equal(later[key][0], second[key]) for key in batch)
    (held,) = opened.validation_stream("", 4)
    assert not all(np.array_equal(held[key], batch[key]) for key in batch)
    assert opened.fingerprints != type(data)(scored=5).open().fingerprints


@given(seeds, st.integers(0, 2))
def test_sounds_are_finite_and_reach_their_peak(seed, kind):
    audio = Sounds(samples=600).row(seed, kind)["audio"]
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() == pytest.approx(0.9, abs=1e-6)


@given(seeds)
def test_a_tone_without_vibrato_has_its_energy_at_multiples_of_a_pitch(seed):
    """The strongest bin is within a bin of a multiple, up to the 3 % of the vibrato."""
    data = Sounds(samples=8000, kinds=("tone",))
    draw = np.random.default_rng((seed, 0))
    pitch = 80 * 5 ** draw.uniform()
    amplitudes = np.abs(np.fft.rfft(data.row(seed, 0)["audio"] * np.hanning(8000)))
    strongest = int(np.argmax(amplitudes))
    number = max(1, round(strongest / pitch))
    assert abs(strongest - number * pitch) <= 0.035 * number * pitch + 2


@given(seeds)
def test_phases_of_two_paths_are_those_of_their_sum_of_delays(seed):
    row = TwoPaths(bins=17, longest=3.0).row(seed, 1)
    (g0, g1, s0, s1), found = row["inputs"].astype(float), row["phases"]
    for k, phase in enumerate(found):
        w = 2 * math.pi * k / 32 * 3.0
        real = g0 * math.cos(w * s0) + g1 * math.cos(w * s1)
        imaginary = -g0 * math.sin(w * s0) - g1 * math.sin(w * s1)
        size = math.hypot(real, imaginary)
        off = abs(complex(real, imaginary) / size - complex(math.cos(phase), math.sin(phase)))
        assert off * size < 1e-5


@given(seeds)
def test_the_name_that_is_asked_for_stands_once_in_each_list_beside_its_fact(seed):
    row = SourceFacts(lengths=(1, 7, 20), names=3).row(seed, 0)
    for number, fact in enumerate(row["facts"]):
        tokens = row[f"source_{number}"]
        (place,) = np.flatnonzero(tokens[:, 0] == row["asked"])
        assert tokens[place, 1] == fact


@given(seeds)
def test_a_hole_is_one_square_of_its_size_inside_the_picture(seed):
    row = Holes(side=12, hole=5).row(seed, 0)
    assert np.abs(row["images"]).max() == pytest.approx(0.9, abs=1e-6)
    rows, columns, _ = np.nonzero(row["known"] == 0)
    assert len(rows) == 25
    assert np.ptp(rows) == np.ptp(columns) == 4


def test_videos_keep_their_colour_and_swing_as_was_said():
    rows = [Videos(frames=64).row(3, number) for number in range(400)]
    colours, paths = np.moveaxis(np.stack([row["frames"] for row in rows]).astype(float), 2, 0)
    own = colours.mean(1)
    assert np.abs(own).max() < 3**0.5 + 0.2
    assert own.var() == pytest.approx(1, abs=0.15)
    assert (colours - own[:, None]).std() == pytest.approx(0.2, rel=0.05)
    assert paths.var() == pytest.approx(1, abs=0.1)
    added = paths[:, 2:] - 1.6 * paths[:, 1:-1] + 0.8 * paths[:, :-2]
    assert added.var() / paths.var() == pytest.approx(0.2 * (3.24 - 2.56) / 1.8, rel=0.1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sounds(kinds=("hum",)), "tone, chirp, noise"),
        (lambda: Sounds(kinds=()), "tone, chirp, noise"),
        (lambda: Sounds(rate=100), "data.rate=100"),
        (lambda: SourceFacts(lengths=()), "data.lengths=()"),
        (lambda: SourceFacts(names=1), "data.names=1"),
        (lambda: TwoPaths(bins=1), "data.bins=1"),
        (lambda: NoisySounds(ratio=1e4), "at most 200"),
        (lambda: NoisySounds(ratio=-1e4), "at least -200"),
        (lambda: TwoPaths(longest=0.0), "longest"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(make, says):
    with pytest.raises(UserError) as error:
        make()
    assert says in str(error.value)
