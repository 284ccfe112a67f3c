"""What a layer is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import jax
from jaxtyping import Array, Bool, Float

from gam_jax.nested import held, with_held
from gam_jax.params import Param, Params, Table, in_caches, path_name, zero_shards, zeros
from gam_jax.units import WIDTH, UnitTable
from sharding.axes import Axes
from sharding.bounds import check_bounds

Carry = Any
"""A layer's recurrent state or KV cache: a tree of arrays that it hands to the next token, the
next chunk of the sequence or the next device; () if it needs nothing of earlier tokens."""

LayerType = TypeVar("LayerType")

WHOLE = Axes()
"""No mesh: every array is whole."""


def row_counter(batch: int) -> Param:
    """A number for each row of a carry, int32 [B]: how many tokens it has seen."""
    return Param((batch,), ("batch",), zeros, dtype="int32")


def layers_in(layer: Layer) -> Iterator[Layer]:
    """The layers that a layer holds in its fields."""
    return (inner for inner in held(layer) if isinstance(inner, Layer))


def as_usual(config: Any) -> Any:
    """A layer, or a model, that computes the same as every layer does where nobody says how."""
    names = getattr(config, "computed", ())
    usual = {
        field.name: field.default for field in dataclasses.fields(config) if field.name in names
    }
    return with_held(config, as_usual, **usual)


class Statistics:
    """What a layer counts of its tokens, such as each expert's load: a part of its carry.

    All arrays are sums over tokens, so that the laws of the carry hold for them too. A model that
    trains looks for these in the carry, however deep the layer is nested. Arrays are [..., B, ...],
    where the leading axes are those of stacked layers.
    """

    def report(self, axes: Axes) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The penalty that is added to the loss, and measures by name, over all devices.

        Measures keep the axes of stacked layers. They are such that their mean over several
        batches makes sense.
        """
        raise NotImplementedError


def statistics(carry: Carry) -> dict[str, Statistics]:
    """The `Statistics` in a carry, by their paths in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        carry, is_leaf=lambda node: isinstance(node, Statistics)
    )
    return {path_name(path): leaf for path, leaf in leaves if isinstance(leaf, Statistics)}


class Layer:
    """A frozen dataclass of configuration; its parameters live elsewhere.

    A layer declares its parameters in `table()`, its recurrent state or KV cache in
    `carry_table(batch)`, and is a pure function of (params, x, carry). The law of the carry: a
    sequence that is cut into chunks, each given the carry after the one before, has the outputs
    and the last carry of the sequence taken at once. The law of rows: rows with different pasts,
    side by side in one batch, have what each has alone. The law of the mesh: so has a sequence
    whose rows, tokens and channels are split over devices.
    """

    def __post_init__(self) -> None:
        check_bounds(self)

    gathers: ClassVar[bool] = False
    """Whether the layers that it holds gather their own sharded parameters."""
    computed: ClassVar[tuple[str, ...]] = ()
    """Fields that say how it is computed and not what: rounding alone may differ."""

    @property
    def loops(self) -> bool:
        """Whether all that it holds runs in loops, each of which gathers a block at a time."""
        return False

    @property
    def causal(self) -> bool:
        """Whether the output at a token depends on this and earlier tokens alone.

        A causal layer can be given a sequence in pieces, by its carry. By default a layer is causal
        if every layer that it holds is. A layer that sees later tokens returns False: it must be
        given whole sequences, and has no carry. A language model refuses such a layer, and tests
        hold it to no law of the carry.
        """
        return all(layer.causal for layer in layers_in(self))

    @property
    def documents(self) -> bool:
        """Whether a call may be told where documents begin, by `starts`.

        The law of documents: for any packing of documents into rows and any split into chunks, the
        outputs at a document's tokens, and their gradients, are those of the document alone. By
        default a layer obeys it if its call takes `starts` and every layer that it holds obeys it.
        A layer that mixes tokens and cannot keep documents apart returns False, and is not told.
        """
        if "starts" not in inspect.signature(type(self).__call__).parameters:
            return False
        return all(layer.documents for layer in layers_in(self))

    def table(self) -> Table:
        """The parameters, see `gam_jax.params`."""
        raise NotImplementedError

    def carry_table(self, batch: int) -> Any:
        """The carry as a table of `Param`: shapes before any split, and logical axes.

        () where nothing is carried. `batch` is the number of rows. Every array has the axis
        `batch`: a row of a carry is one sequence's own, whatever the other rows have seen. An
        array with a place for each token of the sequence names that axis `token`.
        """
        return ()

    def carry(self, batch: int, axes: Axes = WHOLE) -> Carry:
        """The carry at the start of a sequence: zeros, in the shapes of this device's part.

        Args:
          batch: rows on this device.
          axes: mesh axes, inside `jax.shard_map`.
        """
        return zero_shards(self.carry_table(batch), axes)

    def begun(self, carry: Carry | None, x: Array, axes: Axes = WHOLE) -> Carry:
        """The carry before the inputs x, with zeros in the place of each None.

        At the start of a sequence a carry may be None as a whole, or hold None for each cache.
        Caches are made in the dtype of x.
        """
        start = in_caches(x.dtype, self.carry_table(x.shape[0]), self.carry(x.shape[0], axes))
        if carry is None:
            return start
        return jax.tree.map(lambda zero, x: zero if x is None else x, start, carry)

    @property
    def limit(self) -> int:
        """The most tokens that a sequence may have; 0 for any number.

        By default the smallest limit among the layers inside.
        """
        limits = (layer.limit for layer in layers_in(self))
        return min((limit for limit in limits if limit), default=0)

    def for_length(self: LayerType, tokens: int) -> LayerType:
        """The layer for sequences of at most so many tokens: its caches hold no more.

        Its parameters are the same. By default the layers and `Positions` inside are made so.
        """

        def fitted(inner: Any) -> Any:
            return inner.for_length(tokens) if hasattr(inner, "for_length") else inner

        return with_held(self, fitted)

    def gives(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What layers inside inherit, of what this one does (`inherit`): by default all as it is.

        Args:
          values: by field.
        """
        return values

    def unit_table(self) -> UnitTable:
        """The units of its parameters, see `gam_jax.units`; none for a layer that tells of none."""
        return {}

    def with_units(self: LayerType, name: str, size: int) -> LayerType:
        """The layer with so many units of a kind, and all else as it is.

        By default that of another width, if all layers inside can have it.

        Args:
          name: of `unit_table`, of this layer's own units.
          size: how many.
        """
        if name != WIDTH:
            raise KeyError(f"a {type(self).__name__} has no units '{name}'")

        def wider(inner: Any) -> Any:
            return inner.with_units(WIDTH, size) if isinstance(inner, Layer) else inner

        return with_held(self, wider, **({WIDTH: size} if hasattr(self, WIDTH) else {}))

    def silent(self) -> tuple[str, ...]:
        """Parameters which, where all of them are 0, make the layer add nothing.

        Of a layer in a block its output is then 0; a block hands on what it is given. () for a
        layer that does not say.
        """
        return ()

    def apart(self, carry: Carry, part: Callable[[Any, int], Any]) -> Carry:
        """A carry in which each of stacked blocks has its own, as decoding uses it.

        Args:
          carry: a carry, or what has its names: its table, or parameters.
          part: (a leaf with the axis of stacked blocks, number of a block) -> the block's own.
        """
        return carry

    def experts_apart(self, params: Params, take: Callable[[Any, int], Any]) -> Params:
        """Parameters in which the matrices of each of a few experts lie by themselves.

        So a program copies none of them where it takes one, see `ops.grouped`. They have no
        derivative.

        Args:
          params: parameters, or what has their names, such as specs.
          take: (a leaf, its first axis that of experts; number of an expert) -> the expert's own.
        """
        return params

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """The outputs y, and the carry after the last token.

        Args:
          params: arrays in the shape of `table()`; this device's part of each.
          x: the inputs. Where `axes.residual` is set, x and y hold this device's tokens alone.
          carry: what the chunk before has left; None starts a sequence. A layer hands None on to
            the layers inside, so that attention makes and reads no empty cache. A start that is
            learned (`ParScale`) is a carry that holds None for each cache; beside `starts` it comes
            in pairs, which a layer with a state takes apart (`parted`).
          axes: the mesh axes that this program runs over, see `sharding.axes.Axes`.
          key: for dropout; None for none.
          starts: true at the first token of each document, over all T tokens of this device's
            shard of the sequence; None where all tokens belong to one. See `documents`.
        """
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Paired:
    """An array of a carry, and what it is at the start of each document that begins in the call.

    Both in the shape of the carry's table. A layer finds such pairs in its carry where starts are
    learned (`ParScale`) and it is told where documents begin; elsewhere documents begin with zeros.
    """

    now: Any
    start: Any


def parted(carry: Carry) -> tuple[Carry, Any]:
    """A carry without its pairs, and likewise what documents begin with: None where zeros."""

    def is_pair(leaf: object) -> bool:
        return isinstance(leaf, Paired)

    now = jax.tree.map(lambda x: x.now if is_pair(x) else x, carry, is_leaf=is_pair)
    return now, jax.tree.map(lambda x: x.start if is_pair(x) else None, carry, is_leaf=is_pair)


def paired(carry: Carry, start: Any) -> Carry:
    """The inverse of `parted`."""
    return jax.tree.map(
        lambda x, begin: x if begin is None else Paired(x, begin),
        carry,
        start,
        is_leaf=lambda leaf: leaf is None,
    )


def told(starts: Bool[Array, "B T"] | None) -> dict[str, Array]:
    """What a layer hands on to the layers inside: nothing where there are no documents."""
    return {} if starts is None else {"starts": starts}


def refuses_documents(layer: Layer) -> str:
    """The name of the innermost layer whose `documents` is False; empty where none is."""
    for one in layers_in(layer):
        if not one.documents:
            return refuses_documents(one)
    return "" if layer.documents else type(layer).__name__


INHERITED = ("width", "dropout")
"""Fields that an inner layer takes from the layer around it where it leaves them None."""


def inherit(layer: LayerType, **values: Any) -> LayerType:
    """`layer` with each of `values` filled into fields of that name that are None.

    Layers inside are filled in too, so that a model's width is written once.
    """
    names = (field.name for field in dataclasses.fields(layer))  # type: ignore[arg-type]
    missing = {n: values[n] for n in names if n in values and getattr(layer, n) is None}
    inside = layer.gives(values) if isinstance(layer, Layer) else values
    return with_held(layer, lambda inner: inherit(inner, **inside), **missing)


def known(value: int | None, field: str, layer: object) -> int:
    """`value`, or a ValueError that says which field was never given.

    Raises:
      ValueError: the field is None.
    """
    if value is None:
        raise ValueError(
            f"{type(layer).__name__}.{field} is not set: give it, or hold the layer "
            f"in one that has it"
        )
    return value
