"""Moving squares and views of boxes: what is seen, and where it is seen from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cli import MAX_SEED
from gam_jax.data import BoxViews, MovingSquares, views
from gam_jax.data.drawn import TO_SCORE
from gam_jax.data.squares import PATHS, hue
from gam_jax.training import TrainConfig
from sharding.errors import UserError

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.sampled_from(sorted(PATHS)))
def test_a_square_keeps_its_size_and_colour_and_goes_its_way(seed, motion):
    data = MovingSquares(frames=5, side=9, square=3, motions=(motion,), swapped=True)
    row = data.row(seed, 1)
    colour, word = row["prompt"]
    assert word == data.word(motion) < data.sizes()["words"]
    assert row["other"][1] == word
    assert row["other"][0] != colour
    covered = row["pictures"].astype(float) @ hue(colour, 6) / np.sum(hue(colour, 6) ** 2)
    np.testing.assert_allclose(covered.sum((1, 2)), 9, rtol=1e-5)
    np.testing.assert_allclose(row["pictures"], covered[..., None] * hue(colour, 6), atol=1e-6)
    grid = np.arange(9)
    middle = np.stack([(covered.sum(2) @ grid), (covered.sum(1) @ grid)], 1) / 9
    np.testing.assert_allclose(
        middle - middle[0], data.places(motion) - data.places(motion)[0], atol=1e-4
    )


def test_rows_of_one_clip_differ_in_noise_and_time_alone():
    data = MovingSquares(motions=("corner",), one_clip=True)
    one, two = data.row(3, 0), data.row(3, 5)
    np.testing.assert_array_equal(one["pictures"], two["pictures"])
    np.testing.assert_array_equal(one["prompt"], two["prompt"])
    assert one["time"] != two["time"]
    assert not np.array_equal(one["noise"], two["noise"])
    held = [tuple(data.row(TO_SCORE, number)["prompt"]) for number in range(30)]
    assert len(set(held)) == data.colours


def test_no_run_is_trained_on_the_rows_that_score_it():
    """Drawn rows are of a seed, and those of a validation of one that no run may have."""
    with pytest.raises(UserError, match=r"train\.seed=4294967295"):
        TrainConfig(seed=TO_SCORE)
    assert MAX_SEED == TrainConfig(seed=MAX_SEED).seed < TO_SCORE


def marched(scene, rays):
    """Where rays first enter a box, in small steps: which one, and by which face."""
    origin, direction = (rays[..., part].reshape(-1, 3) for part in (slice(3), slice(3, 6)))
    found = np.full((len(origin), 2), -1)
    for far in np.arange(0, 2, 2e-3):
        point = origin + far * direction
        for number, box in enumerate(scene):
            off = point[:, :2] - box.place
            cos, sin = np.cos(box.turn), np.sin(box.turn)
            local = np.stack([off @ [cos, sin], off @ [-sin, cos]], 1)
            inside = np.all(np.abs(local) <= box.half, 1)
            inside &= (point[:, 2] >= box.low) & (point[:, 2] <= box.high)
            axis = np.argmax(np.abs(local) / box.half, 1)
            side = np.take_along_axis(local, axis[:, None], 1)[:, 0] < 0
            new = inside & (found[:, 0] < 0)
            found[new] = np.stack([np.full(len(axis), number), 2 * axis + side], 1)[new]
    return found


@settings(max_examples=4)
@given(seeds, st.floats(0, 6.28))
def test_a_pixel_has_the_colour_of_the_face_that_its_ray_meets_first(seed, angle):
    draw = np.random.default_rng(seed)
    scene = [BoxViews()._box(draw) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "SAMPLES", 1)
        (picture,) = views.render(scene, np.array([angle]), 8)
    met = marched(scene, views.rays_of(angle, 8))
    wanted = [scene[box].colours[face] if box >= 0 else np.zeros(3) for box, face in met]
    off = np.abs(picture.reshape(-1, 3) - wanted).max(1) > 1e-9
    assert off.mean() < 0.05  # at an edge a step of the march may be too long


@given(seeds)
def test_a_row_of_pixels_is_one_height_in_every_view(seed):
    row = BoxViews(views=3, side=8).row(seed, 0)
    seen = np.abs(row["pictures"]).sum((2, 3)) > 0
    assert np.all(seen == seen[0])
    np.testing.assert_array_equal(np.abs(row["reference"]).sum((1, 2)) > 0, seen[0])
    plain = BoxViews(views=3, side=8, guided=False).row(seed, 0)
    np.testing.assert_array_equal(plain["pictures"], row["pictures"])
    assert "rays" not in plain


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MovingSquares(motions=("jump",)), "right, left, down, up, corner"),
        (lambda: MovingSquares(motions=()), "right, left, down, up, corner"),
        (lambda: MovingSquares(side=4), "less than the side of 4"),
        (lambda: MovingSquares(colours=1), "at least 2"),
        (lambda: MovingSquares(frames=1 << 20), "at most 16,777,216 pixels"),
        (lambda: BoxViews(views=0), "views"),
        (lambda: BoxViews(side=1 << 20), "at most 16,777,216 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(make, says):
    with pytest.raises(UserError, match=says):
        make()
