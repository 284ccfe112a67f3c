"""Half blocks that read the stream one half block earlier: what it costs in loss, and can save.

Source: Ladder Residual (arXiv 2501.06589).
"""

from __future__ import annotations

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Begins, Numbers, as_printed
from gam_jax.data import Text
from gam_jax.layers import MLP, Attention, Block, RMSNorm
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.planning.overlap import Operation, list_schedule
from gam_jax.training import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig

SPEEDS = {
    1: (77.39, 101.23),
    4: (258.56, 331.47),
    8: (475.04, 595.65),
    16: (843.15, 1003.35),
    32: (1312.26, 1553.72),
    64: (1940.99, 2241.84),
}
"""Rows -> tokens a second of 70 B on 8 H100 joined by NVLink, plain and with a ladder."""
SLOW_LINKS = (51.66, 82.59)
"""Of one row, without direct transfers between the devices."""
NO_MESSAGES = 110.59
"""Of one row, if nothing were sent."""
LAYERS = 80
PERPLEXITY = {"1.2 B": (18.54, 18.42), "3.5 B": (14.48, 14.90)}
"""WikiText, plain and with a ladder."""
WITHIN = 1.03

DEPTH, WIDTH, WINDOW = 6, 48, 64
STEPS = {SHORT: 24, CPU: 600}
RATE, TUNING_RATE = 3e-3, 1e-3
TUNING = 5
"""Tuning takes one step where training takes so many."""


def waves(attention: float, ffn: float, sums: tuple[float, float]) -> Numbers:
    """A layer's time where sums are waited for, and with a ladder; and the ladder's, scheduled.

    Args:
      attention: seconds of its computation.
      ffn: likewise.
      sums: seconds of the sum after each.
    """
    plain = attention + ffn + sum(sums)
    ladder = max(attention, sums[1]) + max(ffn, sums[0])
    found, after = [], ((), ())
    for number in range(2 * LAYERS):
        kind, seconds = number % 2, (attention, ffn)[number % 2]
        found.append(Operation(f"half-{number}", "compute", seconds, after[0]))
        found.append(Operation(f"sum-{number}", "network", sums[kind], (f"half-{number}",)))
        after = after[1], (f"sum-{number}",)
    scheduled = list_schedule(found).seconds / LAYERS
    return {"faster": plain / ladder, "off": 100 * abs(scheduled / ladder - 1)}


def fitted(rows: tuple[float, float] = SPEEDS[1]) -> Numbers:
    """Shares of computing and sending from the speed without messages; halves alike."""
    computing, both = 1 / NO_MESSAGES, 1 / rows[0]
    half, message = computing / 2, (both - computing) / 2
    return {**waves(half, half, (message, message)), "sent": 100 * (1 - computing / both)}


def model(ladder: int = 0, form: str = "sequential") -> LanguageModel:
    """A Transformer of six layers."""
    block = Block(
        Attention(heads=4, context=WINDOW), MLP(activation="swiglu"), RMSNorm(), form=form
    )
    return LanguageModel(block, WIDTH, DEPTH, norm=RMSNorm(), ladder=ladder)


def experiment(setting: Setting, given: LanguageModel, tuned: str = "") -> Experiment:
    """A run on bytes of Python files; `tuned` is "no" or "yes" of a model that is trained."""
    steps = setting.steps or STEPS[setting.scale]
    rate = setting.learning_rate or (TUNING_RATE if tuned else RATE)
    if tuned:
        steps = max(steps // TUNING, 1) if tuned == "yes" else 1
        rate = rate if tuned == "yes" else 0.0
    return Experiment(
        model=given,
        data=Text(setting.data or "python_stdlib", dir=setting.data_dir, window=WINDOW),
        train=TrainConfig(
            steps=steps,
            batch=16,
            validate_every=steps,
            log_every=min(steps, 50),
            tokens=1_000_000,
            validation_tokens=32_768,
        ),
        optimizer=OptimizerConfig(learning_rate=rate, warmup=min(steps // 10, 50)),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def _trained(title: str, given: LanguageModel) -> Arm:
    return Arm(title, experiment=lambda setting: experiment(setting, given))


def _going_on(title: str, ladder: int, tuned: str) -> Arm:
    return Arm(
        title,
        experiment=lambda setting: experiment(setting, model(ladder), tuned),
        begins=Begins(("plain",)),
    )


HALF = DEPTH // 2
ARMS: dict[str, Arm] = {
    **{
        f"rows_{rows}": closed(
            f"70 B, {rows} rows, as published", lambda pair=pair: {"faster": pair[1] / pair[0]}
        )
        for rows, pair in SPEEDS.items()
    },
    "slow_links": closed(
        "70 B, one row, slow links, as published",
        lambda: {"faster": SLOW_LINKS[1] / SLOW_LINKS[0]},
    ),
    "fitted": closed("70 B, one row, by the model of waves", fitted),
    "fitted_slow": closed(
        "70 B, one row, slow links, by the model of waves", lambda: fitted(SLOW_LINKS)
    ),
    "equal": closed("sums as long as half blocks", lambda: waves(1.0, 1.0, (1.0, 1.0))),
    "uneven": closed("long sums, short half blocks", lambda: waves(0.4, 1.0, (1.0, 0.6))),
    **{
        f"published_{i}": closed(
            f"{size}, as published", lambda pair=pair: {"rise": pair[1] / pair[0]}
        )
        for i, (size, pair) in enumerate(PERPLEXITY.items())
    },
    "plain": _trained("plain", model()),
    "ladder": _trained("ladder", model(DEPTH)),
    "half": _trained("ladder of the upper half", model(HALF)),
    "parallel": _trained("attention and feed-forward at once", model(form="parallel")),
    "half_converted": _going_on("plain, then its upper half a ladder", HALF, "no"),
    "all_converted": _going_on("plain, then all a ladder", DEPTH, "no"),
    "plain_tuned": _going_on("plain, tuned", 0, "yes"),
    "half_tuned": _going_on("its upper half a ladder, tuned", HALF, "yes"),
    "all_tuned": _going_on("all a ladder, tuned", DEPTH, "yes"),
}
SOURCE = "arXiv 2501.06589"
PRINTED = tuple(
    Claim(
        f"With {rows} rows it is {figure} times as fast",
        "printed",
        (f"rows_{rows}",),
        "faster",
        figures=(figure,),
        source=SOURCE,
    )
    for rows, figure in ((1, "1.308"), (4, "1.282"), (16, "1.190"), (32, "1.184"), (64, "1.155"))
)
CLAIMS = (
    *PRINTED,
    Claim(
        "With 8 rows it is 1.256 times as fast",
        "near",
        ("rows_8",),
        "faster",
        1.256,
        0.0005,
        f"{SOURCE}, the authors' blog",
    ),
    Claim(
        "By the model of waves one row gains at least what was measured",
        "times_at_least",
        ("fitted", "rows_1"),
        "faster",
        1.0,
        source="derived here",
    ),
    Claim(
        "So it does over slow links",
        "times_at_least",
        ("fitted_slow", "slow_links"),
        "faster",
        1.0,
        source="derived here",
    ),
    Claim(
        "Slower links gain more",
        "higher",
        ("slow_links", "rows_1"),
        "faster",
        source=SOURCE,
    ),
    Claim(
        "Nothing is more than twice as fast",
        "at_most",
        ("fitted", "fitted_slow", "equal", "uneven"),
        "faster",
        2.0,
        source="derived here",
    ),
    Claim(
        "A layer takes max(attention, sum) + max(feed-forward, sum), also scheduled one by one",
        "at_most",
        ("fitted", "fitted_slow", "equal", "uneven"),
        "off",
        100 * 2 / LAYERS,
        source="derived here, but for the first and the last",
    ),
    Claim(
        "Perplexity is within 3 % of the plain model's",
        "times_at_most",
        ("ladder", "plain"),
        "perplexity",
        WITHIN,
        source=f"{SOURCE}, 1.2 B and 3.5 B",
    ),
    Claim(
        "A ladder is no worse than attention and feed-forward at once",
        "times_at_most",
        ("ladder", "parallel"),
        "perplexity",
        1.0,
        source=f"{SOURCE}, 1.2 B",
    ),
    Claim(
        "The upper half of a trained model made a ladder: the loss jumps",
        "lower",
        ("plain", "half_converted"),
        "loss",
        source=f"{SOURCE}, 8 B",
    ),
    Claim(
        "All of it made a ladder is worse than half",
        "lower",
        ("half_converted", "all_converted"),
        "loss",
        source=f"{SOURCE}, 16 and 20 layers",
    ),
    Claim(
        "Short tuning recovers: within 3 % of the plain model tuned as long",
        "times_at_most",
        ("half_tuned", "plain_tuned"),
        "perplexity",
        WITHIN,
        source=f"{SOURCE}, 8 B",
    ),
)
STUDY = Study(
    name="ladder_residual",
    title="Half blocks that read one half block earlier",
    source=SOURCE,
    page="parallelism.md",
    arms=ARMS,
    measures={
        "loss": Measure("validation loss", "lower", "nats a token"),
        "perplexity": Measure("perplexity", "lower", form=".3f"),
        "faster": Measure("over waiting for sums", "higher", "times", ".3f"),
        "rise": Measure("perplexity over plain", "lower", "times", ".3f"),
        "sent": Measure("share of the time that is sums", "", "%", ".1f"),
        "off": Measure("scheduled, off the formula", "", "%", ".2f"),
    },
    published=as_printed(PRINTED),
    claims=CLAIMS,
    notes=(
        f"trained: {DEPTH} layers of width {WIDTH}, windows of {WINDOW} bytes, AdamW; tuning takes "
        f"one step for {TUNING} of training",
        "the model of waves has each sum travel while the other half block computes, both as long",
    ),
    absent=(
        Absent("Tokens a second, and models of 1 B to 405 B", "they need accelerators"),
        Absent("Accuracies on tasks", "models of this size know too little"),
    ),
)
