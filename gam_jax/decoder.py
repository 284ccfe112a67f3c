"""How programs that read and write texts lie on a mesh, and the parameters that they read."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from gam_jax.models.trunk import Trunk, is_ready
from gam_jax.params import Params, abstract_params, rule_specs, shardings
from sharding import collectives
from sharding.axes import Axes
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

PREFILL_CHUNK = 256
"""Tokens of a prompt that a device reads at once."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model that streams on a mesh.

    Rows are split over `data` and `expert` if they divide them; else those compute them alike, as
    those of `seq` do single tokens. Whole chunks of a prompt are split over `seq`. Logits and new
    tokens are whole on every device, so that the draw is that of one device.

    Attributes:
      model: the model.
      layout: the mesh and its rules, see `Layout.whole`.
    """

    model: LanguageModel
    layout: Layout

    @property
    def apart(self) -> bool:
        """Whether each block's carry and parameters lie by themselves while it writes."""
        return self.layout.stages == 1

    @property
    def trunk(self) -> Trunk:
        """The model's, with the loop over its layers left to `ready`."""
        return Trunk(self.model.stack, self.model.norm)

    @property
    def chunk(self) -> int:
        """Tokens of a prompt that are read at once."""
        return PREFILL_CHUNK * self.layout.mesh.shape["seq"]

    def axes(self, batch: int, tokens: int) -> Axes:
        """The mesh axes of a program over [batch, tokens]."""
        axes, rows = self.layout.axes, self.layout.rows_over(batch)
        return dataclasses.replace(axes, **rows, seq=axes.seq if tokens == self.chunk else None)

    def next_logits(
        self, params: Params, tokens: Array, carry: ModelCarry, axes: Axes
    ) -> tuple[Array, ModelCarry]:
        """The program of one device: whole logits [B, V] after its tokens, and the carry."""
        logits, carry = self.model.last_logits(params, tokens, carry, axes)
        return collectives.all_gather(logits, axes.rows, dim=0), carry

    def carry_specs(self, batch: int, axes: Axes) -> ModelCarry:
        """How a carry lies."""
        return self.model.carry_specs(batch, self.layout, axes.rows)

    def placed(self, carry: ModelCarry, logits: Array) -> tuple[ModelCarry, Array]:
        """Both as a program that reads gives them back, else that would be compiled twice."""
        batch = logits.shape[0]
        specs = self.carry_specs(batch, self.axes(batch, 1)), PartitionSpec()
        return jax.device_put((carry, logits), shardings(specs, self.layout))

    def writing_specs(self, batch: int, axes: Axes) -> ModelCarry:
        """How a carry that is written to lies."""
        specs, trunk = self.carry_specs(batch, axes), self.model.trunk
        if not self.apart:
            return specs
        layers = trunk.apart(specs.layers, lambda spec, _: PartitionSpec(*spec[1:]))
        return dataclasses.replace(specs, layers=layers)

    @property
    def param_specs(self) -> Params:
        """How parameters lie."""
        return rule_specs(self.model.table(), self.layout)

    @property
    def ready_specs(self) -> Params:
        """How what `made_ready` returns lies."""
        if not self.apart:
            return self.param_specs
        return self.trunk.ready_specs(self.param_specs, self.layout)

    def on_mesh(
        self,
        program: Any,
        carry: ModelCarry,
        axes: Axes,
        tokens: PartitionSpec,
        params: Params | None = None,
    ) -> Any:
        """`program(params, carry, tokens or logits, *rest)` -> (carry, *whole) over the mesh."""
        params = self.param_specs if params is None else params

        def call(*args: Any) -> Any:
            whole = (PartitionSpec(),) * (len(args) - 3)
            return jax.shard_map(
                lambda *own: program(*own, axes=axes),
                mesh=self.layout.mesh,
                in_specs=(params, carry, tokens, *whole),
                out_specs=(carry, PartitionSpec()),
            )(*args)

        return call


def ready(model: LanguageModel, params: Params, layout: Layout | None = None) -> Params:
    """Parameters as texts are read and written fastest: each block's by themselves, and cast.

    Others are read out of the stacked ones, block by block, and made such for writing, at each
    call. The programs that read are then written out layer by layer too, so that they take longer
    to compile the more layers there are. They are a copy: let the others go if memory is scarce.

    Args:
      model: the model.
      params: its parameters, on the layout's mesh.
      layout: the mesh; None for one device.
    """
    return made_ready(Decoder(model, (layout or Layout(make_mesh())).whole), params)


def check_ready(decoder: Decoder, params: Params) -> None:
    """Refuses parameters that were made ready for another model, or another mesh."""
    if is_ready(params) and jax.tree.map(jnp.shape, params) != _ready_shapes(decoder):
        raise UserError(
            "these parameters were made ready for another model, or another mesh: make them by "
            "decode.ready(model, params, layout) with this one's"
        )


@functools.lru_cache(maxsize=8)
def _ready_shapes(decoder: Decoder) -> Any:
    plain = abstract_params(decoder.model.table())
    return jax.tree.map(jnp.shape, jax.eval_shape(functools.partial(made_ready, decoder), plain))


@functools.partial(jax.jit, static_argnums=0)
def made_ready(decoder: Decoder, params: Params) -> Params:
    """Parameters of blocks as a loop over tokens reads them, see `Trunk.ready`."""
    model = decoder.model
    if is_ready(params) or not decoder.apart:
        return params
    return decoder.trunk.ready(params, model.dtype, decoder.layout)
