"""Workers that meet now and then: what a delayed sum saves, when it diverges, and its loss.

Source: CO2 (arXiv 2401.16265); SlowMo (arXiv 1910.00643).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Numbers, as_printed
from gam_jax.data import Text
from gam_jax.layers import GAM, Block
from gam_jax.local import Local
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.planning.overlap import Operation, list_schedule, round_seconds, steps_to_hide
from gam_jax.training import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig

WORDS = {"CO2, 48 steps": 304_736.0, "AdamW": 22_810.0}
"""Words a second on 128 A100 over 80 Gbit/s TCP, TransNormer-LLM 7B."""
MESSAGE = WORDS["CO2, 48 steps"] / WORDS["AdamW"] - 1
"""Steps that a sum takes there, if 48 hide it and each of AdamW's steps waits for one."""
ROUNDS = 40
WORKERS, STEPS = 4, {SHORT: 48, CPU: 480}
LONG_ROUND, SHORT_ROUND = 24, 8


def timed(every: int, message: float = MESSAGE) -> Numbers:
    """Of rounds of so many steps: times in steps, and words a second over a sum each step."""
    each = every * (1 + message)
    late, slow = (round_seconds(every, 1.0, message, delay) for delay in (1, 0))
    return {
        "late": late,
        "slow": slow,
        "faster": each / late,
        "over_waiting": slow / late,
        "hidden_from": steps_to_hide(1.0, message),
        "off": 100 * (scheduled(every, message) / ROUNDS / late - 1),
    }


def scheduled(every: int, message: float) -> float:
    """Many rounds in a row, each beginning when the sum of the one before last is there."""
    found = []
    for number in range(ROUNDS):
        after = (f"sum-{number - 2}",) if number > 1 else ()
        found.append(Operation(f"steps-{number}", "compute", every, after))
        found.append(Operation(f"sum-{number}", "network", message, (f"steps-{number}",)))
    return list_schedule(found).seconds


def bounded(momentum: float, penalty: float) -> Numbers:
    """The share p from which a quadratic diverges: by the rule, and by following it."""
    local = Local(WORKERS, 1, 1, momentum=momentum, penalty=penalty)
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _grows(local, middle) else (middle, high)
    rule = (1 - momentum) * penalty / local.rate
    return {"bound": min(rule, 1.0), "bound_off": 100 * abs(high / min(rule, 1.0) - 1)}


def _grows(local: Local, share: float, rounds: int = 4000) -> bool:
    """Whether the error of a quadratic is larger at the end than at first, followed in float64."""
    x, before, momentum, sizes = 1.0, 0.0, 0.0, []
    for _ in range(rounds):
        sent = share * x
        momentum = local.momentum * momentum + before / local.penalty
        x, before = x - local.rate * momentum, sent
        sizes.append(abs(x))
        if not 1e-200 < max(sizes[-8:]) < 1e200:
            return sizes[-1] > 1
    quarter = rounds // 4
    return bool(np.max(sizes[-quarter:]) > np.max(sizes[quarter : 2 * quarter]))


def experiment(local: Local, setting: Setting) -> Experiment:
    """A small GAM on bytes of Python files; batches are as large with workers as without."""
    steps = setting.steps or STEPS[setting.scale]
    return Experiment(
        model=LanguageModel(Block(GAM(slots=32)), width=32, depth=1, context=64),
        data=Text(setting.data or "python_stdlib", dir=setting.data_dir, window=64),
        train=TrainConfig(
            steps=steps,
            batch=16,
            local=local,
            validate_every=steps,
            log_every=LONG_ROUND,
            tokens=400_000,
            validation_tokens=16_384,
        ),
        optimizer=OptimizerConfig(learning_rate=setting.learning_rate or 3e-3, warmup=steps // 10),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


SOON = Local(WORKERS, SHORT_ROUND, momentum=0.2)
FAR = Local(WORKERS, LONG_ROUND, delay=1, momentum=0.5)
TRAINED: dict[str, tuple[str, Local]] = {
    "every": ("gradients summed every step", Local()),
    "slowmo": (f"SlowMo, {SHORT_ROUND} steps", SOON),
    "co2": (f"CO2, {SHORT_ROUND} steps", dataclasses.replace(SOON, delay=1)),
    "far": (f"CO2, {LONG_ROUND} steps, momentum 0.5", FAR),
    "far_penalty": (
        f"CO2, {LONG_ROUND} steps, momentum 0.5, penalty 2",
        dataclasses.replace(FAR, penalty=2.0),
    ),
}
TIMES = {"tau48": 48, "tau12": 12}
BOUNDS = {"bound_2": (0.2, 1.0), "bound_6": (0.6, 1.0), "bound_6_2": (0.6, 2.0)}
ARMS: dict[str, Arm] = {
    "published": closed(
        "words a second, CO2 over AdamW",
        lambda: {"faster": WORDS["CO2, 48 steps"] / WORDS["AdamW"]},
    ),
    **{
        name: closed(
            f"rounds of {every} steps, a sum as long as {MESSAGE:.1f}",
            lambda every=every: timed(every),
        )
        for name, every in TIMES.items()
    },
    **{
        name: closed(
            f"momentum {momentum}, penalty {penalty:g}", lambda m=momentum, p=penalty: bounded(m, p)
        )
        for name, (momentum, penalty) in BOUNDS.items()
    },
    **{
        name: Arm(title, experiment=lambda setting, local=local: experiment(local, setting))
        for name, (title, local) in TRAINED.items()
    },
}
CLAIMS = (
    Claim(
        "It trains 13.4 times the words a second",
        "printed",
        ("published",),
        "faster",
        figures=("13.4",),
        source="arXiv 2401.16265, scaling table",
    ),
    Claim(
        "48 steps hide the sum: as fast as if nothing were sent",
        "near",
        ("tau48",),
        "late",
        48.0,
        1e-9,
        "arXiv 2401.16265",
    ),
    Claim(
        "A round takes max(tau, c) steps, also scheduled one by one",
        "at_most",
        tuple(TIMES),
        "off",
        100 * (1 + 1) / ROUNDS,
        source="exact, but for the first sums",
    ),
    Claim(
        "Overlap is at most twice as fast as waiting at the end of a round",
        "at_most",
        tuple(TIMES),
        "over_waiting",
        2.0,
        source="exact",
    ),
    Claim(
        "On a quadratic it diverges from rate p / penalty + momentum = 1 on",
        "at_most",
        tuple(BOUNDS),
        "bound_off",
        0.5,
        source="derived here",
    ),
    Claim(
        "Near the bound the penalty makes the loss lower",
        "lower",
        ("far_penalty", "far"),
        "loss",
        source="arXiv 2401.16265, ablation",
    ),
    Claim(
        "A sum a round late costs little: within 5 % of SlowMo's loss",
        "times_at_most",
        ("co2", "slowmo"),
        "loss",
        1.05,
        source="arXiv 2401.16265",
    ),
    Claim(
        "Summing every step is no worse than CO2 with a penalty",
        "lower",
        ("every", "far_penalty"),
        "loss",
        source="arXiv 2401.16265, language models",
    ),
)
STUDY = Study(
    name="co2",
    title="Workers that meet now and then",
    source="arXiv 2401.16265, 1910.00643",
    page="workers.md",
    arms=ARMS,
    measures={
        "loss": Measure("validation loss", "lower", "nats a token"),
        "late": Measure("a round of CO2", "lower", "steps", ".2f"),
        "slow": Measure("a round that waits", "lower", "steps", ".2f"),
        "faster": Measure("over a sum each step", "higher", "times", ".2f"),
        "over_waiting": Measure("over waiting each round", "higher", "times", ".2f"),
        "hidden_from": Measure("steps that hide the sum", form=".0f"),
        "off": Measure("scheduled, off the formula", "", "%", ".2f"),
        "bound": Measure("diverges from p", "higher", form=".3f"),
        "bound_off": Measure("followed, off the rule", "", "%", ".3f"),
    },
    published=as_printed(CLAIMS[:1]),
    claims=CLAIMS,
    notes=(
        f"the sum's {MESSAGE:.2f} steps are what the published 13.4 gives if 48 steps hide it all",
        f"trained: {WORKERS} workers on one device, as many rows and steps in each arm; AdamW",
    ),
    absent=(
        Absent(
            "Perplexities of GPT-2 and TransNormer-LLM, accuracies of ResNet-50 and ViT-B",
            "the sizes need accelerators",
        ),
        Absent(
            "The penalty as a measure of staleness",
            "its normaliser is not in what was published; here it is one number, as in the "
            "released code",
        ),
    ),
)
