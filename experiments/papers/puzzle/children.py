"""A small parent, its options trained alone, and its children by each rule."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

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
from experiments.study import Setting
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.blockwise import Library
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.replacements import LINEAR_FFN, LINEAR_MIXER, NO_OP, Option, grouped, narrower
from gam_jax.search import Point, drawn_within
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from sharding.layout import Layout
from sharding.mesh import make_mesh

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
