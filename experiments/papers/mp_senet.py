"""Sounds out of noise by magnitudes and phases at once, or by magnitudes and the noisy phase.

Source: MP-SENet (arXiv 2308.08926) and its released code, on drawn tones in white noise.
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
from experiments.wav import write_wav
from gam_jax.data import NoisySounds
from gam_jax.data.drawn import TO_SCORE
from gam_jax.models.enhancer import Enhancer, si_sdr
from gam_jax.ops.spectrum import anti_wrapped
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import CheckpointConfig
from sharding.layout import Layout
from sharding.mesh import make_mesh

STEPS = {SHORT: 3, CPU: 300}
SOUNDS = NoisySounds(samples=1024, scored=32)
SMALL: Any = {"width": 8, "blocks": 1, "heads": 2, "size": 64, "hop": 16}
WAYS = {
    "joint": ("magnitudes and phases", Enhancer(**SMALL)),
    "magnitude": ("magnitudes, the noisy phase", Enhancer(**SMALL, phases=False)),
}
PARTS = ("encoder", "blocks", "magnitude", "phase", "whole")
SIZES = tuple(f"size_{part}" for part in PARTS)


def experiment(setting: Setting, model: Enhancer) -> Experiment:
    """Eight sounds of 1,024 samples an update."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=model,
        data=SOUNDS,
        train=TrainConfig(steps=steps, batch=8, validate_every=steps, log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=5e-3,
            warmup=max(1, steps // 20),
            final=0.05,
            beta1=0.8,
            beta2=0.99,
            weight_decay=0.01,
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean sounds of the validation."""
    rows = [SOUNDS.row(TO_SCORE, number) for number in range(SOUNDS.scored)]
    return np.stack([r["audio"] for r in rows]), np.stack([r["clean"] for r in rows])


def untouched() -> Numbers:
    """The noisy sounds themselves, by the same measures."""
    noisy, clean = held_out()
    model = WAYS["joint"][1]
    magnitude, phase = model.spectrum_of(jnp.asarray(clean))
    off = anti_wrapped(model.spectrum_of(jnp.asarray(noisy))[1] - phase)
    error = jnp.sum(magnitude * off, (1, 2)) / jnp.sum(magnitude, (1, 2))
    return {
        "si_sdr": float(jnp.mean(si_sdr(jnp.asarray(noisy), jnp.asarray(clean)))),
        "phase_error": float(jnp.mean(error)),
    }


def sizes(part: str) -> Numbers:
    """Parameters of the published model, or of a part of it."""
    table = Enhancer().table()
    chosen = {
        "whole": table,
        "blocks": {name: own for name, own in table.items() if "_" in name},
    }.get(part) or table[part]
    return {"parameters": float(count_params(chosen))}


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Spectra of two sounds: noisy, clean, and as each way makes them; WAV files beside."""
    noisy, clean = (sounds[:2] for sounds in held_out())
    shown = {"noisy": noisy, "clean": clean}
    for name, (title, model) in WAYS.items():
        folder = path.parent / found.scale / f"{name}-0"
        if folder.is_dir():
            run, enhance = RunFolder(folder), jax.jit(model.__call__)
            _, params = load_params(run, run.experiment(), Layout(make_mesh()))
            shown[title] = np.asarray(enhance(jax.device_get(params), noisy).audio)
            for number, sound in enumerate(shown[title]):
                write_wav(path.parent / f"{name}_{number}.wav", sound, SOUNDS.rate)
    for name in ("noisy", "clean"):
        for number, sound in enumerate(shown[name]):
            write_wav(path.parent / f"{name}_{number}.wav", sound, SOUNDS.rate)
    with drawn(path, 2.6 * len(shown), 4.4) as figure:
        cells = figure.subplots(2, len(shown), squeeze=False)
        for column, (title, sounds) in enumerate(shown.items()):
            for line, sound in zip(cells, sounds, strict=True):
                spectrum, _ = WAYS["joint"][1].spectrum_of(jnp.asarray(sound)[None])
                axes = line[column]
                axes.imshow(spectrum[0].T, origin="lower", aspect="auto", cmap="magma", vmax=2)
                axes.set(xticks=[], yticks=[])
            cells[0][column].set_title(title, fontsize=8, loc="left")


PRINTED = Claim(
    "Parameters of the released generator",
    "printed",
    SIZES,
    "parameters",
    figures=("259712", "1459712", "272010", "271938", "2263372"),
    source="released code, counted",
)

STUDY = Study(
    name="mp-senet",
    title="Magnitudes and phases at once",
    source="arXiv 2308.08926",
    page="papers/mp_senet.md",
    arms={
        "noisy": closed("the noisy sounds", untouched),
        **{
            f"size_{part}": closed(f"published size, {part}", lambda part=part: sizes(part))
            for part in PARTS
        },
        **{
            name: Arm(title, experiment=lambda s, m=model: experiment(s, m))
            for name, (title, model) in WAYS.items()
        },
    },
    measures={
        "si_sdr": Measure("signal over distortion (SI-SDR)", "higher", "dB", ".2f"),
        "phase_error": Measure("error of phases, by magnitude", "lower", "rad"),
        "loss": Measure("loss", "lower"),
        "parameters": Measure("parameters", form=",.0f"),
    },
    published=as_printed((PRINTED,)),
    claims=(
        PRINTED,
        Claim(
            "Magnitudes and phases together leave less distortion than magnitudes alone",
            "higher",
            ("joint", "magnitude"),
            "si_sdr",
            source="ablation, in words",
        ),
        Claim(
            "and a smaller error of phases than the noisy ones, which magnitudes alone keep",
            "lower",
            ("joint", "magnitude"),
            "phase_error",
            source="ablation, in words",
        ),
    ),
    figure=draw,
    notes=(
        "tones of 1,024 samples at 8 kHz in white noise 5 dB below; width 8 for 64, one block for "
        "four, no discriminator",
    ),
    absent=(
        Absent(
            "PESQ, CSIG, CBAK, COVL and STOI on VoiceBank+DEMAND",
            "the speech is not here, and PESQ needs licensed tools",
        ),
    ),
)
