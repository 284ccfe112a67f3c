"""Several sources of unlike length in parallel, or in one softmax: which learns the short ones.

Source: Imagine Yourself (arXiv 2409.13346), on lists of names and values for faces and texts.
"""

from __future__ import annotations

import math
import pathlib

import numpy as np

from experiments.pictures import drawn, shade
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import CPU, SHORT
from experiments.study.found import Found
from gam_jax.data import SourceFacts
from gam_jax.models import SourceReader
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder
from gam_jax.training.metrics import read_metrics
from sharding.checkpoint import CheckpointConfig

STEPS = {SHORT: 4, CPU: 1000}
RATE = 3e-3
LENGTHS = (1, 4, 64, 256)
ARMS = {"parallel": "a softmax for each list", "together": "one softmax over all"}
VOTES = {
    "controls": ("beside control-based", (1.2, 46.3, 52.6), (15.1, 3.2, 81.7), (11.5, 31.6, 57.0)),
    "adapters": ("beside adapter-based", (1.6, 32.4, 66.0), (3.8, 5.5, 90.7), (3.3, 4.2, 92.5)),
}
"""Percent of head-to-head votes: theirs, ours, ties; of prompt, identity and appeal."""
RATES = {
    "full": ("the full model", (80.8, 83.3, 87.7)),
    "tokens": ("tokens concatenated", (75.6, 81.9, 65.7)),
    "real": ("no synthetic pairs", (57.0, 95.5, 83.4)),
    "stage": ("a single stage", (55.3, 90.7, 45.7)),
}
"""Percent of images that passed, likewise."""
JUDGED = ("prompt", "identity", "appeal")


def experiment(setting: Setting, parallel: bool) -> Experiment:
    """32 rows an update; equal parameters but for the factors."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=SourceReader(parallel=parallel),
        data=SourceFacts(lengths=LENGTHS),
        train=TrainConfig(steps=steps, batch=32, validate_every=max(1, steps // 20), log_every=20),
        optimizer=OptimizerConfig(
            learning_rate=RATE, warmup=max(1, steps // 20), final=0.1, weight_decay=0.0
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


PRINTED = (
    Claim(
        "The text's +45.1 of prompts is its table's lead over control-based models, which it calls "
        "adapter-based",
        "printed",
        ("controls",),
        "prompt",
        figures=("45.1",),
        source="text, section 4",
    ),
    Claim(
        "and its +30.8 that over adapter-based ones, which it calls control-based",
        "printed",
        ("adapters",),
        "prompt",
        figures=("30.8",),
        source="text, section 4",
    ),
)


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """What each list costs as training goes on, of the first seed's runs."""
    with drawn(path, 9, 3) as figure:
        for axes, name in zip(figure.subplots(1, 2, sharey=True), ARMS, strict=True):
            file = RunFolder(path.parent / found.scale / f"{name}-0").metrics
            rows = read_metrics(file) if file.is_file() else []
            for number, length in enumerate(LENGTHS):
                shown = [
                    (row["step"], row[f"source_{number}"])
                    for row in rows
                    if row["split"] == "validation"
                ]
                line = {"color": shade("viridis", number / 4), "label": f"list of {length}"}
                axes.plot(*np.reshape(shown, (-1, 2)).T, **line)
            axes.axhline(math.log(8), color="#bbbbbb", linestyle=":")
            axes.set_title(ARMS[name], fontsize=9, loc="left")
            axes.set_xlabel("step")
            axes.grid(alpha=0.25)
        figure.axes[0].set_ylabel("nats")
        figure.axes[1].legend(frameon=False, fontsize=8)


STUDY = Study(
    name="imagine-yourself",
    title="Sources in parallel or in one softmax",
    source="arXiv 2409.13346",
    page="papers/imagine_yourself.md",
    arms={
        **{
            name: closed(
                f"{title}, as published",
                lambda votes=votes: {j: v[1] - v[0] for j, v in zip(JUDGED, votes, strict=True)},
            )
            for name, (title, *votes) in VOTES.items()
        },
        **{
            name: closed(
                f"{title}, as published", lambda r=rates: dict(zip(JUDGED, r, strict=True))
            )
            for name, (title, rates) in RATES.items()
        },
        **{
            name: Arm(title, experiment=lambda s, name=name: experiment(s, name == "parallel"))
            for name, title in ARMS.items()
        },
    },
    measures={
        "loss": Measure("loss", "lower", "nats a fact"),
        **{
            f"source_{number}": Measure(f"list of {length}", "lower", "nats")
            for number, length in enumerate(LENGTHS)
        },
        **{name: Measure(f"{name}, as judged", "higher", "%", ".1f") for name in JUDGED},
    },
    published=as_printed(PRINTED),
    claims=(
        *(
            Claim(
                f"In parallel the list of {length} is learned better in equal steps",
                "lower",
                ("parallel", "together"),
                f"source_{number}",
                source="ours, after the ablation",
            )
            for number, length in enumerate(LENGTHS)
        ),
        *(
            Claim(
                f"Parallel sources are better than concatenated tokens in {name}",
                "higher",
                ("full", "tokens"),
                name,
                source="ablation, as published",
            )
            for name in JUDGED
        ),
        Claim(
            "A single stage of training makes identity worse, as the text says of all three",
            "higher",
            ("full", "stage"),
            "identity",
            source="ablation, as published",
        ),
        Claim(
            "It is ahead of control-based models in identity, as in all aspects",
            "at_least",
            ("controls",),
            "identity",
            0.0,
            source="abstract, by its table",
        ),
        *PRINTED,
    ),
    figure=draw,
    notes=("lists of 1, 4, 64 and 256 tokens; a guess among 8 values costs ln 8 = 2.0794 nats",),
    absent=(
        Absent(
            "3,315 images of 51 identities, judged by people",
            "neither the model nor the data are public",
        ),
        Absent(
            "Adapters of low rank converge up to 5 times as fast as full tuning",
            "the rank is not given, and there is no pre-trained model to adapt",
        ),
    ),
)
