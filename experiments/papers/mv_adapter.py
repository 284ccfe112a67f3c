"""Views of one thing from a frozen model of single pictures: attentions beside its own.

Source: MV-Adapter (arXiv 2412.03632), on views of coloured boxes for photographs of objects.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import drawn
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import CPU, SHORT, Begins, Numbers
from experiments.study.found import Found
from gam_jax.data import BoxViews
from gam_jax.data.base import Unread
from gam_jax.layers.pictures import FULL, ROWS, BetweenPictures
from gam_jax.models.pictures import ADAPTERS, PictureDenoiser
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params, abstract_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from gam_jax.training.metrics import read_metrics
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.products import product_flops

BASE_STEPS = {SHORT: 4, CPU: 1000}
STEPS = {SHORT: 4, CPU: 200}
VIEWS, SIDE = 4, 12
FROZEN = PictureDenoiser(patch=3, spread=0.4)
ADAPTED = {
    "parallel": ("parallel, copied", True, True),
    "serial": ("serial, copied", False, True),
    "random": ("parallel, random", True, False),
}
"""Name -> title, whether new attentions stand beside the old ones, whether they are copies."""


def base(setting: Setting) -> Experiment:
    """32 single pictures an update."""
    steps = BASE_STEPS[setting.scale]
    return Experiment(
        model=FROZEN,
        data=BoxViews(views=1, side=SIDE, guided=False),
        train=TrainConfig(steps=steps, batch=32, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=4e-3, warmup=max(1, steps // 20), final=0.05, weight_decay=0.0
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def adapted(setting: Setting, beside: bool) -> Experiment:
    """8 scenes of 4 views an update; what is trained stands beside the frozen model."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=dataclasses.replace(
            FROZEN, sees=ROWS, beside=beside, guided=True, shift=float(VIEWS)
        ),
        data=BoxViews(views=VIEWS, side=SIDE),
        train=TrainConfig(steps=steps, batch=8, validate_every=max(1, steps // 8), log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=4e-3,
            warmup=max(1, steps // 20),
            final=0.05,
            weight_decay=0.01,
            only=ADAPTERS,
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def begun(
    experiment: Experiment,
    others: Sequence[Experiment],
    params: Sequence[Params],
    seed: int,
    copied: bool = True,
) -> Params:
    """The frozen model, and adapters as the arm wants them."""
    model: Any = experiment.model.fitted(Unread(experiment.data))
    return model.begun(params[0], jax.random.key(seed), copied)


def trainable(layers: Mapping[int, int], pixels: int, reference: bool) -> Numbers:
    """Parameters of adapters at published size: attentions, and the encoder of rays.

    Args:
      layers: channels -> self-attentions of the U-Net that have so many.
      pixels: of the side of a square that the encoder makes one token of.
      reference: whether there is image cross-attention too.
    """
    attention = sum(count * (4 * c * c + c) for c, count in layers.items())
    channels = (320, 640, 1280, 1280)
    encoder, inputs = 9 * 6 * pixels**2 * channels[0] + channels[0], channels[0]
    for outputs in channels:
        encoder += 2 * (10 * outputs**2 + 2 * outputs)
        encoder += inputs * outputs + outputs if inputs != outputs else 0
        inputs = outputs
    return {"trainable": float((1 + reference) * attention + encoder)}


SD, XL = {320: 5, 640: 5, 1280: 6}, {640: 10, 1280: 60}
COUNTS = {
    "sd_text": ("Stable Diffusion 2.1, views of a text", SD, 8, False),
    "sd_image": ("Stable Diffusion 2.1, views of a picture", SD, 8, True),
    "xl_text": ("SDXL, views of a text", XL, 16, False),
    "xl_image": ("SDXL, views of a picture", XL, 16, True),
}


def operations(sees: str) -> Numbers:
    """In products of one layer between 6 views of 32 x 32 tokens, a token."""
    layer, shape = BetweenPictures(64, 4, sees), (1, 6, 32, 32, 64)
    given = abstract_params(layer.table()), jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.make_jaxpr(layer.__call__)(*given)
    return {"operations": product_flops(program.jaxpr).total() / (6 * 32 * 32)}


@functools.cache
def _drawing(model: PictureDenoiser, rows: int) -> Any:
    return jax.jit(functools.partial(model.draw, rows=rows))


def views_of(run: RunFolder, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Views that a trained model draws of references, [rows, N, S, S, 3]."""
    experiment = run.experiment()
    model: Any = experiment.model
    _, params = load_params(run, experiment, Layout(make_mesh()))
    given = {name: rows[name] for name in ("rays", "reference")}
    key = jax.random.key(experiment.train.seed)
    draw = _drawing(model, len(rows["reference"]))
    return np.asarray(draw(jax.device_get(params), key, given))


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Losses as training goes on; and views of two scenes, given and drawn."""
    data, scenes = BoxViews(views=VIEWS, side=SIDE), (0, 1)
    given = [data.row(7, number) for number in scenes]
    rows = {name: np.stack([row[name] for row in given]) for name in given[0]}
    shown = {"given": rows["pictures"]}
    curves = {}
    for name, (title, *_) in ADAPTED.items():
        run = RunFolder(path.parent / found.scale / f"{name}-0")
        if run.path.is_dir():
            shown[title] = views_of(run, rows)
            told = read_metrics(run.metrics)
            curves[title] = [(r["step"], r["loss"]) for r in told if r["split"] == "validation"]
    with drawn(path, 10, 6) as figure:
        panels: Any = figure.subfigures(1, 2, width_ratios=(1, 2.2))
        left, right = panels
        axes = left.subplots()
        for title, points in curves.items():
            axes.plot(*np.transpose(points), label=title)
        axes.set(xlabel="step", ylabel="loss on other scenes", yscale="log")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25)
        cells = right.subplots(2 * len(shown), 1 + VIEWS, squeeze=False)
        for scene in range(len(scenes)):
            for line, (title, pictures) in enumerate(shown.items()):
                row = cells[scene * len(shown) + line]
                for cell, picture in zip(row[1:], pictures[scene], strict=True):
                    cell.imshow(np.clip((picture + 1) / 2, 0, 1))
                row[0].text(1, 0.5, title, fontsize=8, ha="right", va="center")
                if not line:
                    row[0].imshow(np.clip((rows["reference"][scene] + 1) / 2, 0, 1))
                    row[0].set_title("reference", fontsize=7)
                    row[0].texts[0].set_text("")
                    row[1].set_title("given views", fontsize=7, loc="left")
        for cell in cells.flat:
            cell.set_axis_off()


PRINTED = (
    Claim(
        "127 M trainable parameters of Stable Diffusion 2.1: those of views of a text",
        "printed",
        ("sd_text",),
        "trainable",
        figures=("127e6",),
        source="table of costs",
    ),
    Claim(
        "490 M of SDXL: likewise, cut and not rounded",
        "printed",
        ("xl_text",),
        "trainable",
        tolerance=0.002,
        figures=("490e6",),
        source="table of costs",
    ),
)

STUDY = Study(
    name="mv-adapter",
    title="Attention between views beside a frozen model's own",
    source="arXiv 2412.03632",
    page="papers/mv_adapter.md",
    arms={
        "base": Arm("the frozen model, of single pictures", experiment=base),
        **{
            name: Arm(
                title,
                experiment=functools.partial(adapted, beside=beside),
                begins=Begins(("base",), functools.partial(begun, copied=copied)),
            )
            for name, (title, beside, copied) in ADAPTED.items()
        },
        **{
            name: closed(f"{title}, as published", functools.partial(trainable, *sizes))
            for name, (title, *sizes) in COUNTS.items()
        },
        **{
            f"{sees}_cost": closed(title, functools.partial(operations, sees))
            for sees, title in ((ROWS, "a row of all views"), (FULL, "all of all views"))
        },
    },
    measures={
        "loss": Measure("error of velocities", "lower"),
        "trainable": Measure("trainable parameters", "lower", form=",.0f"),
        "operations": Measure("operations a token", "lower", form=",.0f"),
    },
    published=as_printed(PRINTED),
    claims=(
        Claim(
            "Beside the frozen attention copies learn better in equal steps than behind it",
            "lower",
            ("parallel", "serial"),
            "loss",
            source="ablation: PSNR 22.131 and 20.687",
        ),
        Claim(
            "and better than new attentions that begin random",
            "lower",
            ("parallel", "random"),
            "loss",
            source="section of the method, in words",
        ),
        Claim(
            "A row of all views needs fewer operations than all of all views",
            "lower",
            (f"{ROWS}_cost", f"{FULL}_cost"),
            "operations",
            source="section of the method",
        ),
        *PRINTED,
        Claim(
            "Views of a picture, as Era3D's beside which the 127 M stand, need more: 177 M",
            "printed",
            ("sd_image",),
            "trainable",
            figures=("177e6",),
            source="counted from the released code",
        ),
    ),
    figure=draw,
    notes=(
        "boxes seen from 4 cameras, 12 x 12 pixels; the loss is of scenes that were not trained on",
        "the frozen model is trained for 1,000 steps on single pictures, adapters for 200",
    ),
    absent=(
        Absent(
            "FID, CLIP scores, PSNR and LPIPS of objects", "needs base models and 3-D data sets"
        ),
        Absent("17 GB and 3.1 steps a second", "of the published size on its accelerator"),
    ),
)
