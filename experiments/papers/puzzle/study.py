"""The study of Puzzle: arms, measures and claims.

Source: arXiv 2411.19146. Its models of 51 billion parameters are not here: the parent is a model
of bytes of six layers.
"""

from __future__ import annotations

import functools
import pathlib

from experiments.papers.puzzle.children import (
    child,
    identities,
    options,
    random,
    solver,
    teaching,
)
from experiments.papers.puzzle.official import FILE, OFFICIAL, PRINTED, official
from experiments.pictures import drawn, shade
from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed
from experiments.study.found import Found

CHILDREN = {
    "exact": "the integer program",
    "swap-by-swap": "greedy, swap by swap",
    "block-by-block": "greedy, block by block",
    "stay-or-go": "the program, of parts that stay or go",
    "largest": "the most memory that fits",
}
TAUGHT: dict[str, tuple[str, tuple[float, ...]]] = {
    "untaught": ("as put together", ()),
    "taught": ("taught by cosine and KL", (1.0, 1.0, 0.0)),
    "taught-kl": ("taught by KL", (0.0, 1.0, 0.0)),
    "taught-tokens": ("taught by cosine, KL and next tokens", (1.0, 1.0, 1.0)),
}


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Writes a PNG: KL of children over their sums of scores, a point a seed."""
    with drawn(path, 6, 4) as figure:
        axes = figure.add_subplot()
        sums, divergences = found.of("sum"), found.of("kl")
        for number, name in enumerate(name for name in study.arms if name in sums):
            both = sums[name].values, divergences[name].values
            axes.scatter(*both, s=28, color=shade("tab10", number), label=study.arms[name].title)
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], ":", color="#999999", label="as if scores added up")
        axes.set_xlabel("sum of the scores of its swaps, nats a token")
        axes.set_ylabel("KL to the parent, nats a token")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)


def _below(text: str, other: str, theirs: str) -> Claim:
    source = f"MMLU 78.39 against {theirs}" if theirs else "ours"
    return Claim(text, "lower", ("exact", other), "kl", source=source)


STUDY = Study(
    name="puzzle",
    title="A child of a trained model's blocks",
    source="arXiv 2411.19146",
    page="papers/puzzle.md",
    arms={
        "solver": Arm("20 small libraries", numbers=solver, exact=True),
        "identities": Arm("a parent that is not trained", numbers=identities, exact=True),
        "parent": Arm("options trained alone", numbers=options),
        **{
            name: Arm(title, numbers=functools.partial(child, name))
            for name, title in CHILDREN.items()
        },
        "random": Arm("random", numbers=random),
        **{
            name: Arm(f"half, {title}", numbers=functools.partial(teaching, weights))
            for name, (title, weights) in TAUGHT.items()
        },
        **{
            name: Arm(
                f"the published library, {title}",
                numbers=functools.partial(official, name),
                exact=True,
                reads=FILE,
            )
            for name, title in OFFICIAL.items()
        },
    },
    measures={
        "kl": Measure("KL to the parent", "lower", "nats a token"),
        "middle": Measure("KL to the parent, of half its blocks", "lower", "nats a token"),
        "sum": Measure("sum of scores", "lower", "nats a token"),
        "memory": Measure("of the parent's blocks' memory", form=".1f", unit="%"),
        "work": Measure("of their operations", form=".1f", unit="%"),
        "rank": Measure("rank correlation of sums and KL", "higher", form=".2f"),
        "learned": Measure("blocks that training alone brings nearer", "higher", form=".1%"),
        "left": Measure("left of their loss", "lower", form=".1%"),
        "same": Measure("KL where all is the parent's", "lower", form=".2g"),
        "between": Measure("what one block's options change in others", "lower", form=".2g"),
        "alone": Measure("blocks at once beside one by one", "lower", form=".2g"),
        "off": Measure("difference to the best of all points", "lower", form=".2g"),
        "below": Measure("greedy sums below the program's", "lower", form=".0f"),
        "published": Measure("sum of KL", "lower", form=".6f"),
        "mib": Measure("memory", "lower", "MiB", ",.1f"),
        "ms": Measure("runtime", "lower", "ms", ",.1f"),
        "second": Measure("sum of the best that differs in 20 layers", "lower", form=".4f"),
    },
    published=as_printed(PRINTED),
    claims=(
        *PRINTED,
        Claim(
            "The integer program finds the best of all points",
            "at_most",
            ("solver",),
            "off",
            1e-9,
            source="section 4",
        ),
        Claim("and no greedy rule a better one", "at_most", ("solver",), "below", 0, source="ours"),
        Claim(
            "All blocks chosen from the parent are the parent",
            "at_most",
            ("identities",),
            "same",
            0.0,
            source="derived",
        ),
        Claim(
            "No loss or gradient of a block depends on another block's options",
            "at_most",
            ("identities",),
            "between",
            0.0,
            source="section 3: blocks are trained in parallel",
        ),
        Claim(
            "All blocks at once are trained as one by one",
            "at_most",
            ("identities",),
            "alone",
            1e-6,
            source="derived",
        ),
        Claim(
            "Training alone brings at least 95 % of blocks nearer to the parent's on other text",
            "at_least",
            ("parent",),
            "learned",
            0.95,
            source="section 3",
        ),
        Claim(
            "Sums of scores order random children as their KL does: rank correlation above 0.5",
            "at_least",
            ("random",),
            "rank",
            0.5,
            source="section 4: scores are taken to add up",
        ),
        _below("The program's children are nearer to the parent than random ones", "random", ""),
        _below("than greedy ones, block by block", "block-by-block", "70.74"),
        _below("than greedy ones, swap by swap", "swap-by-swap", ""),
        _below("than the best of parts that stay or go", "stay-or-go", "75.40"),
        _below("than the largest that fit", "largest", "23.12"),
        Claim(
            "Taught without a loss of next tokens a child is nearer than with it",
            "lower",
            ("taught", "taught-tokens"),
            "middle",
            source="ablation of losses: KL 0.10 without, 0.30 with",
        ),
        Claim(
            "and nearer than before",
            "lower",
            ("taught", "untaught"),
            "middle",
            source="the same: 0.10 against 0.19",
        ),
    ),
    figure=draw,
    notes=(
        "children may use 30, 40, 50, 60 and 70 % of the parent's blocks' memory (parameters and a "
        "sequence's cache) and of their operations; the figures are means over these",
        "a transformer of bytes, six blocks of width 64; 36 pairs of options a block, each part "
        "trained alone for 150 steps",
        "scores are of training text, KL of children of the text for validation",
    ),
    absent=(
        Absent("Nemotron-51B: 98.4 % of accuracy at 2.17 times the tokens", "models of that size"),
        Absent("Measured runtimes of blocks on H100", "operations and bytes stand for them"),
    ),
)
