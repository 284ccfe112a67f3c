"""Children of a trained model: options trained alone, every swap scored, the best sum, a teacher.

Source: Puzzle (arXiv 2411.19146). `gam_jax.blockwise` has the library that children are taken from.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gam_jax import distil
from gam_jax.blockwise import PARTS, Library, make_step
from gam_jax.extract import extraction
from gam_jax.layers import Layer
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params, abstract_params, count_params
from gam_jax.replacements import NO_OP
from gam_jax.search import Budget, Point, best_sum, by_ratio, layer_by_layer
from sharding.errors import UserError
from sharding.products import product_flops

FLOAT = 4
"""Bytes of a parameter."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """What children are chosen by. A point has a pair of options for each block.

    Attributes:
      library: of the options.
      costs: KL of the parent with that block alone changed, of each block and pair.
      budgets: of memory, then of operations.
    """

    library: Library
    costs: Sequence[Sequence[float]]
    budgets: tuple[Budget, Budget]

    def total(self, point: Point) -> float:
        """The sum of its swaps' scores."""
        return sum(own[n] for own, n in zip(self.costs, point, strict=True))

    def shares(self, point: Point) -> tuple[float, ...]:
        """Of each budget, the part that it uses of what the parent's blocks do."""
        return tuple(
            sum(own[n] for own, n in zip(budget.uses, point, strict=True))
            / sum(own[0] for own in budget.uses)
            for budget in self.budgets
        )


def exact(own: Scored) -> Point:
    """The best sum of scores."""
    return best_sum(own.costs, own.budgets)[0]


def block_by_block(own: Scored) -> Point:
    """Greedy: see `gam_jax.search.layer_by_layer`."""
    return layer_by_layer(own.costs, own.budgets)


def swap_by_swap(own: Scored) -> Point:
    """Greedy: see `gam_jax.search.by_ratio`."""
    return by_ratio(own.costs, own.budgets)


def largest(own: Scored) -> Point:
    """The most memory that fits, whatever the scores."""
    memory = [[-use for use in uses] for uses in own.budgets[0].uses]
    return best_sum(memory, own.budgets)[0]


def stay_or_go(own: Scored) -> Point:
    """The best sum of scores where each part of a block is the parent's or none."""
    there = [
        [place for place, option in enumerate(options) if place == 0 or option is NO_OP]
        for options in own.library.options.values()
    ]
    ffns = len(own.library.options[PARTS[1]])
    allowed = {mixer * ffns + ffn for mixer, ffn in itertools.product(*there)}
    costs = [[c if n in allowed else np.inf for n, c in enumerate(block)] for block in own.costs]
    return best_sum(costs, own.budgets)[0]


RULES: Mapping[str, Callable[[Scored], Point]] = {
    "exact": exact,
    "swap-by-swap": swap_by_swap,
    "block-by-block": block_by_block,
    "stay-or-go": stay_or_go,
    "largest": largest,
}


def budgets_of(library: Library, share: float) -> tuple[Budget, Budget]:
    """What a child may use at most: that share of the parent's blocks' memory and operations.

    Memory is bytes of parameters and of one sequence's state or cache; operations are those in
    products of one sequence, as long as the parent's caches.

    Args:
      library: whose options there are.
      share: of both.

    Raises:
      UserError: the parent has no greatest length.
    """
    if not library.parent.limit:
        raise UserError("children: the parent has no longest sequence: give it a context")
    memory, work = {}, {}
    for part in PARTS:
        found = [_uses(layer, library.parent) for layer in library.layers(part)]
        memory[part], work[part] = zip(*found, strict=True)

    def of(uses: Mapping[str, Sequence[float]]) -> Budget:
        pair = [a + b for a, b in itertools.product(uses["mixer"], uses["ffn"])]
        depth = library.parent.depth
        return Budget([pair] * depth, share * depth * pair[0])

    return of(memory), of(work)


def _uses(layer: Layer, parent: LanguageModel) -> tuple[float, float]:
    carry = jax.tree.leaves(jax.eval_shape(lambda: layer.carry(1)))
    held = FLOAT * count_params(layer.table()) + sum(x.size * x.dtype.itemsize for x in carry)
    x = jax.ShapeDtypeStruct((1, parent.limit, parent.width), jnp.float32)
    program = jax.make_jaxpr(lambda p, x: layer(p, x)[0])(abstract_params(layer.table()), x)
    return float(held), float(product_flops(program.jaxpr).total())


def distilled(
    library: Library,
    parent: Params,
    batches: Iterable[np.ndarray],
    held: np.ndarray,
    rate: float,
    steps: int,
    seed: int,
) -> tuple[Params, np.ndarray]:
    """Options begun from the parent and trained alone, all blocks at once.

    Args:
      library: of the options.
      parent: the parent's parameters.
      batches: of tokens [B, T]; the first is what options start from.
      held: other tokens, which tell what was learned.
      rate: Adam's, at first; it falls by a cosine.
      steps: of training.
      seed: of options that are drawn.

    Returns:
      Parameters of the library's model; and of each block and option that is trained, its loss on
      the other tokens over that before training, none where no option has parameters.
    """
    stream = iter(batches)
    begun = jax.jit(library.begun)(parent, next(stream), jax.random.key(seed))
    step, losses, optimizer = _learning(library, rate, steps)
    own = library.trained(begun)
    if not jax.tree.leaves(own):
        return begun, np.zeros(0)
    state, before = optimizer.init(own), losses(own, parent, held)
    for _ in range(steps):
        own, state, _ = step(own, state, parent, next(stream))
    after = losses(own, parent, held)
    left = [
        np.asarray(now) / np.asarray(before[part][name])
        for part, options in after.items()
        for name, now in options.items()
        if jax.tree.leaves(own[part][name])  # there is something to train
    ]
    return library.with_trained(begun, own), np.concatenate(left)


@functools.cache
def _learning(library: Library, rate: float, steps: int) -> tuple[Any, Any, Any]:
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def losses(own: Any, parent: Any, tokens: Any) -> Any:
        return library.losses(own, parent, library.given(parent, tokens))

    return make_step(library, optimizer), losses, optimizer


@functools.cache
def scorer(library: Library) -> Callable[[Params, Iterable[np.ndarray], Point], float]:
    """(parameters, batches of tokens, point) -> KL(parent || child), the mean over tokens.

    One program for all children: the choice is an input.
    """

    @jax.jit
    def kl(params: Any, tokens: Any, choice: Any) -> Any:
        child, _ = library.model(library.choosing(params, choice), tokens)
        parent, _ = library.parent(library.parent_params(params), tokens)
        return jnp.mean(distil.divergence(parent, child))

    def mean(params: Params, batches: Iterable[np.ndarray], point: Point) -> float:
        choice = library.choice(point)
        return float(np.mean([kl(params, tokens, choice) for tokens in batches]))

    return mean


def swaps(library: Library, params: Params, batches: Sequence[np.ndarray]) -> list[list[float]]:
    """KL of the parent with one block changed, of each block and pair of options."""
    score, depth = scorer(library), library.parent.depth
    count = int(np.prod([len(options) for options in library.options.values()]))

    def one(block: int, pair: int) -> float:
        point = tuple(pair if place == block else 0 for place in range(depth))
        return score(params, batches, point)

    return [[0.0, *(one(block, pair) for pair in range(1, count))] for block in range(depth)]


def taught(
    library: Library,
    params: Params,
    point: Point,
    lessons: Sequence[Mapping[str, np.ndarray]],
    held: Sequence[np.ndarray],
    rate: float,
    weights: Sequence[float],
) -> float:
    """KL to the parent of a child after it was taught by it.

    Args:
      library: of the options.
      params: of the library's model.
      point: the child.
      lessons: batches of a language model, one a step.
      held: batches of other tokens, on which KL is told.
      rate: Adam's, at first; it falls by a cosine.
      weights: of the sum over states of 1 - cosine, of KL, and of the loss of next tokens.
    """
    found = extraction(library.model, library.choosing(params, library.choice(point)))
    own, teacher = found.pick(params), library.parent_params(params)
    step, told, optimizer = _teaching(library.parent, found.model, rate, len(lessons))
    state, each = optimizer.init(own), np.asarray(weights, np.float32)
    for lesson in lessons:
        own, state = step(own, state, teacher, dict(lesson), each)
    return float(np.mean([told(own, teacher, tokens) for tokens in held]))


@functools.lru_cache(maxsize=1)
def _teaching(
    parent: LanguageModel, child: LanguageModel, rate: float, steps: int
) -> tuple[Any, Any, Any]:
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def losses(params: Any, teacher: Any, tokens: Any) -> tuple[Any, Any, Any]:
        wanted = jax.lax.stop_gradient(distil.through(parent, teacher, tokens))
        found = distil.through(child, params, tokens)
        kl = jnp.mean(distil.divergence(wanted.logits, found.logits))
        return jnp.sum(distil.cosine_distance(wanted.states, found.states)), kl, found.logits

    @jax.jit
    def step(params: Any, state: Any, teacher: Any, batch: Any, weights: Any) -> tuple[Any, Any]:
        def total(params: Any) -> Any:
            cosine, kl, logits = losses(params, teacher, batch["inputs"])
            logs = jax.nn.log_softmax(logits)
            language = -jnp.mean(jnp.take_along_axis(logs, batch["targets"][..., None], axis=-1))
            return jnp.dot(weights, jnp.stack([cosine, kl, language]))

        changes, state = optimizer.update(jax.grad(total)(params), state, params)
        return optax.apply_updates(params, changes), state

    return step, jax.jit(lambda *given: losses(*given)[1]), optimizer
