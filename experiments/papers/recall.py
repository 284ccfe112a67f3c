"""Who remembers what was written: multi-query associative recall, by mixer and number of pairs.

Source of the task: Zoology (Arora et al. 2023, arXiv 2312.04927).
"""

from __future__ import annotations

import dataclasses
import pathlib

from experiments.contenders import CONTENDERS, EVERY, Contender
from experiments.pictures import drawn, shade
from experiments.study import Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT
from experiments.study.found import Found
from gam_jax.data import Recall
from gam_jax.data.recall import part_name
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig

LONG = "long"
ENOUGH = 0.999
"""The share of right answers, of the hardest number of pairs, at which training ends."""
ADAMW = ("mamba2", "tcnca", "written_gam")
"""Mixers that take part by AdamW too, where they are named, as NAME_adamw."""
MARKERS = "osD^vP*X<>hd"
OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the task and the models are.

    Attributes:
      data: the sequences; rows of a batch have the numbers of pairs in turn.
      width, depth: of the models; hidden, of their feed-forward layers.
      rows: sequences in an update.
      steps: updates at most.
      check_every: steps between two looks at the validation sequences.
    """

    data: Recall = Recall(window=128, pairs=(4, 8, 16), vocab=128, scored=240)
    width: int = 64
    depth: int = 2
    hidden: int = 128
    rows: int = 15
    steps: int = 1500
    check_every: int = 50


SCALES = {
    SHORT: Scale(Recall("recall", 32, (2, 4), 64, scored=128), 32, 2, 64, rows=32, steps=300),
    CPU: Scale(),
    LONG: Scale(
        Recall("recall", 512, (4, 16, 64), 256, scored=240), 128, 2, hidden=256, steps=1200
    ),
}


def experiment(contender: Contender, scale: Scale, optimizer: str = "muon") -> Experiment:
    """A mixer's run: it ends once the hardest number of pairs is answered, or at the last step."""
    block = contender.block(scale.width, scale.hidden)
    return Experiment(
        model=LanguageModel(
            block,
            scale.width,
            scale.depth,
            streams=contender.streams,
            ladder=scale.depth if contender.ladder else 0,
        ),
        data=scale.data,
        train=TrainConfig(
            steps=scale.steps,
            batch=scale.rows,
            validate_every=scale.check_every,
            goal=f"{part_name(max(scale.data.pairs))}>={ENOUGH}",
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-3, warmup=min(100, scale.steps // 10), kind=optimizer, matrix_rate=2.0
        ),
        checkpoint=CheckpointConfig(every=scale.steps, keep=1),
    )


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Writes a PNG: right answers by number of pairs, a line a mixer.

    Args:
      study: what was asked.
      found: what was found.
      path: of the PNG.
    """
    data = SCALES[found.scale].data
    with drawn(path, 7.5, 4.2) as figure:
        axes = figure.add_subplot()
        for i, name in enumerate(name for name in study.arms if name in found.arms):
            values = [found.arms[name].values(part_name(n)) for n in data.pairs]
            points = [(n, 100 * v.mean) for n, v in zip(data.pairs, values, strict=True) if v]
            style = {"marker": MARKERS[i % len(MARKERS)], "linewidth": 1.6}
            colour = shade("tab10", i % 10)
            axes.plot(
                *zip(*points, strict=True), label=study.arms[name].title, color=colour, **style
            )
        axes.plot(data.pairs, [100 / n for n in data.pairs], ":", color="#999999", label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(data.pairs, [str(n) for n in data.pairs])
        axes.set_ylim(0, 103)
        axes.set_xlabel(f"pairs in {data.window} tokens")
        axes.set_ylabel("questions answered rightly, %")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _arm(name: str, optimizer: str = "muon") -> Arm:
    contender = EVERY[name]

    def run(setting: Setting) -> Experiment:
        return experiment(contender, SCALES[setting.scale], optimizer)

    if optimizer != "muon":
        return Arm(f"{contender.title}, AdamW", experiment=run, default=False)
    return Arm(contender.title, experiment=run, default=name in CONTENDERS)


STUDY = Study(
    name="recall",
    title="Recall of what was read",
    source="arXiv 2312.04927",
    page="recall.md",
    scales=(SHORT, CPU, LONG),
    arms={
        **{name: _arm(name) for name in EVERY},
        **{f"{name}_adamw": _arm(name, "adamw") for name in ADAMW},
    },
    measures={
        **{
            part_name(n): Measure(f"{n} pairs", "higher", form=".1%")
            for n in sorted({n for scale in SCALES.values() for n in scale.data.pairs})
        },
        "steps": Measure("steps", "lower", form=",.0f"),
        "parameters": Measure("parameters", form=",.0f"),
        "state_bytes": Measure("recurrent state or KV cache", "lower", "B", ",.0f"),
    },
    claims=(
        Claim(
            "GAM fails: it answers fewer of 16 pairs than a guess among the values written",
            "at_most",
            ("gam",),
            "accuracy_16",
            1 / 16,
            source=OURS,
        ),
        Claim(
            "With a written memory in its bank's place, or attention, GAM answers 99 % of 16 pairs",
            "at_least",
            ("written_gam", "attention_gam"),
            "accuracy_16",
            0.99,
            source=OURS,
        ),
        Claim(
            "A wide written memory answers 99 % of 64 pairs in 512 tokens",
            "at_least",
            ("wide_written_gam",),
            "accuracy_64",
            0.99,
            source=OURS,
        ),
        Claim(
            "Mamba-2 answers 99 % of 16 pairs",
            "at_least",
            ("mamba2",),
            "accuracy_16",
            0.99,
            source=OURS,
        ),
        Claim(
            "Attention solves recall (there: from 100,000 sequences, read many times)",
            "at_least",
            ("transformer",),
            "accuracy_16",
            0.99,
            source="arXiv 2312.04927, section 4",
        ),
        Claim(
            "Transformer, Falcon-H1 and Mamba stay at chance, within 2 % of 1 in 16",
            "near",
            ("transformer", "falcon_h1", "mamba"),
            "accuracy_16",
            1 / 16,
            0.02,
            OURS,
        ),
        Claim(
            "A memory must not forget: Gated DeltaNet, whose decays are fast, answers fewer than "
            "Mamba-2",
            "higher",
            ("mamba2", "gated_deltanet"),
            "accuracy_16",
            source=OURS,
        ),
        *(
            Claim(
                f"{EVERY[name].title} answers more of 16 pairs by Muon than by AdamW",
                "higher",
                (name, f"{name}_adamw"),
                "accuracy_16",
                source=OURS,
            )
            for name in ADAMW
        ),
    ),
    figure=draw,
    notes=("(chance) is a guess among the values that were written",),
)
