"""The tables of the GAM paper as one study: a group of arms for each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.papers.gam import published
from experiments.papers.gam.arms import CHANGES
from experiments.papers.gam.blocks import TITLES, block_arms
from experiments.papers.gam.protocol import SCALES, fitted
from experiments.study import Arm, Claim, Measure, Published, Setting, Study
from experiments.study.declare import Numbers
from gam_jax.optimizer import make_optimizer
from gam_jax.params import count_params
from gam_jax.training import Experiment
from gam_jax.training.folder import RunFolder, read_baselines
from gam_jax.training.metrics import read_metrics
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from sharding.layout import Layout
from sharding.mesh import make_mesh

NEAR = 0.1
"""Nats below the unigram within which a model is said to have learned little else."""

TABLE1 = ("gam", "transformer", "mamba")
TABLE3 = ("gam", "global", "sum", "local")
STORIES = ("gam", "transformer")
PERPLEXITY = (
    "gam",
    "positions",
    "rate",
    "batch",
    "decay",
    "dropout",
    "recipe",
    "recipe_old_positions",
    "transformer",
    "transformer_positions",
    "transformer_recipe",
)
LENGTHS = SCALES["paper"].lengths


def experiment(name: str, data: str, setting: Setting) -> Experiment:
    """The training of an arm."""
    scale = SCALES[setting.scale]
    return CHANGES[name][1](scale.protocol(setting.data or data), scale)


def told(run: RunFolder, one: Experiment) -> Numbers:
    """Seconds of training in an epoch, and the loss above those of counting tokens and pairs."""
    text: Any = one.data
    rows = read_metrics(run.metrics)
    loss = [row for row in rows if row["split"] == "validation"][-1]["loss"]
    speeds = [s for row in rows if (s := row.get("tokens_per_second"))]
    known = read_baselines(run)
    found = {f"over_{name}": loss - known[name]["loss"] for name in ("unigram", "bigram")}
    if speeds:
        tokens = one.train.validate_every * one.train.batch * text.window
        found["epoch_seconds"] = tokens / statistics.median(speeds)
    return found


def _trained(name: str, title: str = "", data: str = "", default: bool = False) -> Arm:
    return Arm(
        title or CHANGES[name][0],
        experiment=functools.partial(experiment, name, data),
        fitted=fitted,
        also=told,
        default=default,
    )


def _size(name: str) -> Arm:
    def counts(setting: Setting, seed: int) -> Numbers:
        model: Any = experiment(name, "", Setting("paper")).model
        return {"parameters": count_params(dataclasses.replace(model, vocab=10_000).table())}

    return Arm(f"{CHANGES[name][0]}, published size", numbers=counts, exact=True)


def _timed(name: str) -> Arm:
    return Arm(f"{CHANGES[name][0]}, a step", timed=functools.partial(_step_calls, name))


def _step_calls(name: str, setting: Setting) -> dict[str, Callable[[], Any]]:
    """A training step on tokens drawn at random."""
    one, layout = experiment(name, "", setting), Layout(make_mesh(data=1))
    model: Any = dataclasses.replace(one.model, vocab=SCALES[setting.scale].vocab)  # type: ignore[call-arg]
    optimizer = make_optimizer(one.optimizer, one.train.steps, model.table())
    step = make_train_step(model, optimizer, layout)
    holder = [init_state(model, optimizer, layout, seed=0)]
    shape = one.train.batch, SCALES[setting.scale].window + 1
    tokens = np.random.default_rng(0).integers(0, model.vocab, shape).astype(np.int32)
    weights = np.ones((shape[0], shape[1] - 1), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}

    def call() -> Any:
        holder[0], metrics = step(holder[0], batch)
        return metrics["loss"]

    return {"step": call}


def _published() -> tuple[Published, ...]:
    found = [Published(name, "loss", x, "Table 1") for name, x in published.LOSS.items()]
    found += [
        Published(name, "epoch_seconds", x, "Table 1")
        for name, x in published.EPOCH_SECONDS.items()
    ]
    for measure, table, unit in (
        ("block", published.MILLISECONDS, 1e-3),
        ("bytes", published.MEGABYTES, 1e6),
    ):
        found += [
            Published(f"{name}-{tokens}", measure, unit * value, "Table 2")
            for name, row in table.items()
            for tokens, value in row.items()
        ]
    found += [
        Published(name, "perplexity", x, "Table 3")
        for name, x in published.ABLATION_PERPLEXITY.items()
    ]
    return tuple(found)


def _lower(text: str, better: str, worse: str, source: str) -> Claim:
    return Claim(text, "lower", (better, worse), "loss", source=source)


def _claims1() -> list[Claim]:
    found = []
    for other, title in (
        ("transformer", "the Transformer"),
        ("mamba", "Mamba as the paper runs it"),
    ):
        found.append(_lower(f"GAM has a lower loss than {title}", "gam", other, "Table 1"))
        pair = ("gam_step", f"{other}_step")
        found.append(
            Claim(f"GAM trains faster than {title}", "faster", pair, "step", source="Table 1")
        )
    found.append(
        _lower(
            "GAM has a lower loss than the Transformer on TinyStories",
            "gam_stories",
            "transformer_stories",
            "Table 1",
        )
    )
    for name in TABLE1:
        text = f"{CHANGES[name][0]} does better than counting tokens by more than {NEAR} nats"
        found.append(Claim(text, "at_most", (name,), "over_unigram", -NEAR, source="ours"))
    for name, millions in published.MILLIONS.items():
        text = f"{CHANGES[name][0]} has {millions} M parameters"
        size = (f"size_{name}",)
        found.append(Claim(text, "near", size, "parameters", millions * 1e6, 5e4, "Table 3"))
    return found


def _claims2() -> list[Claim]:
    found = []
    for tokens in SCALES["cpu"].lengths:
        for other, source in (("at_once", "Table 2"), ("in_blocks", "ours")):
            text = f"At {tokens:,} tokens GAM is faster than the {TITLES[other]}"
            pair = (f"gam-{tokens}", f"{other}-{tokens}")
            found.append(Claim(text, "faster", pair, "block", source=source))
    grows = (
        ("gam", "times_at_most", 6.0, "GAM's {} grows about as T"),
        ("at_once", "times_at_least", 10.0, "the Transformer's {} grows about as the square of T"),
    )
    for name, kind, value, text in grows:
        for measure, what in (("block", "time"), ("bytes", "memory")):
            said = f"From 1,024 to 4,096 tokens {text.format(what)}"
            pair = (f"{name}-4096", f"{name}-1024")
            found.append(Claim(said, kind, pair, measure, value, source="Table 2"))
    pair = ("gam-4096", "in_blocks-4096")
    text = "At 4,096 tokens GAM takes less memory than attention in blocks"
    found.append(
        Claim(text, "lower", pair, "bytes", source="the paper, of attention as it runs it")
    )
    return found


def _claims3() -> list[Claim]:
    found = [
        _lower(f"{CHANGES[better][0]} is better than {CHANGES[worse][0]}", better, worse, "Table 3")
        for better, worse in itertools.pairwise(TABLE3)
    ]
    for name in ("positions", "rate", "batch", "decay", "dropout", "recipe"):
        text = f"{CHANGES[name][0]}: better than the published protocol"
        found.append(_lower(text, name, "gam", "ours"))
    found += [
        _lower("The recipe needs positions of std 0.02", "recipe", "recipe_old_positions", "ours"),
        _lower(
            "Positions of std 0.02 make the Transformer better, too",
            "transformer_positions",
            "transformer",
            "ours",
        ),
        _lower(
            "With positions of std 0.02 the Transformer is better than GAM",
            "transformer_positions",
            "positions",
            "ours",
        ),
        Claim(
            "The recipe is better than counting pairs",
            "at_most",
            ("recipe",),
            "over_bigram",
            source="ours",
        ),
    ]
    return found


def study_of(lengths: Sequence[int] = LENGTHS) -> Study:
    """The study, with blocks of these lengths in group table2."""
    named = block_arms(lengths)
    others = block_arms([tokens for tokens in LENGTHS if tokens not in lengths])
    sizes = {f"size_{name}": _size(name) for name in published.MILLIONS}
    steps = {f"{name}_step": _timed(name) for name in TABLE1}
    stories = {
        f"{name}_stories": _trained(name, f"{CHANGES[name][0]}, TinyStories", "tinystories")
        for name in STORIES
    }
    usual = {*TABLE1, *TABLE3}
    trained = {name: _trained(name, default=name in usual) for name in CHANGES}
    return Study(
        name="gam",
        title="The tables of the GAM paper",
        source="arXiv 2509.00605",
        page="gam.md",
        arms={**trained, **stories, **steps, **named, **others, **sizes},
        measures={
            "loss": Measure("loss", "lower", "nats a token"),
            "perplexity": Measure("perplexity", "lower", form=",.2f"),
            "over_unigram": Measure("loss - unigram", "lower", form="+.3f"),
            "over_bigram": Measure("loss - bigram", "lower", form="+.3f"),
            "steps": Measure("steps", form=",.0f"),
            "parameters": Measure("parameters", form=",.0f"),
            "epoch_seconds": Measure("an epoch", "lower", "s", ",.1f"),
            "step": Measure("a step", "lower", "s", ".4g"),
            "block": Measure("forward and backward", "lower", "s", ".4g"),
            "bytes": Measure("memory", "lower", "B", ",.0f"),
        },
        published=_published(),
        claims=(*_claims1(), *_claims2(), *_claims3()),
        scales=tuple(SCALES),
        groups={
            "table1": (*TABLE1, *steps),
            "stories": tuple(stories),
            "table2": tuple(named),
            "table3": TABLE3,
            "perplexity": PERPLEXITY,
            "sizes": tuple(sizes),
        },
        notes=(
            "the paper's figures are of 22.6 M parameters on WikiText-2 or TinyStories",
            "published perplexities are those of Table 3; in Table 1 the full GAM has 882.57",
        ),
    )


STUDY = study_of()
