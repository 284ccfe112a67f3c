"""What a model is: that which a run trains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax import params as tables
from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, statistics
from gam_jax.layers.branches import check_branches
from gam_jax.params import FLOAT32, Params, Table
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import check_bounds
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.pipeline import stages

PARAM_DTYPES = (FLOAT32, "bfloat16")
BATCH, TOKEN = "batch", "token"
"""Logical axes of a batch's arrays: rows, and tokens of a sequence."""

Batch = Mapping[str, Any]
"""Arrays by name; inside a program, this device's part of each."""

Measures = dict[str, tuple[Any, Any]]
"""Name -> (sum, count): what is told of a batch is sum / count, over all devices and parts."""


class Span(NamedTuple):
    """Some layers of a model.

    Attributes:
      before: layers that stand before the first of them.
      depth: slots for layers.
      count: how many of these hold one; None for all.
    """

    before: Array | int
    depth: int
    count: Array | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model as what its layers stand between, for stages of a pipeline.

    The objective is `last` of `layers` of `first`. A stream is an array or a tree of them.

    Attributes:
      blocks: name of the parameters of the layers, each [layers, ...].
      depth: how many layers there are.
      own: (parameters, axes) -> those that the others are given; linear, and done once a step.
      first: (parameters, batch, axes, key) -> the stream that enters the first layer.
      layers: (parameters of some layers, stream, batch, axes, key, span) -> stream, their carry.
      deepened: the same model with another number of layers.
      last: (parameters, stream, carry of all layers, batch, axes) -> what `Model.objective` gives.
      scored: (parameters, stream, batch, axes) -> what `Model.scored` gives; None where that is
        what `last` tells.
    """

    blocks: str
    depth: int
    own: Callable[[Params, Axes], Params]
    first: Callable[[Params, Batch, Axes, Array | None], Any]
    layers: Callable[[Params, Any, Batch, Axes, Array | None, Span], tuple[Any, Any]]
    last: Callable[
        [Params, Any, Any, Batch, Axes],
        tuple[Float[Array, ""], Float[Array, ""] | float, Measures],
    ]
    deepened: Callable[[int], Model]
    scored: Callable[[Params, Any, Batch, Axes], Measures] | None = None

    def objective(
        self, params: Params, batch: Batch, axes: Axes, key: Array | None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """All three, one after another."""
        params = self.own(params, axes)
        x = self.first(params, batch, axes, key)
        x, carry = self.layers(params[self.blocks], x, batch, axes, key, Span(0, self.depth))
        return self.last(params, x, carry, batch, axes)


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen dataclass of configuration, one level above a layer; its parameters live elsewhere.

    A model declares its parameters in `table()` and the arrays of a batch in `batch_axes()`, and
    says what training lowers in `objective`. Mesh, checkpoints, resume, metrics and reports then
    work for it as for any other. `register` (gam_jax.registry) lets configurations name it.

    Attributes:
      param_dtype: in which parameters are stored, on devices and in checkpoints, one of
        `PARAM_DTYPES`. Below float32 the optimizer keeps a float32 copy of what it trains
        (`gam_jax.master`). What a table marks as precise stays float32, and the model itself is
        given float32 values in training. A model and those in its fields have one: bfloat16 where
        any of them says so.
    """

    param_dtype: str = dataclasses.field(default=FLOAT32, kw_only=True)

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_param_dtype()
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        inside = {name: value for name, value in values.items() if isinstance(value, Model)}
        for dtype in {each.param_dtype for each in (self, *inside.values())} - {FLOAT32}:
            object.__setattr__(self, "param_dtype", dtype)
            for name, model in inside.items():
                own = dataclasses.replace(model, param_dtype=dtype)
                object.__setattr__(self, name, own)

    def check_param_dtype(self) -> None:
        """Raises a ValueError if parameters cannot be stored in `param_dtype`."""
        if self.param_dtype not in PARAM_DTYPES:
            raise ValueError(
                f"{type(self).__name__}.param_dtype '{self.param_dtype}' is not one of "
                f"{', '.join(PARAM_DTYPES)}"
            )

    def table(self) -> Table:
        """The parameters, see `gam_jax.params`."""
        raise NotImplementedError

    def stored_table(self) -> Table:
        """The table with the dtypes in which parameters are stored."""
        self.check_param_dtype()  # a class with a `__post_init__` of its own may forget it
        return tables.stored_as(self.table(), self.param_dtype)

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """For each array of a batch, its logical axes: "batch" for rows, "token", or None."""
        raise NotImplementedError

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """What training lowers: total / count of the whole batch, plus the penalty.

        Args:
          params: whole arrays, but for parameters whose first axis is `layer`: those may be in
            shards, which `Stack` gathers block by block.
          batch: this device's part of each array.
          axes: mesh axes, inside `jax.shard_map`.
          key: for dropout; None when not training.

        Returns:
          total: the sum over rows or tokens of weight times loss. Of this device's part, or of
            all devices: what differs between devices of the batch is summed afterwards.
          penalty: what layers add, such as a router's balance; already over all devices.
          measures: what is worth knowing besides the loss, each as a sum and its count.
        """
        raise NotImplementedError

    def parts(self) -> Parts | None:
        """The objective in three, for stages of a pipeline; None, the default, where it is not."""
        return None

    def count(self, batch: Batch, axes: Axes = WHOLE) -> Float[Array, ""]:
        """The sum of the weights of all devices, known from the batch alone."""
        weights = batch["weights"]
        spread = axes.batch if TOKEN in self.batch_axes()["weights"] else axes.rows
        return collectives.psum(jnp.sum(weights.astype(jnp.float32)), spread)

    def scored(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Measures:
        """What a validation sums: "loss" and the objective's other measures."""
        total, _, measures = self.objective(params, batch, axes)
        return {"loss": (total, self.count(batch, axes)), **measures}

    def ids(self) -> dict[str, int]:
        """The arrays of a batch that hold ids, and how many ids there are, from 0.

        Batches are checked for others before they go to the device. By default there are none.
        """
        return {}

    def losses(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Float[Array, ...] | None:
        """The loss of each row or token without its weight, in the shape of "weights".

        It tells where a loss that is not a number comes from; None, the default, tells nothing.
        """
        return None

    def fitted(self, data: Dataset) -> Model:
        """The model with the sizes that the data decides, such as a vocabulary.

        Raises:
          UserError: the data does not suit the model.
        """
        return self

    def check_mesh(self, layout: Layout) -> None:
        """Refuses a mesh on which some axis would have no work.

        Raises:
          UserError: devices along `stream` without a branch for each, or along `seq` where no array
            of a batch has tokens; devices along `pipe`, see `check_stages`, or along `worker`.
        """
        check_stages(self, layout)
        check_no_workers(layout)
        sizes = layout.mesh.shape
        name = type(self).__name__
        if self.branches > 1:
            check_branches(layout, name, self.branches)
        elif sizes.get("stream", 1) > 1:
            raise UserError(
                f"mesh axis stream={sizes['stream']}: {name} has no parallel streams, make it 1"
            )
        if sizes.get("seq", 1) > 1 and not self.over_seq:
            raise UserError(
                f"mesh axis seq={sizes['seq']}: no array of {name}'s batches has an axis 'token', "
                f"make it 1"
            )

    @property
    def branches(self) -> int:
        """Unlike branches that devices along `stream` may take, one each: see `layers.branches`."""
        return 1

    @property
    def over_seq(self) -> bool:
        """Whether devices along `seq` have work: by default where an array of a batch has tokens.

        A model without such arrays that splits its work over `seq` all the same gives a share of
        its sums on each device, see `objective`.
        """
        return any(TOKEN in axes for axes in self.batch_axes().values())

    @property
    def rivals(self) -> tuple[str, ...]:
        """Parameters of the other side of a game, by the first part of their names.

        They lower a loss of their own, to which the others are constants, as they are to that of
        the others; `objective` is the sum of both. In each step they move first, and the others
        then see them moved. None by default.
        """
        return ()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parameters that no training may move, by the first part of their names; none by default.

        No gradient reaches them, but weight decay would: `optimizer.only` must leave them out.
        """
        return ()

    def init_params(self, key: Array) -> Params:
        """Initial parameters, float32: those that are stored are rounded from them."""
        return tables.init_params(self.table(), key)

    def carry_bytes(self, batch: int) -> int | None:
        """Bytes of the recurrent state or KV cache of so many rows; None for no sequence model."""
        return None


def sizes_of(model: Model, data: Dataset, names: Sequence[str]) -> dict[str, int]:
    """Sizes that the data decides, for the model's fields of those names.

    Raises:
      UserError: the data has other sizes than the model, or none where the model has none either.
    """
    found: dict[str, int] = {}
    for name in names:
        own, given = getattr(model, name), data.sizes.get(name)
        if own is not None and given is not None and own != given:
            raise UserError(f"model.{name}={own}, and the data has {given}: leave it out")
        size = own if given is None else given
        if size is None:
            raise UserError(
                f"data.name={data.config.name} has no {name}: set model.{name}, or give the data "
                f"sizes={{'{name}': N}}"
            )
        found[name] = size
    return found


def check_stages(model: Model, layout: Layout) -> None:
    """Refuses a model that cannot be split into the stages of the mesh.

    Raises:
      UserError: one without `parts`, or layers that do not divide into stages and turns.
    """
    if layout.stages == 1:
        return
    parts, turns = model.parts(), layout.parallel.turns
    dealt = layout.parallel.stages or layout.parallel.speeds
    if parts is None:
        raise UserError(
            f"mesh axis pipe={layout.stages}: {type(model).__name__} does not say its parts, which "
            f"stages are made of: make it 1"
        )
    chunks = layout.stages * turns
    if parts.depth < chunks:
        raise UserError(
            f"mesh axis pipe={layout.stages} with parallel.turns={turns} needs at least {chunks} "
            f"layers, and the model has {parts.depth}: change the one or the other"
        )
    if dealt:
        layout.layers_of_chunks(parts.depth)
    elif parts.depth % chunks:
        raise UserError(
            f"{parts.depth} layers do not divide into mesh axis pipe={layout.stages} x "
            f"parallel.turns={turns}: change the one or the other, or set parallel.stages"
        )


def check_no_workers(layout: Layout) -> None:
    """Raises a UserError for devices along `worker`, which only training has work for."""
    if layout.worker_axis is not None:
        raise UserError(
            f"mesh axis worker={layout.mesh.shape['worker']}: there are no workers here, make it 1 "
            f"(they are of a run with train.local.workers)"
        )


def on_stages(model: Model, layout: Layout) -> tuple[Model, Layout]:
    """A model and a mesh as a step is compiled for them.

    Where chunks have unlike numbers of layers the model has a layer for every slot in them: its
    parameters are those that lie on the mesh, zeros where no layer is. Otherwise both are as given.
    """
    parts = None if layout.stages == 1 else model.parts()
    layers = () if parts is None else layout.layers_of_chunks(parts.depth)
    if parts is None or not layers:
        return model, layout
    return parts.deepened(len(layers) * max(layers)), layout.with_layers(parts.depth)


def as_read(model: Model, layout: Layout) -> Layout:
    """How a state of the model lies while it is read or written, see `Layout.as_read`."""
    parts = None if layout.stages == 1 else model.parts()
    return layout if parts is None else layout.as_read(parts.depth)


def reported(carry: Any, axes: Axes) -> tuple[Float[Array, ""] | float, Measures]:
    """The penalties that layers add, and what they tell, as `Model.objective` gives them.

    Args:
      carry: of the layers, in which each finds its `layers.base.Statistics`.
      axes: mesh axes.

    Returns:
      Their sum, 0.0 where no layer counts anything; and each measure by the path of its layer
      and its own name, as "ffn/routed/load".
    """
    penalty: Array | float = 0.0
    measures: Measures = {}
    for path, found in statistics(carry).items():
        if axis := axes.of("layer"):  # each stage has counted for its own layers
            gather = functools.partial(
                stages.gathered, axis=axis, turns=axes.turns, layers=axes.layers
            )
            found = jax.tree.map(gather, found)
        own, told = found.report(axes)
        penalty = penalty + own
        measures |= {f"{path}/{name}": (x, jnp.ones(())) for name, x in told.items()}
    return penalty, measures
