"""A trained model made larger trains on from where it was (EAS, Net2Net), beside a new one.

Sources: arXiv 1707.04873 and 1511.05641. Their image nets are not here; the model is one of
characters. That growing keeps the function, and what gradients of copies are, is a law of every
layer and stands in the tests.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax

from experiments.study import Absent, Arm, Begins, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.data import Dataset
from gam_jax.data.text import Text
from gam_jax.grow import grown, growth
from gam_jax.layers import GAM, MLP, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder
from gam_jax.training.metrics import read_metrics
from sharding.checkpoint import CheckpointConfig

STEPS = {SHORT: 8, CPU: 400}
EVERY = {SHORT: 2, CPU: 20}
"""Steps between validations, which is as exact as steps to a loss are told."""
NOISE = 0.01
"""On copies, in standard deviations of their parameter: EAS' default."""
SMALL, LARGE = "small", "large"


def model_of(large: bool) -> LanguageModel:
    """64 channels; the larger one has 3 blocks for 2, 192 hidden units for 64, 128 slots for 64."""
    mixer, ffn = GAM(slots=128 if large else 64, kernel=8), MLP(hidden=192 if large else 64)
    return LanguageModel(Block(mixer, ffn), width=64, depth=3 if large else 2, vocab=256)


def experiment(large: bool, setting: Setting) -> Experiment:
    """The same steps, rows and schedule for all."""
    steps, every = STEPS[setting.scale], EVERY[setting.scale]
    return Experiment(
        model=model_of(large),
        data=Text(name="python_stdlib", tokenizer="bytes", window=128),
        train=TrainConfig(
            steps=steps, batch=8, validate_every=every, validation_tokens=16_384, log_every=every
        ),
        optimizer=OptimizerConfig(3e-3, warmup=max(1, steps // 20)),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def reordered(one: Experiment, data: Dataset) -> Experiment:
    """Other rows than the small model has seen; the same for all large ones."""
    return dataclasses.replace(one, train=dataclasses.replace(one.train, seed=one.train.seed + 500))


def larger(
    noise: float,
    one: Experiment,
    sources: Sequence[Experiment],
    params: Sequence[Params],
    seed: int,
) -> Params:
    """The small model's parameters in the large one."""
    small, large = sources[0].model, one.model
    assert isinstance(small, LanguageModel)
    assert isinstance(large, LanguageModel)
    return grown(growth(small, large), params[0], jax.random.key(seed), noise)


def losses(run: RunFolder) -> dict[int, float]:
    """Step -> validation loss."""
    rows = read_metrics(run.metrics)
    return {row["step"]: row["loss"] for row in rows if row["split"] == "validation"}


def steps_to(run: RunFolder, one: Experiment) -> Numbers:
    """Steps until a loss as low as the last one of the large model trained anew from this seed.

    One validation more than there were where it is never as low.
    """
    seed = run.path.name.rpartition("-")[2]
    beside = RunFolder(run.path.with_name(f"{LARGE}-{seed}"))
    goal = losses(beside)[max(losses(beside))]
    reached = [step for step, loss in losses(run).items() if loss <= goal]
    every = one.train.validate_every
    steps = min(reached, default=one.train.steps + every)
    return {"steps_to": steps, "share": steps / one.train.steps}


def _grown(title: str, noise: float) -> Arm:
    return Arm(
        title,
        experiment=functools.partial(experiment, True),
        begins=Begins((SMALL, LARGE), make=functools.partial(larger, noise)),
        fitted=reordered,
        also=steps_to,
    )


STUDY = Study(
    name="eas-net2net",
    title="A trained model made larger",
    source="arXiv 1707.04873",
    page="growing.md",
    arms={
        SMALL: Arm("the small model", experiment=functools.partial(experiment, False)),
        LARGE: Arm(
            "the large one, anew",
            experiment=functools.partial(experiment, True),
            fitted=reordered,
            also=steps_to,
        ),
        "grown": _grown("the small one grown, with noise", NOISE),
        "exact": _grown("the small one grown, exact", 0.0),
    },
    measures={
        "loss": Measure("validation loss", "lower", "nats a token"),
        "steps_to": Measure("steps to the loss of the one anew", "lower", form=".0f"),
        "share": Measure("as a share of its steps", "lower", form=".2f"),
        "parameters": Measure("parameters", form=",.0f"),
    },
    claims=(
        Claim(
            "A grown model reaches the loss of one trained anew in fewer steps",
            "lower",
            ("grown", LARGE),
            "steps_to",
            source="abstract: children inherit weights and train briefly",
        ),
        Claim(
            "in at most half of them",
            "times_at_most",
            ("grown", LARGE),
            "steps_to",
            0.5,
            source="ours",
        ),
        Claim(
            "After as many steps its loss is lower",
            "lower",
            ("grown", LARGE),
            "loss",
            source="ours",
        ),
        Claim(
            "Noise on copies helps: equal copies have equal gradients and stay equal",
            "lower",
            ("grown", "exact"),
            "loss",
            source="section on Net2Wider; the released code has it on",
        ),
    ),
    notes=(
        "what the small model's own steps cost is not counted",
        f"steps to a loss are told to {EVERY[CPU]}, the steps between validations",
    ),
    absent=(
        Absent(
            "Test accuracies of 95.77 % (CIFAR-10, plain nets) to 98.27 % (SVHN)",
            "searches of two days on five GPUs over image nets",
        ),
        Absent(
            "An LSTM that chooses what to widen",
            "tables and evolution search here; see the page on searches",
        ),
    ),
)
