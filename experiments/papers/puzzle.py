"""A child of a trained model's blocks, chosen by an integer program (Puzzle).

Source: arXiv 2411.19146. Its models of 51 billion parameters are not here: the parent is a model
of bytes of six layers. The library that was published with its demo is read where a person has it:
`--arms=official-80,official-40,official-85 --data=block_library.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.pictures import drawn, shade
from experiments.search import children_laws
from experiments.search.children import (
    RULES,
    Scored,
    budgets_of,
    distilled,
    scorer,
    swaps,
    taught,
)
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed
from experiments.study.declare import CPU, SHORT, Numbers
from experiments.study.found import Found
from gam_jax.blockwise import Library
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.replacements import LINEAR_FFN, LINEAR_MIXER, NO_OP, Option, grouped, narrower
from gam_jax.search import Budget, Point, best_sum, drawn_within
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from sharding.errors import UserError
from sharding.json_file import BadJson, read_json
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.paths import local_path

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Of the memory and of the operations of the parent's blocks: what a child may use."""
MIDDLE = 0.5
"""The share of the child that is taught."""
RATE = 2e-3
"""Adam's, of blocks alone and of children."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large and how long.

    Attributes:
      width, depth: of the parent.
      rows, tokens: of a batch.
      parent, blocks, child: steps of the parent, of its options, of a child.
      scored: batches by which a swap is scored. Children are held against the parent on as many
        others, of the text for validation.
      drawn: random children for each share.
    """

    width: int = 64
    depth: int = 6
    rows: int = 16
    tokens: int = 64
    parent: int = 600
    blocks: int = 150
    child: int = 150
    scored: int = 2
    drawn: int = 8


SIZES = {SHORT: Size(16, 3, 4, 16, parent=4, blocks=2, child=2, scored=1, drawn=2), CPU: Size()}


def parent_of(size: Size) -> LanguageModel:
    """A transformer of bytes."""
    block = Block(Attention(heads=4, context=2 * size.tokens), MLP(hidden=4 * size.width))
    return LanguageModel(block, size.width, size.depth, vocab=256)


@functools.cache
def library_of(parent: LanguageModel) -> Library:
    """Six mixers and six feed-forwards, the parent's among them."""
    block: Any = parent.block
    mixers = (
        *(grouped(block.mixer, groups) for groups in (2, 1)),
        Option("GAM", GAM(slots=parent.width // 4, kernel=4)),
        LINEAR_MIXER,
        NO_OP,
    )
    hidden = block.ffn.size
    narrow = (narrower(block.ffn, hidden * part // 100) for part in (50, 25, 10))
    return Library(parent, mixers, (*narrow, LINEAR_FFN, NO_OP))


class World(NamedTuple):
    """A parent and its library.

    Attributes:
      size: of it all.
      library: of options.
      params: of the library's model; options are trained.
      costs: KL of each swap, by block and pair of options.
      left: of each block's and option's loss on other text, the part that training has left.
      held: batches of tokens of the text for validation.
      lessons: batches for children.
    """

    size: Size
    library: Library
    params: Any
    costs: list[list[float]]
    left: np.ndarray
    held: list[np.ndarray]
    lessons: list[Any]

    def scored(self, share: float) -> Scored:
        """What a child of that share is chosen by."""
        return Scored(self.library, self.costs, budgets_of(self.library, share))

    def told(self, scored: Scored, point: Point) -> dict[str, float]:
        """Of a child as it is put together."""
        memory, work = scored.shares(point)
        kl = scorer(self.library)(self.params, self.held, point)
        found = {"kl": kl, "sum": scored.total(point)}
        return {**found, "memory": 100 * memory, "work": 100 * work}


@functools.lru_cache(maxsize=1)
def world(setting: Setting, seed: int) -> World:
    """Trains the parent, then its options alone, and scores every swap."""
    size = SIZES[setting.scale]
    if setting.steps:
        steps = dict.fromkeys(("parent", "blocks", "child"), setting.steps)
        size = dataclasses.replace(size, **steps)
    text = Text(name=setting.data or "python_stdlib", tokenizer="bytes", window=size.tokens)
    if setting.data_dir:
        text = dataclasses.replace(text, dir=setting.data_dir)
    data = text.open()
    stream = data.train_stream(size.rows, seed)
    validation = itertools.islice(data.validation_stream("", size.rows), size.scored)
    held = [batch["inputs"] for batch in validation]
    model = parent_of(size)
    parent = _trained(model, stream, size, seed)
    library = library_of(model)
    tokens = (batch["inputs"] for batch in stream)
    params, left = distilled(library, parent, tokens, held[0], RATE, size.blocks, seed)
    costs = swaps(library, params, [next(tokens) for _ in range(size.scored)])
    lessons = [next(stream) for _ in range(size.child)]
    stream.close()
    return World(size, library, params, costs, left, held, lessons)


def _trained(model: LanguageModel, stream: Any, size: Size, seed: int) -> Any:
    step, optimizer, layout = _training(model, size.parent)
    state = init_state(model, optimizer, layout, seed)
    for _ in range(size.parent):
        state, _ = step(state, next(stream))
    return jax.tree.map(np.asarray, state.params)


@functools.cache
def _training(model: LanguageModel, steps: int) -> tuple[Any, Any, Layout]:
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    optimizer = make_optimizer(OptimizerConfig(3e-3, warmup=0.05), steps, model.table())
    return make_train_step(model, optimizer, layout), optimizer, layout


def options(setting: Setting, seed: int) -> Numbers:
    """How many blocks training alone brings nearer on other text, and what is left of losses."""
    left = world(setting, seed).left
    return {"learned": float(np.mean(left < 1)), "left": float(np.mean(left))}


def child(rule: str, setting: Setting, seed: int) -> Numbers:
    """Children by a rule, the mean over shares."""
    own = world(setting, seed)
    scored = [own.scored(share) for share in SHARES]
    return _mean([own.told(one, RULES[rule](one)) for one in scored])


def random(setting: Setting, seed: int) -> Numbers:
    """Random children that use 90 % or more of a budget; and how their KL follows sums."""
    own = world(setting, seed)
    sizes = [len(block) for block in own.costs]
    found = []
    for share in SHARES:
        one = own.scored(share)
        points = drawn_within(sizes, one.budgets, seed, own.size.drawn)
        found += [own.told(one, point) for point in points]
    kl, total = (np.argsort(np.argsort([each[name] for each in found])) for name in ("kl", "sum"))
    return {**_mean(found), "rank": float(np.corrcoef(kl, total)[0, 1])}


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def teaching(weights: tuple[float, ...], setting: Setting, seed: int) -> Numbers:
    """The program's child of the middle share; taught by the parent, where there are weights."""
    own = world(setting, seed)
    scored = own.scored(MIDDLE)
    point = RULES["exact"](scored)
    if not weights:
        return {"middle": own.told(scored, point)["kl"]}
    given = own.library, own.params, point, own.lessons, own.held
    return {"middle": taught(*given, RATE, weights)}


LIMITS = {"official-80": (80_000.0, 51_200.0), "official-40": (40_000.0, np.inf)}
"""MiB and milliseconds."""


def official(name: str, setting: Setting, seed: int) -> Numbers:
    """The best sum of KL of the published library, under the limits of its demo."""
    path = local_path(setting.data)
    try:
        blocks = [list(block.values()) for block in read_json(path).values()]
        costs, memory, runtime = (
            [[float(one[group][key]) for one in block] for block in blocks]
            for group, key in (
                ("metrics", "kl_div"),
                ("stats", "memory_mib"),
                ("stats", "runtime_ms"),
            )
        )
    except (BadJson, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"--data={setting.data}: no library of blocks as published ({error})"
        ) from error
    whole = [0.85 * sum(block[0] for block in uses) for uses in (memory, runtime)]
    limits = LIMITS.get(name, (whole[0], whole[1]))
    budgets = [
        Budget(uses, limit)
        for uses, limit in zip((memory, runtime), limits, strict=True)
        if np.isfinite(limit)
    ]
    point, total = best_sum(costs, budgets)
    used = [sum(own[n] for own, n in zip(uses, point, strict=True)) for uses in (memory, runtime)]
    found = {"published": total, "mib": used[0], "ms": used[1]}
    if name in LIMITS:
        return found
    return {**found, "second": best_sum(costs, budgets, [point], apart=20)[1]}


def identities(setting: Setting, seed: int) -> Numbers:
    """Of the smallest parent and some of its options, see `children_laws.identities`."""
    size = SIZES[SHORT]
    every = library_of(parent_of(size))
    library = Library(every.parent, every.mixers[:4:2], every.ffns[2:4])
    tokens = np.random.default_rng(0).integers(0, 256, (2, size.tokens)).astype(np.int32)
    return children_laws.identities(library, tokens)


def solver(setting: Setting, seed: int) -> Numbers:
    """See `children_laws.solved`."""
    return children_laws.solved(20)


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
OFFICIAL = {
    "official-80": "80,000 MiB and 51,200 ms",
    "official-40": "40,000 MiB",
    "official-85": "85 % of the parent's of both",
}
FILE = "block_library.json of github.com/NVlabs/puzzle"


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


def _printed(text: str, arms: tuple[str, ...], measure: str, *figures: str) -> Claim:
    source = "output of the released demo"
    return Claim(text, "printed", arms, measure, source=source, figures=figures)


PRINTED = (
    _printed(
        "Sums of KL of the published library's best children",
        tuple(OFFICIAL),
        "published",
        "6.861455",
        "18.935023",
        "3.2821",
    ),
    _printed("and their memory", tuple(OFFICIAL), "mib", "79994.6", "39998.9", "96418.0"),
    _printed("and runtime", tuple(OFFICIAL), "ms", "46980.2", "25166.2", "55547.9"),
    _printed("and the best that differs in 20 layers", ("official-85",), "second", "3.3417"),
)


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
