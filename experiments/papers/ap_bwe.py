"""Sounds of a narrow band made wide by two streams that add each other, or do not.

Source: AP-BWE (arXiv 2401.06387) and its released code, on drawn tones.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import drawn
from experiments.study import (
    Absent,
    Arm,
    Claim,
    Measure,
    Published,
    Setting,
    Study,
    as_printed,
    closed,
)
from experiments.study.declare import CPU, SHORT, Numbers
from experiments.study.found import Found
from experiments.wav import write_wav
from gam_jax.data import NarrowSounds
from gam_jax.data.drawn import TO_SCORE
from gam_jax.models.discriminators import Discriminators
from gam_jax.models.extender import BandExtender, signal_to_error
from gam_jax.ops.spectrum import frames_of, log_spectral_distance
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Param, count_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh

STEPS = {SHORT: 3, CPU: 600}
GAME_STEPS = {SHORT: 2, CPU: 200}
RATE = 1.5e-2
"""The best of 2e-3, 6e-3 and 1.5e-2 for either way, of one seed and 600 steps."""
SOUNDS = NarrowSounds(samples=2000, scored=48)
SMALL: Any = {"width": 32, "rounds": 4, "rate": 8000, "size": 256, "window": 160, "hop": 40}
JUDGES = Discriminators(periods=(2, 3), frames=(128, 256), period_width=2, width=8)
WAYS = {
    "coupled": ("streams that add each other", BandExtender(**SMALL)),
    "uncoupled": ("streams that do not", BandExtender(**SMALL, coupled=False)),
}
PARTS = ("generator", "period", "amplitude", "phase")
SIZES = tuple(f"size_{part}" for part in PARTS)
SECOND = BandExtender()
"""What is timed: the published size."""
SHOWN = NarrowSounds(samples=8000)
"""What is drawn and can be heard: a second."""


def experiment(setting: Setting, model: BandExtender, steps: Mapping[str, int]) -> Experiment:
    """Eight sounds of a quarter of a second an update."""
    count = steps[setting.scale]
    return Experiment(
        model=model,
        data=SOUNDS,
        train=TrainConfig(steps=count, batch=8, validate_every=count, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=RATE,
            warmup=max(1, count // 20),
            final=0.05,
            beta1=0.8,
            beta2=0.99,
            weight_decay=0.01,
            clip=10.0,
        ),
        checkpoint=CheckpointConfig(every=count, keep=1),
    )


def untouched() -> Numbers:
    """The narrow band itself, by the same measures."""
    rows = [SOUNDS.row(TO_SCORE, number) for number in range(SOUNDS.scored)]
    narrow, wide = (np.stack([row[name] for row in rows]) for name in ("audio", "wide"))
    size = SMALL["size"]

    @jax.jit
    def measured(narrow: Any, wide: Any) -> Any:
        distance = log_spectral_distance(narrow, wide, 2 * size, size // 2)
        return jnp.mean(distance), jnp.mean(signal_to_error(narrow, wide))

    lsd, snr = measured(narrow, wide)
    return {"lsd": float(lsd), "snr": float(snr)}


def sizes(part: str) -> Numbers:
    """Parameters of the published model, or of one kind of its judges."""
    if part == "generator":
        return {"parameters": float(count_params(BandExtender().table()))}
    table = Discriminators().table()
    own = {name: judge for name, judge in table.items() if name.startswith(part)}
    return {"parameters": float(count_params(own))}


def products() -> Numbers:
    """Multiply-adds of convolutions and linear maps in a second: their weights, once a frame."""
    leaves = jax.tree.leaves(SECOND.table(), is_leaf=lambda leaf: isinstance(leaf, Param))
    weights = sum(int(np.prod(leaf.shape)) for leaf in leaves if leaf.decay)
    return {"products": float(weights * frames_of(SECOND.rate, SECOND.size, SECOND.hop))}


def timed() -> Mapping[str, Callable[[], Any]]:
    """A second of 16 kHz, compiled; parameters are its own first ones."""
    params = jax.jit(SECOND.init_params)(jax.random.key(0))
    audio = np.sin(np.arange(SECOND.rate) / 20).astype(np.float32)[None]
    program = jax.jit(lambda params, audio: SECOND(params, audio).audio)
    return {"time": lambda: jax.block_until_ready(program(params, audio))}


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Half a second of two tones: narrow, wide, and as each way makes them; WAV files beside."""
    rows = [SHOWN.row(TO_SCORE, number) for number in (0, 1)]
    shown = {
        "wide": np.stack([row["wide"] for row in rows]),
        "narrow": np.stack([row["audio"] for row in rows]),
    }
    titles = {name: title for name, (title, _) in WAYS.items()} | {"game": "with judges"}
    for name in titles:
        folder = path.parent / found.scale / f"{name}-0"
        if folder.is_dir():
            run = RunFolder(folder)
            experiment = run.experiment()
            model: Any = experiment.model
            _, params = load_params(run, experiment, Layout(make_mesh()))
            program = jax.jit(functools.partial(_audio, model))
            shown[name] = np.asarray(program(jax.device_get(params), shown["narrow"]))
    with drawn(path, 2.2 * len(shown), 3.8) as figure:
        cells = figure.subplots(2, len(shown), squeeze=False)
        for column, (name, sounds) in enumerate(shown.items()):
            for number, sound in enumerate(sounds):
                write_wav(path.parent / f"{name}_{number}.wav", sound, SHOWN.rate)
                axes = cells[number][column]
                spectrum = WAYS["coupled"][1].spectrum_of(jnp.asarray(sound)[None])[0]
                half = np.abs(np.asarray(spectrum))[: len(spectrum) // 2]
                shades = {"cmap": "magma", "vmin": -6.9, "vmax": 3, "interpolation": "nearest"}
                axes.imshow(np.log(half + 1e-3).T, origin="lower", aspect="auto", **shades)
                axes.set(xticks=[], yticks=[])
            cells[0][column].set_title(titles.get(name, name), fontsize=8, loc="left")


def _audio(model: BandExtender, params: Any, audio: Any) -> Any:
    return model(params, audio).audio


PRINTED = Claim(
    "Parameters of the released generator and of its three kinds of judges",
    "printed",
    SIZES,
    "parameters",
    figures=("29760515", "41105770", "600198", "600198"),
    source="released code, counted",
)
MULTIPLIED = Claim(
    "Multiply-adds of a second, which the paper calls FLOPs",
    "printed",
    ("second",),
    "products",
    figures=("5.97e9",),
    source="table of 16 kHz",
)

STUDY = Study(
    name="ap-bwe",
    title="Amplitudes and phases that add each other",
    source="arXiv 2401.06387",
    page="papers/ap_bwe.md",
    arms={
        "sinc": closed("the narrow band itself, sinc-interpolated", untouched),
        **{
            name: Arm(title, experiment=lambda s, m=model: experiment(s, m, STEPS))
            for name, (title, model) in WAYS.items()
        },
        "game": Arm(
            "streams that add each other, with judges in turn",
            experiment=lambda s: experiment(
                s, BandExtender(**SMALL, discriminators=JUDGES), GAME_STEPS
            ),
            default=False,
        ),
        **{
            f"size_{part}": closed(f"published size, {part}", lambda part=part: sizes(part))
            for part in PARTS
        },
        "second": Arm(
            "published size, a second of 16 kHz",
            numbers=lambda s, seed: products(),
            timed=lambda s: timed(),
            exact=True,
        ),
    },
    measures={
        "lsd": Measure("log-spectral distance", "lower", "", ".3f"),
        "snr": Measure("signal over error", "higher", "dB", ".2f"),
        "loss": Measure("loss", "lower", "", ".2f"),
        "judging": Measure("loss of the judges", "", "", ".3f"),
        "fooling": Measure("loss before the judges", "", "", ".3f"),
        "parameters": Measure("parameters", form=",.0f"),
        "products": Measure("multiply-adds of a second", "lower", form=".3g"),
        "time": Measure("time of a second", "lower", "s", ".4f"),
    },
    published=(
        *as_printed((PRINTED, MULTIPLIED)),
        Published("second", "time", 0.0338, "table of 16 kHz, their CPU"),
    ),
    claims=(
        PRINTED,
        MULTIPLIED,
        Claim(
            "Streams that add each other come nearer to the wide band than streams that do not",
            "lower",
            ("coupled", "uncoupled"),
            "lsd",
            source="ablation, in samples",
        ),
        *(
            Claim(
                f"Streams that {what} come nearer to it than the narrow band is",
                "lower",
                (name, "sinc"),
                "lsd",
                source="table of 16 kHz, for the whole model",
            )
            for name, what in (("coupled", "add each other"), ("uncoupled", "do not"))
        ),
        Claim(
            "A second of sound is made in less than a second",
            "at_most",
            ("second",),
            "time",
            1.0,
            source="table of 16 kHz: 0.0338 s, 29.61 times real time",
        ),
    ),
    figure=draw,
    notes=(
        "tones of 2,000 samples at 8 kHz, of which a quarter of the band is given; width 32 for "
        "512, four rounds for eight, and no judges but in the arm of that name",
    ),
    absent=(
        Absent(
            "Log-spectral distance and ViSQOL on VCTK, from 2, 4 and 8 to 16 kHz and from 8 to 24 "
            "to 48 kHz",
            "the speech is not here",
        ),
        Absent("Figures of the ablation without connections", "they were not at hand"),
    ),
)
