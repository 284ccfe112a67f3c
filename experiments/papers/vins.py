"""Long videos in chunks at once, which agree by a few tokens: whether they do, and what it costs.

Source: video interface networks (VINs, arXiv 2503.17539), on videos of two numbers a frame.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import drawn
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from experiments.study.found import Found
from gam_jax.data import Videos
from gam_jax.data.videos import SWING
from gam_jax.models.denoiser import EARLY, FULL, INTERFACE, LATE, NONE, VideoDenoiser
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import abstract_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.products import product_flops

STEPS = {SHORT: 4, CPU: 700}
ROWS = 16
DRAWN = 128
"""Videos that are drawn of each trained model."""
TRIED = 50
"""Steps of training below which nothing is to be seen in what is drawn, and little is."""
READS = {
    INTERFACE: "chunks with interface tokens",
    NONE: "chunks alone",
    FULL: "every frame sees every other",
}
LENGTHS = (128, 512, 2048)
FUSIONS = {"none": "", LATE: LATE, EARLY: EARLY}


def experiment(setting: Setting, reads: str) -> Experiment:
    """16 videos of 128 frames an update, in 8 chunks where there are any."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=VideoDenoiser(reads=reads),
        data=Videos(),
        train=TrainConfig(steps=steps, batch=ROWS, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=4e-3, warmup=max(1, steps // 20), final=0.05, weight_decay=0.0
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


@functools.cache
def _drawing(model: VideoDenoiser, rows: int, fuse: str) -> Any:
    return jax.jit(functools.partial(model.draw, rows=rows, fuse=fuse))


def videos(run: RunFolder, experiment: Experiment, rows: int, fuse: str) -> np.ndarray:
    """Videos of a trained model, [rows, N, 2]."""
    model: Any = experiment.model
    _, params = load_params(run, experiment, Layout(make_mesh()))
    key = jax.random.key(experiment.train.seed)
    return np.asarray(_drawing(model, rows, fuse)(jax.device_get(params), key))


def between(video: np.ndarray, chunk: int) -> float:
    """Variance of the chunks' mean colours within a video; the colour's own is 1."""
    means = video[..., 0].reshape(len(video), -1, chunk).mean(2)
    return float(means.var(1, ddof=1).mean())


def seam(video: np.ndarray, chunk: int) -> float:
    """What the path's first frame of a chunk adds to its past, over what other frames add."""
    path = video[..., 1]
    added = path[:, 2:] - SWING[0] * path[:, 1:-1] - SWING[1] * path[:, :-2]
    places = np.arange(2, path.shape[1])
    at = places % chunk == 0
    inside = (places % chunk > 1) & ~at
    return float(np.sqrt(np.mean(added[:, at] ** 2) / np.mean(added[:, inside] ** 2)))


def as_drawn(run: RunFolder, experiment: Experiment) -> Numbers:
    """What videos of a finished run are like, with and without fusion."""
    model: Any = experiment.model
    tried = experiment.train.steps >= TRIED
    rows = DRAWN if tried else 4
    fusions = FUSIONS if tried and model.reads != FULL else {"none": ""}
    made = {name: videos(run, experiment, rows, fuse) for name, fuse in fusions.items()}
    found = {f"seam_{name}": seam(video, model.chunk) for name, video in made.items()}
    if EARLY in made:
        found["late_none"] = found["seam_late"] / found["seam_none"]
        found["early_late"] = found["seam_early"] / found["seam_late"]
        found["between_early"] = between(made[EARLY], model.chunk)
    return {"between": between(made["none"], model.chunk), **found}


def operations(reads: str, frames: int) -> Numbers:
    """In products of one prediction, a frame."""
    model = VideoDenoiser(reads=reads, frames=frames, channels=2)
    shapes = jax.ShapeDtypeStruct((1, frames, 2), jnp.float32), jax.ShapeDtypeStruct((1,), "f4")
    program = jax.make_jaxpr(model.__call__)(abstract_params(model.table()), *shapes)
    return {f"operations_{frames}": product_flops(program.jaxpr).total() / frames}


def counted(reads: str) -> Numbers:
    """At every length."""
    return {name: value for n in LENGTHS for name, value in operations(reads, n).items()}


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Colours and paths of videos, of each way of reading."""
    with drawn(path, 10, 6) as figure:
        cells = figure.subplots(4, 2, sharex=True)
        row = Videos().row
        shown = {"given": np.stack([row(0, n)["frames"] for n in range(5)])}
        for name, title in READS.items():
            folder = path.parent / found.scale / f"{name}-0"
            if folder.is_dir():
                run = RunFolder(folder)
                shown[title] = videos(run, run.experiment(), 8, LATE if name == INTERFACE else "")
        for (title, video), line in zip(shown.items(), cells, strict=False):
            line[0].plot(video[:5, :, 0].T, linewidth=1)
            line[1].plot(video[:2, :, 1].T, linewidth=1)
            line[0].set_title(f"{title}: colour of five videos", fontsize=8, loc="left")
            line[1].set_title("path of two", fontsize=8, loc="left")
            for axes in line:
                axes.set_ylim(-3, 3)
                for cut in range(16, 128, 16):
                    axes.axvline(cut - 0.5, color="#dddddd", linewidth=0.8, zorder=0)
        for axes in cells[-1]:
            axes.set_xlabel("frame")


ARMS: dict[str, Arm] = {
    **{
        f"{reads}_cost": Arm(
            f"{title}, cost", numbers=lambda s, seed, reads=reads: counted(reads), exact=True
        )
        for reads, title in READS.items()
    },
    **{
        reads: Arm(title, experiment=lambda s, reads=reads: experiment(s, reads), also=as_drawn)
        for reads, title in READS.items()
    },
}

STUDY = Study(
    name="vins",
    title="Chunks that agree by interface tokens",
    source="arXiv 2503.17539",
    page="papers/vins.md",
    arms=ARMS,
    measures={
        "between": Measure("variance of a video's colour between chunks", "lower"),
        "own": Measure("error of velocities", "lower"),
        "seam_none": Measure("jump at seams, no fusion", "lower", "of elsewhere", ".2f"),
        "seam_late": Measure("fused late", "lower", "of elsewhere", ".2f"),
        "seam_early": Measure("fused early", "lower", "of elsewhere", ".2f"),
        "late_none": Measure("late over none", form=".3f"),
        "early_late": Measure("early over late", form=".3f"),
        "between_early": Measure("colour's variance, fused early", "lower"),
        **{
            f"operations_{n}": Measure(f"operations a frame of {n:,}", "lower", form=",.0f")
            for n in LENGTHS
        },
    },
    claims=(
        Claim(
            "Interface tokens bring chunks to one colour: less than a fifth of the variance",
            "times_at_most",
            (INTERFACE, NONE),
            "between",
            0.2,
            source="ablation, of scene cuts",
        ),
        Claim(
            "at most twice what is left where every frame sees every other",
            "times_at_most",
            (INTERFACE, FULL),
            "between",
            2.0,
            source="ablation",
        ),
        Claim("They learn better", "lower", (INTERFACE, NONE), "own", source="ours"),
        Claim(
            "Fusing late leaves smaller jumps at seams than not fusing",
            "at_most",
            (INTERFACE,),
            "late_none",
            1.0,
            source="ablation",
        ),
        Claim(
            "and fusing early smaller ones than fusing late",
            "at_most",
            (INTERFACE,),
            "early_late",
            1.0,
            source="ablation",
        ),
        *(
            Claim(
                f"At {n:,} frames interface tokens need fewer operations than all frames at once",
                "lower",
                (f"{INTERFACE}_cost", f"{FULL}_cost"),
                f"operations_{n}",
                source="abstract: 25 to 40 % fewer",
            )
            for n in LENGTHS
        ),
    ),
    figure=draw,
    notes=(
        "videos of 128 frames in 8 chunks, 128 of them drawn in 32 steps of DDIM",
        "parameters: 35,488 with interface tokens, 18,496 of chunks alone, 21,824 of full "
        "attention; no arm has as many without tokens",
        "a jump is what the first frame of a chunk adds to its past, over what others add; "
        "1 in the data",
    ),
    absent=(
        Absent(
            "Motion-warp error, scene cuts and VBench scores of videos",
            "the base model and the 840,000 videos are not public",
        ),
        Absent(
            "40 to 75 % faster than full attention", "of the published size; here operations alone"
        ),
    ),
)
