"""Holes in pictures, by one encoder and one decoder that is used twice: sizes, and what it gains.

Source: PEPSI++ (arXiv 1905.09010) and the released code of PEPSI, on drawn textures.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import drawn
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import CPU, SHORT, Numbers
from experiments.study.found import Found
from gam_jax.data import Holes
from gam_jax.data.drawn import TO_SCORE
from gam_jax.models.inpainter import CASCADE, ONE, TWO, Inpainter
from gam_jax.ops.patches import SCOPE
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import abstract_params, count_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.products import product_flops

PUBLISHED: Any = {"channels": 3}
STEPS = {SHORT: 4, CPU: 300}
ROWS = 16
SMALL: Any = {"width": 6, "channels": 1, "halvings": 2, "rates": (1, 2, 3, 4)}
WAYS = {
    TWO: ("two paths of one decoder", Inpainter(**SMALL)),
    ONE: ("the inpainting path alone", Inpainter(**SMALL, paths=ONE)),
    CASCADE: ("two generators, one after the other", Inpainter(**SMALL, paths=CASCADE)),
    "shared": ("two paths, one kernel for all rates", Inpainter(**SMALL, shared=True)),
}


def experiment(setting: Setting, model: Inpainter) -> Experiment:
    """16 pictures an update, and the source's Adam."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=model,
        data=Holes(fade=steps * ROWS),
        train=TrainConfig(steps=steps, batch=ROWS, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            warmup=max(1, steps // 20),
            final=0.05,
            beta1=0.5,
            beta2=0.9,
            weight_decay=0.0,
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def operations(model: Inpainter, side: int, patches: bool = True) -> float:
    """In convolutions, and in products of patches, of one picture when the model is used."""
    picture = jax.ShapeDtypeStruct((1, side, side, model.channels), jnp.float32)
    known = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    program = jax.make_jaxpr(model.__call__)(abstract_params(model.table()), picture, known)
    found = product_flops(program.jaxpr, (SCOPE,))
    return float(found.total() - (0 if patches else found[SCOPE]))


def used(run: RunFolder, experiment: Experiment) -> Numbers:
    """What a finished run's model costs in use."""
    model: Any = experiment.model
    data: Any = experiment.data
    return {"operations": operations(model, data.side)}


def sizes(part: str) -> Numbers:
    """Parameters of the published model, or of a part of it."""
    table = Inpainter(**PUBLISHED).table()
    return {"parameters": float(count_params(table if part == "whole" else table[part]))}


def saved() -> Numbers:
    """What one kernel for four rates saves, scales and shifts counted."""
    both = [count_params(Inpainter(**PUBLISHED, shared=s).table()) for s in (False, True)]
    return {"parameters": float(both[0] - both[1])}


def published_operations() -> Numbers:
    """A cascade over two paths at the published size, pictures of 256 x 256."""
    two, cascade = Inpainter(**PUBLISHED), Inpainter(**PUBLISHED, paths=CASCADE)
    return {
        "ratio": operations(cascade, 256) / operations(two, 256),
        "convolutions": operations(cascade, 256, False) / operations(two, 256, False),
    }


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Four pictures with their holes, and what each way makes of them."""
    data = Holes()
    rows = [data.row(TO_SCORE, number) for number in range(5)]
    images, known = (np.stack([row[name] for row in rows]) for name in ("images", "known"))
    shown = {"given": np.where(known > 0, images, np.nan), "as they are": images}
    for name, (title, model) in WAYS.items():
        run = RunFolder(path.parent / found.scale / f"{name}-0")
        if run.ran:
            _, params = load_params(run, run.experiment(), Layout(make_mesh()))
            shown[title] = np.asarray(
                jax.jit(model.__call__)(jax.device_get(params), images, known)
            )
    with drawn(path, 8, 1.55 * len(shown)) as figure:
        cells = figure.subplots(len(shown), len(rows), squeeze=False)
        for line, (title, pictures) in zip(cells, shown.items(), strict=True):
            for axes, picture in zip(line, pictures, strict=True):
                axes.imshow(picture[..., 0], cmap="gray", vmin=-1, vmax=1)
                axes.set(xticks=[], yticks=[])
            line[0].set_title(title, fontsize=8, loc="left")


PARTS = ("encoder", "mixer", "decoder", "whole")
PRINTED = Claim(
    "Parameters of the released generator",
    "printed",
    PARTS,
    "parameters",
    figures=("2937184", "131328", "588435", "3656947"),
    source="released code, counted",
)

STUDY = Study(
    name="pepsi",
    title="One decoder, two paths",
    source="arXiv 1905.09010",
    page="papers/pepsi.md",
    arms={
        **{
            part: closed(f"published size, {part}", lambda part=part: sizes(part)) for part in PARTS
        },
        "saved": closed("saved by one kernel at the published size", saved),
        "ratio": closed("a cascade over two paths at the published size", published_operations),
        **{
            name: Arm(title, experiment=lambda s, m=model: experiment(s, m), also=used)
            for name, (title, model) in WAYS.items()
        },
    },
    measures={
        "psnr": Measure("in the hole", "higher", "dB", ".2f"),
        "loss": Measure("validation loss", "lower"),
        "parameters": Measure("parameters", "lower", form=",.0f"),
        "operations": Measure("operations of a picture in use", "lower", form=".3g"),
        "convolutions": Measure("convolutions of a cascade over two paths'", form=".3f"),
        "ratio": Measure("and with products of patches", form=".3f"),
    },
    published=as_printed((PRINTED,)),
    claims=(
        PRINTED,
        Claim(
            "One kernel for four rates saves three kernels of 589,824 less 2,048 scales and shifts",
            "near",
            ("saved",),
            "parameters",
            3 * 589_824 - 2_048,
            0.5,
            source="derived; the source says no shapes of scales and shifts",
        ),
        Claim(
            "Two paths fill holes better than one, at the same operations in use",
            "higher",
            (TWO, ONE),
            "psnr",
            source="ablation, in words",
        ),
        Claim(
            "A cascade of two generators is no better",
            "lower",
            (CASCADE, TWO),
            "psnr",
            source="abstract: better quality",
        ),
        Claim(
            "and needs nearly twice the convolutions' operations at the published size",
            "near",
            ("ratio",),
            "convolutions",
            2.0,
            0.1,
            source="abstract: almost half",
        ),
        Claim(
            "and of all operations, with the products of patches that a cascade does once too",
            "near",
            ("ratio",),
            "ratio",
            2.0,
            0.1,
            source="ours",
        ),
        Claim(
            "One kernel for all rates is nearly as good: 95 % of the decibels",
            "times_at_least",
            ("shared", TWO),
            "psnr",
            0.95,
            source="abstract, of Diet-PEPSI",
        ),
    ),
    figure=draw,
    notes=("textures of 32 x 32 with a hole of 10 x 10; width 6 for 32, no discriminator",),
    absent=(
        Absent("PSNR, SSIM and times on CelebA-HQ and Places2", "the pictures are not here"),
        Absent("The discriminator for all shapes of holes", "adversarial training is not here"),
    ),
)
