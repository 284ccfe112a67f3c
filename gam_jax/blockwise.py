"""Blocks that are trained alone, each to do what a block of a trained model does.

A library is a trained model with other layers to choose from in the places of its mixers and its
feed-forwards. All of them are trained at once, each block on what the parent's block is given, so
that none waits for another; then one change at a time is scored, and the best sum of scores under
budgets is a child. Source: Puzzle (arXiv 2411.19146). A library's model has a `Mixed` in each
place, so that any child can be asked for by a choice, and `gam_jax.extract` takes it out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from gam_jax.distil import through
from gam_jax.layers import Block, Layer, Mixed, NoOp
from gam_jax.models.language import LanguageModel
from gam_jax.ops.choices import ARCHITECTURE
from gam_jax.params import Params
from gam_jax.replacements import Option
from sharding.errors import UserError

PARTS = ("mixer", "ffn")
"""The places of a block in which there is something to choose."""
BLOCKS, OPTIONS = "blocks", "options"


class Given(NamedTuple):
    """What blocks of the parent are given and give, [L, B, T, D] each."""

    inputs: Float[Array, "L B T D"]
    outputs: Float[Array, "L B T D"]


@dataclasses.dataclass(frozen=True)
class Library:
    """A trained model and what may stand in the places of its layers.

    Attributes:
      parent: whose blocks are a `Block`, sequential and normed before each step.
      mixers, ffns: options beside the parent's own, which is always the first.

    Raises:
      UserError: blocks of another form.
    """

    parent: LanguageModel
    mixers: tuple[Option, ...]
    ffns: tuple[Option, ...]

    def __post_init__(self) -> None:
        block = self.parent.block
        steps = block.steps if isinstance(block, Block) and block.norms == "pre" else {}
        if tuple(steps.values()) != (("mixer",), ("ffn",)):
            raise UserError(
                "a library needs a parent of equal blocks, each a Block with form='sequential' "
                "and norms='pre', of which neither part is a NoOp"
            )

    @property
    def block(self) -> Block:
        """The parent's."""
        assert isinstance(self.parent.block, Block)
        return self.parent.block

    @property
    def options(self) -> dict[str, tuple[Option, ...]]:
        """By place; the first of each is the parent's own layer."""
        own = {name: Option("parent", getattr(self.block, name)) for name in PARTS}
        return {"mixer": (own["mixer"], *self.mixers), "ffn": (own["ffn"], *self.ffns)}

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The parent with a choice in each place."""
        mixed = {
            name: Mixed(tuple(option.layer for option in own), "one")
            for name, own in self.options.items()
        }
        return dataclasses.replace(self.parent, block=dataclasses.replace(self.block, **mixed))

    def layers(self, part: str) -> tuple[Layer, ...]:
        """The options of a place, with the parent's width."""
        return getattr(self.model.block, part).options

    def begun(self, params: Params, tokens: Int[Array, "B T"], key: Array) -> Params:
        """Parameters of `model`: the parent's, and each option as it starts.

        Args:
          params: the parent's.
          tokens: that options are fitted to.
          key: of what is drawn.
        """
        given = self.given(params, tokens)
        blocks = params[BLOCKS]
        read = {"mixer": given.inputs, "ffn": self._middles(blocks, given.inputs)}
        found = {**blocks}
        for number, part in enumerate(PARTS):
            norm = jax.vmap(lambda p, x: self.block.norm(p, x)[0])
            normed = norm(blocks[f"{part}_norm"], read[part])
            keys = jax.random.split(jax.random.fold_in(key, number), len(self.options[part]))
            own = {"0": blocks[part]}
            for place, option in list(enumerate(self.options[part]))[1:]:
                each = jax.random.split(keys[place], self.parent.depth)
                layer = self.layers(part)[place]
                start = functools.partial(option.begun, layer, getattr(self.block, part))
                own[str(place)] = jax.vmap(start)(blocks[part], normed, each)
            logits = jnp.zeros((self.parent.depth, len(own)))
            found[part] = {ARCHITECTURE: {"logits": logits}, OPTIONS: own}
        return self.choosing({**params, BLOCKS: found}, jnp.zeros((self.parent.depth, 2), int))

    def _middles(self, blocks: Params, inputs: Array) -> Array:
        """What the parent's feed-forwards read before their norm."""
        alone = dataclasses.replace(self.block, ffn=NoOp())
        return jax.vmap(lambda p, x: alone({**p, "ffn": {}}, x)[0])(blocks, inputs)

    def given(self, params: Params, tokens: Int[Array, "B T"]) -> Given:
        """What the parent's blocks are given and give.

        Args:
          params: the parent's.
          tokens: ids.
        """
        states = through(self.parent, params, tokens).states
        return Given(states[:-1], states[1:])

    def parent_params(self, params: Params) -> Params:
        """The parent's parameters, of those of `model`."""
        blocks = {
            name: own[OPTIONS]["0"] if name in PARTS else own
            for name, own in params[BLOCKS].items()
        }
        return {**params, BLOCKS: blocks}

    def choice(self, point: Sequence[int]) -> Int[np.ndarray, "L 2"]:
        """Mixer and feed-forward of each block, of numbers that count both: mixer * F + ffn.

        Args:
          point: a number for each block; F is how many feed-forwards there are to choose from.

        Raises:
          UserError: more or fewer numbers than blocks, or a number beyond the last pair.
        """
        mixers, ffns = (len(self.options[part]) for part in PARTS)
        numbers, depth = np.asarray(point), self.parent.depth
        if numbers.shape != (depth,):
            raise UserError(f"a child has a pair for each of {depth} blocks, not {len(point)}")
        self._check(numbers, mixers * ffns, "pairs of options")
        return np.stack(np.divmod(numbers, ffns), axis=1)

    def _check(self, numbers: np.ndarray, count: int, what: str) -> None:
        wrong = numbers[(numbers < 0) | (numbers >= count)]
        if wrong.size:
            raise UserError(f"{wrong[0]} is none of {count} {what}: give 0 to {count - 1}")

    def choosing(self, params: Params, point: Int[np.ndarray | Array, "L 2"]) -> Params:
        """Parameters of `model` that choose, in each block, a mixer and a feed-forward.

        Args:
          params: of `model`.
          point: the numbers of both, see `choice`.

        Raises:
          UserError: an option that there is not, where the numbers are known, as they are outside
            `jax.jit`; inside, `choice` has to have made them.
        """
        if point.shape != (self.parent.depth, len(PARTS)):
            raise UserError(
                f"a choice is [{self.parent.depth}, {len(PARTS)}], a mixer and a feed-forward for "
                f"each block, not {list(point.shape)}"
            )
        if not isinstance(point, Tracer):
            for place, part in enumerate(PARTS):
                own = np.asarray(point)[:, place]
                self._check(own, len(self.options[part]), f"options of the {part}")
        blocks = {**params[BLOCKS]}
        for place, part in enumerate(PARTS):
            hot = jax.nn.one_hot(point[:, place], len(self.options[part]))
            blocks[part] = {**blocks[part], ARCHITECTURE: {"logits": hot}}
        return {**params, BLOCKS: blocks}

    def trained(self, params: Params) -> dict[str, dict[str, Params]]:
        """What is trained of `model`: in each place all options but the parent's."""
        found = {}
        for part in PARTS:
            own = params[BLOCKS][part][OPTIONS]
            found[part] = {name: branch for name, branch in own.items() if name != "0"}
        return found

    def with_trained(self, params: Params, own: Any) -> Params:
        """The inverse of `trained`."""
        blocks = {**params[BLOCKS]}
        for part in PARTS:
            options = {**blocks[part][OPTIONS], **own[part]}
            blocks[part] = {**blocks[part], OPTIONS: options}
        return {**params, BLOCKS: blocks}

    def losses(self, own: Any, parent: Params, given: Given) -> dict[str, dict[str, Array]]:
        """How far each option's block is from the parent's, [L] for each option.

        mean (o - y)^2 / mean y^2, where y is what the parent's block gives and o what it gives
        with that option in its place and all else the parent's (section 3, decoupled). A block
        reads what the parent's reads: no other option has a part in its loss or its gradient.

        Args:
          own: see `trained`.
          parent: the parent's parameters.
          given: see `given`; nothing is differentiated by it.
        """
        found: dict[str, dict[str, Array]] = {}
        for part in PARTS:
            found[part] = {}
            for place, layer in list(enumerate(self.layers(part)))[1:]:
                loss = functools.partial(self._loss, part, layer)
                name = str(place)
                found[part][name] = jax.vmap(loss)(own[part][name], parent[BLOCKS], *given)
        return found

    def _loss(
        self, part: str, layer: Layer, own: Params, parent: Params, x: Array, y: Array
    ) -> Array:
        block = dataclasses.replace(self.block, **{part: layer})
        found, _ = block({**parent, part: own}, x)
        return jnp.mean(jnp.square(found - y)) / jnp.mean(jnp.square(y))


def make_step(library: Library, optimizer: optax.GradientTransformation) -> Any:
    """A step of all options of all blocks: (trained, state, parent's parameters, tokens) ->
    (trained, state, losses before the step).

    The sum of all losses is differentiated: each has its own parameters, and nothing between.

    Args:
      library: whose options are trained.
      optimizer: number by number, as Adam is; so each block is trained as if alone.
    """

    @jax.jit
    def step(own: Any, state: Any, parent: Params, tokens: Array) -> tuple[Any, Any, Any]:
        given = jax.tree.map(jax.lax.stop_gradient, library.given(parent, tokens))

        def total(own: Any) -> tuple[Array, Any]:
            losses = library.losses(own, parent, given)
            return sum(jnp.sum(loss) for loss in jax.tree.leaves(losses)), losses  # type: ignore[return-value]

        grads, losses = jax.grad(total, has_aux=True)(own)
        changes, state = optimizer.update(grads, state, own)
        return optax.apply_updates(own, changes), state, losses

    return step
