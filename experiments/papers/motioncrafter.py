"""One clip's motion learned without its colour: what each way of tuning leaks.

Source: MotionCrafter (arXiv 2312.05288), on moving coloured squares; no code of it is public.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.pictures import drawn
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Begins, Numbers
from experiments.study.found import Found
from gam_jax.data import MovingSquares
from gam_jax.data.base import Unread
from gam_jax.data.squares import hue
from gam_jax.layers.pictures import TIME
from gam_jax.models.motion import ALL, MOTION, TUNED, MotionTuned
from gam_jax.models.pictures import PictureDenoiser
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import CheckpointConfig, Checkpoints
from sharding.layout import Layout
from sharding.mesh import make_mesh

BASE_STEPS = {SHORT: 4, CPU: 1000}
STEPS = {SHORT: 4, CPU: 160}
SAVES = 8
"""Times at which a run is looked at."""
NEW = "corner"
EACH = 4
"""Clips that are drawn of each other colour."""
SIZES: Any = {"frames": 6, "side": 9, "square": 3}
CLIP = MovingSquares(**SIZES, motions=(NEW,), one_clip=True, swapped=True)
BOUND = 1.75
"""Pixels: the error of the path at which leaks are compared, which all ways but one come to."""
TRIED = 50
"""Steps of training below which nothing is drawn."""
INNER = PictureDenoiser(patch=3, sees=TIME, beside=False, spread=0.22)
WAYS = {
    "full": ("all layers", ALL, 0.0),
    "temporal": ("layers between frames alone", MOTION, 0.0),
    "appearance": ("these, and the appearance loss", MOTION, 10.0),
    "held": ("these, and ten times that loss", MOTION, 100.0),
}
"""Name -> title, what is trained, weight of the appearance loss."""
SHOWN = 0.3
"""Brightness below which a pixel is called noise."""


def base(setting: Setting) -> Experiment:
    """16 clips an update, of all motions but one."""
    steps = BASE_STEPS[setting.scale]
    return Experiment(
        model=INNER,
        data=MovingSquares(**SIZES),
        train=TrainConfig(steps=steps, batch=16, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=4e-3, warmup=max(1, steps // 20), final=0.05, weight_decay=0.0
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def tuned(setting: Setting, only: str, appearance: float) -> Experiment:
    """8 noised copies of one clip of the new motion an update."""
    steps = STEPS[setting.scale]
    every = max(1, steps // SAVES)
    return Experiment(
        model=MotionTuned(INNER, appearance),
        data=CLIP,
        train=TrainConfig(steps=steps, batch=8, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="constant", warmup=1, weight_decay=0.0, only=only
        ),
        checkpoint=CheckpointConfig(every=every, keep=SAVES + 1),
    )


def begun(
    experiment: Experiment, others: Sequence[Experiment], params: Sequence[Params], seed: int
) -> Params:
    """Both copies as the trained model."""
    model: Any = experiment.model.fitted(Unread(experiment.data))
    return model.begun(params[0])


def colour_of(clips: np.ndarray) -> np.ndarray:
    """The colour of what is bright in each clip, [rows, 3]."""
    weight = _bright(clips)
    return np.sum(weight[..., None] * clips, (1, 2, 3)) / np.sum(weight, (1, 2, 3))[:, None]


def places_of(clips: np.ndarray) -> np.ndarray:
    """The middle of what is bright in each frame, pixels down and right: [rows, N, 2]."""
    weight, grid = _bright(clips), np.arange(clips.shape[2])
    down = np.sum(weight * grid[:, None], (2, 3)) / np.sum(weight, (2, 3))
    right = np.sum(weight * grid, (2, 3)) / np.sum(weight, (2, 3))
    return np.stack([down, right], -1)


def _bright(clips: np.ndarray) -> np.ndarray:
    size = np.sqrt(np.mean(np.square(clips), -1))
    return np.maximum(size - SHOWN, 0) + 1e-6


def leak(clips: np.ndarray, wanted: np.ndarray, tuned_on: np.ndarray) -> float:
    """How far colours are from those that were asked for, 0, towards the clip's own, 1."""
    between = tuned_on - wanted
    off = np.sum((colour_of(clips) - wanted) * between, -1)
    return float(np.mean(off / np.sum(between**2, -1)))


def path_error(clips: np.ndarray) -> float:
    """Mean distance, in pixels, of places from the motion's, each clip shifted to fit best."""
    off = places_of(clips) - CLIP.places(NEW)
    off -= off.mean(1, keepdims=True)
    return float(np.mean(np.sqrt(np.sum(off**2, -1))))


@functools.cache
def _drawing(model: PictureDenoiser, rows: int) -> Any:
    return jax.jit(functools.partial(model.draw, rows=rows, steps=16))


def asked(seed: int) -> tuple[np.ndarray, int]:
    """Prompts of the new motion in all other colours than that of the clip, and that colour."""
    own = int(CLIP.row(seed, 0)["prompt"][0])
    others = [c for c in range(CLIP.colours) if c != own for _ in range(EACH)]
    return np.asarray([(c, CLIP.word(NEW)) for c in others], np.int32), own


def clips_of(run: RunFolder, experiment: Experiment, which: str) -> np.ndarray:
    """Clips that a checkpoint draws of the prompts that are `asked`."""
    model: Any = experiment.model
    _, params = load_params(run, experiment, Layout(make_mesh()), which)
    prompts, _ = asked(experiment.train.seed)
    key = jax.random.key(experiment.train.seed)
    draw = _drawing(getattr(model, "inner", model), len(prompts))
    return np.asarray(draw(jax.device_get(params.get(TUNED, params)), key, {"prompt": prompts}))


@functools.cache
def looked(run: RunFolder, experiment: Experiment) -> tuple[tuple[float, float], ...]:
    """The error of the path, and the leak, of what each checkpoint draws."""
    prompts, own = asked(experiment.train.seed)
    wanted = np.stack([hue(c, CLIP.colours) for c in prompts[:, 0]])
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        steps = checkpoints.steps()
    found = []
    for step in steps:
        clips = clips_of(run, experiment, str(step))
        found.append((path_error(clips), leak(clips, wanted, hue(own, CLIP.colours))))
    return tuple(found)


def as_drawn(run: RunFolder, experiment: Experiment) -> Numbers:
    """At the end; and the leak where the error of the path first falls to `BOUND`.

    Between two checkpoints the line is taken. Where it never falls so far there is no such leak.
    """
    if experiment.train.steps < TRIED:
        return {}
    points = looked(run, experiment)
    found = {"path_end": points[-1][0], "leak_end": points[-1][1]}
    for (before, leaked), (path, then) in itertools.pairwise(points):
        if path <= BOUND < before:
            share = (before - BOUND) / (before - path)
            return {**found, "path": BOUND, "leak": leaked + share * (then - leaked)}
    return {**found, "path": points[-1][0]}


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Leak against the error of the path as training goes on; and clips of each way."""
    shown: dict[str, np.ndarray] = {}
    with drawn(path, 11, 5) as figure:
        panels: Any = figure.subfigures(1, 2, width_ratios=(1, 2))
        left, right = panels
        axes = left.subplots()
        for name, (title, *_) in WAYS.items():
            run = RunFolder(path.parent / found.scale / f"{name}-0")
            if not run.path.is_dir():
                continue
            experiment = run.experiment()
            axes.plot(*np.transpose(looked(run, experiment)), ".-", label=title)
            shown[title] = clips_of(run, experiment, "latest")
        axes.axvline(BOUND, color="#bbbbbb", linestyle=":")
        axes.set(xlabel="error of the path, pixels", ylabel="leak of the clip's colour")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25)
        if not shown:
            return
        prompts, _ = asked(0)
        colours = (int(prompts[0, 0]), int(prompts[-1, 0]))
        wanted = [CLIP.clip(NEW, colour, np.zeros(2)) for colour in colours]
        lines = [("the clip", CLIP.row(0, 0)["pictures"]), *(("asked for", one) for one in wanted)]
        for title, clips in shown.items():
            lines += [(title, clips[place]) for place in (0, -1)]
        cells = right.subplots(len(lines), CLIP.frames)
        for row, (title, pictures) in zip(cells, lines, strict=True):
            for cell, picture in zip(row, pictures, strict=True):
                cell.imshow(np.clip((picture + 1) / 2, 0, 1))
                cell.set_axis_off()
            row[0].set_title(title, fontsize=7, loc="left")


STUDY = Study(
    name="motioncrafter",
    title="One clip's motion without its colour",
    source="arXiv 2312.05288",
    page="papers/motioncrafter.md",
    arms={
        "base": Arm("the model before, asked for the motion", experiment=base, also=as_drawn),
        **{
            name: Arm(
                title,
                experiment=functools.partial(tuned, only=only, appearance=weight),
                begins=Begins(("base",), begun),
                also=as_drawn,
            )
            for name, (title, only, weight) in WAYS.items()
        },
    },
    measures={
        "leak": Measure(f"leak, path off by {BOUND:g} pixels", "lower", "of the way", ".3f"),
        "path": Measure("error of the path there", "lower", "pixels", ".2f"),
        "leak_end": Measure("leak at the end", "lower", "of the way", ".3f"),
        "path_end": Measure("error of the path at the end", "lower", "pixels", ".2f"),
        "loss": Measure("loss", "lower"),
    },
    claims=(
        Claim(
            "At one error of the path, tuning the layers between frames alone leaks less colour "
            "than tuning all",
            "lower",
            ("temporal", "full"),
            "leak",
            source="abstract, in words",
        ),
        Claim(
            "and with the appearance loss less again",
            "lower",
            ("appearance", "temporal"),
            "leak",
            source="abstract, in words",
        ),
        Claim(
            f"Each of the three comes to that error, {BOUND:g} pixels",
            "at_most",
            ("full", "temporal", "appearance"),
            "path",
            BOUND,
            source="ours",
        ),
        *(
            Claim(
                f"After equal steps too: {text}",
                "lower",
                arms,
                "leak_end",
                source="abstract, in words",
            )
            for text, arms in (
                ("layers between frames alone", ("temporal", "full")),
                ("with the appearance loss", ("appearance", "temporal")),
            )
        ),
        Claim(
            "With ten times that loss the motion is not learned: more than 0.75 of the error of "
            "the path is left",
            "times_at_least",
            ("held", "base"),
            "path_end",
            0.75,
            source="ours",
        ),
        Claim(
            "Tuning all layers brings the path no closer than the layers between frames alone",
            "times_at_most",
            ("temporal", "full"),
            "path_end",
            1.0,
            source="ours",
        ),
    ),
    figure=draw,
    notes=(
        "clips of 6 frames of 9 x 9 pixels; 20 are drawn of each run, in the 5 colours that the "
        "clip does not have",
        "leak: 0 is the colour that was asked for, 1 that of the clip; the path is judged up to "
        "where it begins",
    ),
    absent=(Absent("User studies and scores of real clips", "neither code nor tables are public"),),
)
