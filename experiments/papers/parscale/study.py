"""The study: runs of the law, second stages, the paper's own tables, and what writing costs.

Source: Parallel Scaling Law for Language Models (ParScale, arXiv 2505.10475).
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.contenders import EVERY
from experiments.papers.parscale import law, published
from experiments.papers.parscale.accelerator_model import compared
from experiments.papers.parscale.figure import draw
from experiments.papers.parscale.written import WRITTEN, Writer
from experiments.study import Arm, Begins, Claim, Measure, Published, Setting, Study
from experiments.study.declare import SHORT, Numbers
from gam_jax.data import Text
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder
from gam_jax.training.metrics import read_metrics
from sharding.checkpoint import CheckpointConfig

DEPTH, WINDOW, BATCH = 2, 64, 16
STEPS = {16: 1200, 48: 400}
"""Width -> updates, where nothing else is asked: the smaller model is trained for longer."""
OTHERWISE = 500

ADDED = "starts/*,aggregator/*"
"""What streams add, as `optimizer.only` names it."""
RATES = {"frozen": 5e-3, "all": 1.5e-3}
"""Of second stages: what is new may learn fast, what is trained already less so."""

STREAMS = (1, 2, 4, 8)
BATCHES = (1, 8)


@dataclasses.dataclass(frozen=True)
class Options:
    """Which runs there are.

    Attributes:
      widths, streams: of the runs of the law, in every combination.
      mixer: of `experiments.contenders`.
      steps: updates of each; those of its width if 0.
      second: updates of a second stage.
      stages: of `RATES`.
      stage_width: of the backbone of second stages.
    """

    widths: tuple[int, ...] = tuple(STEPS)
    streams: tuple[int, ...] = (1, 2, 4)
    mixer: str = "gam"
    steps: int = 0
    second: int = 200
    stages: tuple[str, ...] = tuple(RATES)
    stage_width: int = 48

    def name(self, width: int, streams: int, stage: str = "") -> str:
        """Of an arm, as w16-p2 or w48-frozen-p4; mixers other than GAM are named before it."""
        before = "" if self.mixer == "gam" else f"{self.mixer}-"
        return f"{before}w{width}-{stage}{'-' if stage else ''}p{streams}"

    def first(self, width: int, streams: int, setting: Setting) -> Experiment:
        """A run from the start: two layers, feed-forwards of twice the width."""
        steps = self.steps or STEPS.get(width, OTHERWISE)
        steps = min(steps, 8) if setting.scale == SHORT else steps
        block = EVERY[self.mixer].block(width, 2 * width)
        # A prefix of 48, as published, is for windows of 2,048 tokens.
        model = LanguageModel(block, width, DEPTH, unroll=DEPTH, streams=streams, prefix=8)
        return Experiment(
            model=model,
            data=Text(name="python_stdlib", tokenizer="bytes", window=WINDOW),
            train=TrainConfig(
                steps=steps,
                batch=BATCH,
                log_every=max(1, min(20, steps // 4)),
                validate_every=steps,
                validation_tokens=131_072,
            ),
            optimizer=OptimizerConfig(learning_rate=5e-3, warmup=max(1, steps // 10)),
            checkpoint=CheckpointConfig(every=steps, keep=1),
        )

    def after(self, streams: int, stage: str, setting: Setting) -> Experiment:
        """A second stage: "frozen" trains what streams add alone, "all" everything."""
        first = self.first(self.stage_width, streams, setting)
        steps = min(self.second, 4) if setting.scale == SHORT else self.second
        optimizer = dataclasses.replace(
            first.optimizer,
            learning_rate=RATES[stage],
            warmup=max(1, steps // 10),
            only=ADDED if stage == "frozen" else "",
        )
        train = dataclasses.replace(first.train, steps=steps, validate_every=steps)
        return dataclasses.replace(first, optimizer=optimizer, train=train)


def told(base: str, run: RunFolder, one: Experiment) -> Numbers:
    """N, and what the run gained on that of one stream from the same seed, where there is one.

    N is as the law counts: parameters without embeddings, with starts and aggregator.

    Args:
      base: the arm of one stream.
      run: of this arm.
      one: its experiment.
    """
    assert isinstance(one.model, LanguageModel)
    found: dict[str, float] = {"counted": count_params(one.model.trunk.table())}
    other = RunFolder(run.path.with_name(f"{base}-{one.train.seed}"))
    if other.path != run.path and other.metrics.exists():
        found["gain"] = _loss(other) - _loss(run)
    return found


def _loss(run: RunFolder) -> float:
    """Of the last validation."""
    return [row for row in read_metrics(run.metrics) if row["split"] == "validation"][-1]["loss"]


def law_arms(options: Options) -> dict[str, Arm]:
    """Every combination; the small and the cheap first."""
    return {
        options.name(width, streams): Arm(
            f"{EVERY[options.mixer].title}, width {width}, {_streams(streams)}",
            experiment=functools.partial(options.first, width, streams),
            also=functools.partial(told, options.name(width, 1)),
        )
        for width in options.widths
        for streams in options.streams
    }


def stage_arms(options: Options) -> dict[str, Arm]:
    """Second stages of one backbone, and that backbone.

    A frozen backbone with one stream is the first stage itself: there is nothing to train.
    """
    width = options.stage_width
    backbone = options.name(width, 1)
    one = dataclasses.replace(options, widths=(width,), streams=(1,))
    found = law_arms(one)
    for stage in options.stages:
        base = backbone if stage == "frozen" else options.name(width, 1, stage)
        for streams in options.streams:
            if stage == "frozen" and streams == 1:
                continue
            found[options.name(width, streams, stage)] = Arm(
                f"width {width} goes on, {stage} trained, {_streams(streams)}".replace(
                    "frozen trained", "backbone frozen"
                ),
                experiment=functools.partial(options.after, streams, stage),
                begins=Begins((backbone,)),
                also=functools.partial(told, base),
            )
    return found


def _streams(count: int) -> str:
    return "one stream" if count == 1 else f"{count} streams"


def _fitted(corpus: str) -> Arm:
    title = {"stack": "Stack-V2-Python", "pile": "the Pile"}[corpus]
    return Arm(
        f"the law of {title}",
        numbers=lambda setting, seed: law.of_published(corpus),
        exact=True,
    )


def _accelerator(streams: int, batch: int) -> Arm:
    return Arm(
        f"A100, batch {batch}, {_streams(streams)}",
        numbers=lambda setting, seed: compared(streams, batch),
        exact=True,
    )


def _written(streams: int, batch: int) -> Arm:
    def writer(setting: Setting) -> Writer:
        width = {"width": 32} if setting.scale == SHORT else {}
        return Writer(streams, batch, **width)

    return Arm(
        f"here, batch {batch}, {_streams(streams)}",
        numbers=lambda setting, seed: writer(setting).numbers(),
        timed=lambda setting: {"written": writer(setting).write},
        exact=True,
    )


TABLES = {f"law-{corpus}": _fitted(corpus) for corpus in published.LOSSES}
PAIRS = tuple((batch, streams) for batch in BATCHES for streams in STREAMS)
A100 = {f"a100-b{batch}-p{streams}": _accelerator(streams, batch) for batch, streams in PAIRS}
HERE = {f"here-b{batch}-p{streams}": _written(streams, batch) for batch, streams in PAIRS}

MEASURES = {
    "loss": Measure("loss", "lower", "nats a token"),
    "gain": Measure("better than one stream by", "higher", form="+.4f"),
    "counted": Measure("N", form=",.0f"),
    "E": Measure("E", form=".5f"),
    "A": Measure("A", form=".4e"),
    "alpha": Measure("alpha", form=".5f"),
    "k": Measure("k", form=".5f"),
    "beats_additive": Measure("beats an additive law", "higher", "BIC", ".1f"),
    "beats_none": Measure("beats one without streams", "higher", "BIC", ".1f"),
    "memory": Measure("memory", "lower", "GiB", ".3f"),
    "seconds": Measure("time", "lower", "s", ".3f"),
    "added_memory": Measure("memory added", "lower", "GiB", ".3f"),
    "by_parameters_memory": Measure("by parameters", "lower", "GiB", ".3f"),
    "saved_memory": Measure("times less", "higher", form=".2f"),
    "added_seconds": Measure("time added", "lower", "s", ".3f"),
    "by_parameters_seconds": Measure("by parameters", "lower", "s", ".3f"),
    "saved_seconds": Measure("times less", "higher", form=".2f"),
    "parameters": Measure("parameters", form=",.0f"),
    "carry_bytes": Measure("carry", "lower", "B", ",.0f"),
    "bytes": Measure("memory of a token", "lower", "B", ",.0f"),
    "written": Measure(f"{WRITTEN} tokens written", "lower", "s", ".3f"),
}

PAPER = "the paper"


def _published() -> tuple[Published, ...]:
    found = [
        Published(f"law-{corpus}", name, value, "the official script")
        for corpus, values in published.COEFFICIENTS.items()
        for name, value in values.items()
    ]
    found += [
        Published("a100-b1-p8", f"saved_{what}", value, "the abstract")
        for what, value in published.SAVED.items()
    ]
    return tuple(found)


def _claims() -> tuple[Claim, ...]:
    found = []
    trained = [(f"w{width}", f"GAM, width {width}") for width in STEPS]
    trained += [("w48-frozen", "a frozen backbone"), ("w48-all", "a second stage of all")]
    for name, title in trained:
        for streams, count in ((2, "Two"), (4, "Four")):
            text = f"{count} streams are better than one ({title})"
            found.append(Claim(text, "at_least", (f"{name}-p{streams}",), "gain", source=PAPER))
    for corpus, values in published.COEFFICIENTS.items():
        for name, value in values.items():
            text = f"The table of {corpus} gives {name} = {value:.6g}, to 0.2 %"
            arm = (f"law-{corpus}",)
            found.append(Claim(text, "near", arm, name, value, 2e-3 * value, "the official script"))
        for rival in ("additive", "none"):
            than = "one that adds" if rival == "additive" else "none"
            text = f"A law of log P tells the table of {corpus} better than {than}"
            arm = (f"law-{corpus}",)
            found.append(Claim(text, "at_least", arm, f"beats_{rival}", 0.0, source=PAPER))
    times = {"memory": "memory", "seconds": "time"}
    for what, value in published.SAVED.items():
        text = f"Eight streams at batch 1 add {value:g} times less {times[what]} than parameters do"
        arm, source = ("a100-b1-p8",), "the paper's abstract"
        found.append(Claim(text, "near", arm, f"saved_{what}", value, 0.5, source))
    for (batch, what), value in published.SCRIPTED.items():
        text = f"At batch {batch} it is {value:g} times less {times[what]}"
        arm, source = (f"a100-b{batch}-p8",), "the paper's script"
        found.append(Claim(text, "near", arm, f"saved_{what}", value, 0.05, source))
    return tuple(found)


OURS = (
    Claim(
        "Writing with eight streams at batch 1 takes at most 4 times as long as with one",
        "times_at_most",
        ("here-b1-p8", "here-b1-p1"),
        "written",
        4.0,
        source="ours",
    ),
    Claim(
        "At batch 8 it takes at least twice as long",
        "times_at_least",
        ("here-b8-p8", "here-b8-p1"),
        "written",
        2.0,
        source="ours",
    ),
)


def study_of(options: Options) -> Study:
    """The study with these runs; groups law, stages, published, and cost: model and here."""
    laws, stages = law_arms(options), stage_arms(options)
    arms = {**laws, **stages, **TABLES, **A100, **HERE}
    claims = [c for c in (*_claims(), *OURS) if all(name in arms for name in c.arms)]
    return Study(
        name="parscale",
        title="Parallel streams",
        source="arXiv 2505.10475",
        page="parscale.md",
        arms=arms,
        measures=MEASURES,
        published=_published(),
        claims=tuple(claims),
        groups={
            "law": tuple(laws),
            "stages": tuple(stages),
            "published": tuple(TABLES),
            "model": tuple(A100),
            "here": tuple(HERE),
            "cost": (*A100, *HERE),
        },
        figure=draw,
        notes=(
            "A100: 1.6 B parameters by the paper's model of it; here: 15 M parameters in float32",
        ),
    )


STUDY = study_of(Options())
