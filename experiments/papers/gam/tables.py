"""Tables 1 and 3 and the perplexity experiment: trials beside what was published."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from experiments.papers.gam import published
from experiments.papers.gam.arms import ARMS
from experiments.papers.gam.relations import Relation, faster, lower_loss
from experiments.papers.gam.sheet import Sheet
from experiments.papers.gam.trials import Found, Trials

NEAR = 0.1
"""Nats below the unigram within which a model is said to have learned little else."""


def table1(trials: Trials) -> Sheet:
    """Loss, perplexity and seconds of an epoch of the three architectures."""
    known = published.DATA.get(trials.data)
    losses = published.LOSS[known or "WikiText-2"]
    seconds = published.EPOCH_SECONDS[known or "WikiText-2"]
    rows = []
    for name, one in trials.found.items():
        theirs = losses.get(name)
        cells = (
            _count(one.parameters),
            _loss(one),
            _perplexity(one.loss),
            "" if one.step_seconds is None else f"{one.epoch_seconds:,.1f}",
            "" if theirs is None else f"{theirs:.4f}",
            "" if theirs is None else _perplexity(theirs),
            f"{seconds[name]:.1f}" if name in seconds else "",
        )
        rows.append((ARMS[name].title, *cells))
    rows += _baselines(trials, columns=8)
    ours = ("parameters", "loss", "perplexity", "s/epoch")
    theirs = ("paper: loss", "perplexity", "s/epoch")
    return Sheet(
        f"Table 1: {_where(trials)}",
        ("", *ours, *theirs),
        tuple(rows),
        (*map(str, _relations1(trials.found)), *_cautions(trials, known)),
    )


def _relations1(found: Mapping[str, Found]) -> list[Relation]:
    pairs = (("transformer", "the Transformer"), ("mamba", "Mamba as the paper runs it"))
    relations = []
    for other, title in pairs:
        if "gam" not in found or other not in found:
            continue
        ours, theirs = found["gam"], found[other]
        relations.append(lower_loss(f"GAM has a lower loss than {title}", ours, theirs))
        if ours.step_seconds and theirs.step_seconds:
            times = ours.step_seconds, theirs.step_seconds
            relations.append(faster(f"GAM trains faster than {title}", *times))
    return relations


def table3(trials: Trials) -> Sheet:
    """The ablations, best of the paper first."""
    theirs = published.ABLATION_PERPLEXITY
    rows = [
        (
            ARMS[name].title,
            _count(one.parameters),
            _loss(one),
            _perplexity(one.loss),
            f"{theirs[name]:,.2f}" if name in theirs else "",
        )
        for name, one in trials.found.items()
    ]
    rows += _baselines(trials, columns=5)
    order = [name for name in theirs if name in trials.found]
    relations = [
        lower_loss(
            f"{ARMS[better].title} is better than {ARMS[worse].title}",
            trials.found[better],
            trials.found[worse],
        )
        for better, worse in itertools.pairwise(order)
    ]
    return Sheet(
        f"Table 3: {_where(trials)}",
        ("", "parameters", "loss", "perplexity", "paper: perplexity"),
        tuple(rows),
        (*map(str, relations), *_cautions(trials, published.DATA.get(trials.data))),
    )


def perplexity(trials: Trials) -> Sheet:
    """One change of the published protocol at a time, and the recipe."""
    rows = []
    unigram = trials.baselines["unigram"]["loss"]
    for name, one in trials.found.items():
        cells = (_count(one.parameters), f"{one.steps:,}", _loss(one), _perplexity(one.loss))
        rows.append((ARMS[name].title, *cells, f"{one.loss - unigram:+.3f}"))
    rows += _baselines(trials, columns=6)
    relations = []
    for name in ("positions", "rate", "batch", "decay", "dropout", "recipe"):
        if name in trials.found and "gam" in trials.found:
            claim = f"{ARMS[name].title}: better than the published protocol"
            relations.append(lower_loss(claim, trials.found[name], trials.found["gam"]))
    if {"recipe", "recipe_old_positions"} <= trials.found.keys():
        pair = trials.found["recipe"], trials.found["recipe_old_positions"]
        relations.append(lower_loss("the recipe needs positions of std 0.02", *pair))
    return Sheet(
        f"Perplexity: {_where(trials)}",
        ("", "parameters", "steps", "loss", "perplexity", "loss - unigram"),
        tuple(rows),
        tuple(map(str, relations)),
    )


def _where(trials: Trials) -> str:
    seeds = max(len(one.losses) for one in trials.found.values())
    return f"{trials.data}, {seeds} seed{'s' if seeds > 1 else ''}"


def _cautions(trials: Trials, known: str | None) -> list[str]:
    notes = [f"the paper's figures are of 22.6 M parameters on {known or 'WikiText-2'}"]
    unigram = trials.baselines["unigram"]["loss"]
    near = [ARMS[name].title for name, one in trials.found.items() if one.loss > unigram - NEAR]
    if near:
        notes.append(f"within {NEAR} nats of counting tokens (unigram): {'; '.join(near)}")
    return notes


def _baselines(trials: Trials, columns: int) -> list[tuple[str, ...]]:
    """Unigram and bigram, in the columns of loss and perplexity."""
    rows = []
    for name in ("unigram", "bigram"):
        loss = trials.baselines[name]["loss"]
        before = ("",) * (2 if columns == 6 else 1)
        cells = (f"({name})", *before, f"{loss:.4f}", _perplexity(loss))
        rows.append(cells + ("",) * (columns - len(cells)))
    return rows


def _count(number: int) -> str:
    return f"{number:,}"


def _loss(one: Found) -> str:
    return f"{one.loss:.4f}" + ("" if math.isnan(one.spread) else f" ± {one.spread:.4f}")


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}"
