"""A long signal from anchors and bridges between them: where that is exact, and what drifts.

Source: Kling-Avatar (arXiv 2509.09595), whose clips between two key frames are asked here of
signals whose law is known.
"""

from __future__ import annotations

import functools
import pathlib

import jax
import numpy as np

from experiments.pictures import drawn
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Numbers
from experiments.study.found import Found
from gam_jax.ops.bridges import (
    autoregressive_covariance,
    bridge,
    bridged_covariance,
    draw_anchors,
    draw_segments,
    joined,
)

PATHS = {SHORT: 500, CPU: 10_000}
SEGMENTS, SPAN = 8, 16
ONE, TWO = (0.9,), (1.6, -0.8)
"""Signals that remember one frame, and two: the second one swings."""
SCHEMES = {
    "one_frame": ("AR(1), anchors of one frame", ONE, 1),
    "swing_one": ("AR(2), anchors of one frame", TWO, 1),
    "swing_two": ("AR(2), anchors of two frames", TWO, 2),
}
LENGTHS = (64, 256, 1024)
BIAS = 0.1
"""The mean error of a step, of a walk of unit steps."""
RATINGS = {
    "omnihuman": ("beside OmniHuman-1", (2.39, 1.77, 2.06, 1.37, 1.17)),
    "heygen": ("beside HeyGen", (1.37, 2.35, 1.76, 0.86, 0.76)),
}
SCORES = ("overall", "lips", "looks", "identity", "control")
PERCENT = 1.63
"""The distance of Kolmogorov and Smirnov that one sample in a hundred exceeds, times sqrt(n)."""


def innovations(signal: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """What each frame adds to its own past; N(0, 1) if the signal has its law: [B, N - p]."""
    order = len(coefficients)
    found = signal[:, order:].astype(np.float64)
    for back, value in enumerate(coefficients, 1):
        found = found - value * signal[:, order - back : signal.shape[1] - back]
    return found


def distance(sample: np.ndarray) -> float:
    """The largest gap between a sample's distribution function and that of N(0, 1)."""
    from scipy.special import ndtr

    levels, count = ndtr(np.sort(sample)), len(sample)
    steps = np.arange(count + 1) / count
    return float(max(np.max(steps[1:] - levels), np.max(levels - steps[:-1])))


@functools.cache
def drawn_paths(name: str, paths: int, seed: int) -> np.ndarray:
    """Signals of anchors and bridges, [paths, N]."""
    _, coefficients, width = SCHEMES[name]
    covariance = autoregressive_covariance(coefficients, SEGMENTS * SPAN + width)
    first, second = jax.random.split(jax.random.key(seed))
    anchors = draw_anchors(covariance, SPAN, width, first, paths)
    segments = draw_segments(bridge(covariance, SPAN, width), anchors, second)
    return np.asarray(joined(segments, width))


def law(name: str, setting: Setting, seed: int) -> Numbers:
    """How far the law of anchors and bridges is from the signal's own.

    In closed form over all pairs of frames; and in paths, of the frame behind a seam, which is the
    first whose own past lies in two segments.
    """
    _, coefficients, width = SCHEMES[name]
    covariance = autoregressive_covariance(coefficients, SEGMENTS * SPAN + width)
    off = np.abs(bridged_covariance(covariance, SPAN, width) - covariance).max()
    signal = drawn_paths(name, PATHS[setting.scale], seed)
    added, order = innovations(signal, coefficients), len(coefficients)
    seam, middle = (SEGMENTS // 2 * SPAN + shift - order for shift in (width, SPAN // 2))
    bound = PERCENT / np.sqrt(len(signal))
    return {
        "off": float(off / covariance[0, 0]),
        "seam": distance(added[:, seam]) / bound,
        "middle": distance(added[:, middle]) / bound,
    }


def drift(scheme: str, frames: int, seed: int) -> Numbers:
    """The largest mean error of a walk whose step model errs, always to one side.

    Frame by frame the errors add up. A bridge by the same model keeps what they sum to, less the
    line between its ends: a walk that is tied at both ends forgets an even error. The line is then
    that of its anchors.

    Args:
      scheme: "sequential"; "anchored" at frames without error; "chained", at anchors that the step
        model itself has made before, with other errors.
      frames: of the walk, a multiple of the span.
      seed: of the errors, uniform in 0 .. 2 BIAS.
    """
    errors = 2 * BIAS * np.random.default_rng(seed).uniform(size=frames)
    summed = np.concatenate([[0.0], np.cumsum(errors)])
    ends = np.arange(0, frames + 1, SPAN)
    line = np.interp(np.arange(frames + 1), ends, summed[ends])
    if scheme == "chained":  # a walk of its own from anchor to anchor, with errors of its own
        others = 2 * BIAS * np.random.default_rng((seed, 1)).uniform(size=(len(ends) - 1, SPAN))
        made = np.concatenate([[0.0], np.cumsum(others.sum(1))])
        anchors = np.interp(np.arange(frames + 1), ends, made)
    else:
        anchors = {"sequential": line, "anchored": 0 * line}[scheme]
    summed = anchors + (summed - line)
    return {"drift": float(np.max(np.abs(summed)))}


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """A path with its seams for each scheme, what a frame adds behind a seam, and drift."""
    with drawn(path, 9, 7) as figure:
        grid = figure.add_gridspec(4, 2, width_ratios=(2, 1))
        for row, (name, (title, coefficients, width)) in enumerate(SCHEMES.items()):
            signal, order = drawn_paths(name, 2000, 0), len(coefficients)
            axes = figure.add_subplot(grid[row, 0])
            axes.plot(signal[1], color="#08519c", linewidth=1)
            for cut in range(0, signal.shape[1], SPAN):
                axes.axvspan(cut - 0.5, cut + width - 0.5, color="#c28f2c", alpha=0.35)
            axes.set_title(title, fontsize=8, loc="left")
            axes = figure.add_subplot(grid[row, 1])
            added = innovations(signal, coefficients)
            seams = added[:, np.arange(1, SEGMENTS) * SPAN + width - order].ravel()
            axes.hist(seams, bins=60, range=(-5, 5), density=True, color="#9ecae1")
            places = np.linspace(-5, 5, 200)
            axes.plot(places, np.exp(-(places**2) / 2) / np.sqrt(2 * np.pi), color="#333333")
            axes.set_title("added by the frame behind a seam", fontsize=8, loc="left")
        axes = figure.add_subplot(grid[3, :])
        for scheme, colour in (("sequential", "#a50f15"), ("anchored", "#08519c")):
            values = [drift(scheme, n, 0)["drift"] for n in LENGTHS]
            axes.loglog(LENGTHS, values, "o-", color=colour, label=scheme)
        axes.legend(frameon=False, fontsize=8)
        axes.set(xlabel="frames", ylabel="drift")
        axes.grid(alpha=0.25)


def _drifting(scheme: str, frames: int, title: str) -> Arm:
    return Arm(
        f"{title}, {frames:,} frames",
        numbers=lambda setting, seed: drift(scheme, frames, seed),
    )


ARMS: dict[str, Arm] = {
    **{
        name: Arm(title, numbers=lambda setting, seed, name=name: law(name, setting, seed))
        for name, (title, *_) in SCHEMES.items()
    },
    **{
        f"{scheme}_{frames}": _drifting(scheme, frames, title)
        for scheme, title in (("sequential", "frame after frame"), ("anchored", "between anchors"))
        for frames in LENGTHS
    },
    "chained_1024": _drifting("chained", 1024, "between anchors of the step model"),
    **{
        name: closed(f"{title}, as published", lambda s=scores: dict(zip(SCORES, s, strict=True)))
        for name, (title, scores) in RATINGS.items()
    },
}

STUDY = Study(
    name="kling-avatar",
    title="Anchors, and all bridges at once",
    source="arXiv 2509.09595",
    page="papers/kling_avatar.md",
    arms=ARMS,
    measures={
        "off": Measure("largest error of a covariance", "lower", "of the variance", ".3g"),
        "seam": Measure("law behind a seam", "lower", "of the 1 % bound", ".2f"),
        "middle": Measure("law amid a segment", "lower", "of the 1 % bound", ".2f"),
        "drift": Measure("largest mean error", "lower", "steps", ".3g"),
        **{name: Measure(f"rated: {name}", "higher", form=".2f") for name in SCORES},
    },
    claims=(
        Claim(
            "Anchors of as many frames as the signal remembers give its covariances exactly",
            "at_most",
            ("one_frame", "swing_two"),
            "off",
            1e-9,
            source="derived",
        ),
        Claim(
            "and its law behind a seam, in 10,000 paths",
            "at_most",
            ("one_frame", "swing_two"),
            "seam",
            1.0,
            source="derived",
        ),
        Claim(
            "An anchor of one frame is not enough for a signal that remembers two",
            "at_least",
            ("swing_one",),
            "off",
            0.01,
            source="derived",
        ),
        Claim(
            "which is seen behind a seam", "at_least", ("swing_one",), "seam", 1.0, source="ours"
        ),
        Claim("and nowhere else", "at_most", ("swing_one",), "middle", 1.0, source="ours"),
        Claim(
            "Frame after frame an error grows with the length: 16 times as long, 12 times as large",
            "times_at_least",
            ("sequential_1024", "sequential_64"),
            "drift",
            12.0,
            source="abstract, in words",
        ),
        Claim(
            "Between anchors without error it stays below twice that of 64 frames",
            "times_at_most",
            ("anchored_1024", "anchored_64"),
            "drift",
            2.0,
            source="abstract, in words",
        ),
        Claim(
            "Anchors that the step model makes itself save no tenth of it",
            "times_at_least",
            ("chained_1024", "sequential_1024"),
            "drift",
            0.9,
            source="ours",
        ),
        *(
            Claim(
                f"It is preferred to {other} in {score}",
                "at_least",
                (name,),
                score,
                1.0,
                source="table of ratings, as published",
            )
            for name, other in (("omnihuman", "OmniHuman-1"), ("heygen", "HeyGen"))
            for score in ("overall", "control", "identity")
        ),
    ),
    figure=draw,
    notes=(
        "signals of 8 segments of 16 frames; the law is judged by the distance of Kolmogorov and "
        "Smirnov, 1 is what one sample in a hundred exceeds",
        "a walk of unit steps whose step model errs by 0 to 0.2 at each frame",
    ),
    absent=(
        Absent("The avatars themselves", "neither code nor weights nor the 375 samples are public"),
        Absent(
            "About the time of a single clip for a long video",
            "the paper has no table of it; here a device's operations are those of one segment and "
            "no message is sent, which is a test",
        ),
    ),
)
