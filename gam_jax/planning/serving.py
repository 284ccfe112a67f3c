"""What each program of a served model asks of a device, on machines that are not here.

The programs are those that `gam_jax.serve.device.Device` compiles. They are traced on a mesh of no
devices, with two blocks and with three: each further block adds what the third one does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.interpreters import partial_eval

from gam_jax.layers import Layer, Mixed
from gam_jax.layers.base import layers_in
from gam_jax.models.language import LanguageModel
from gam_jax.ops.pages import columns_of
from gam_jax.params import abstract_params
from gam_jax.planning.cluster import Cluster
from gam_jax.planning.cost import cost
from gam_jax.planning.live import lives
from gam_jax.planning.passes import Followed, follow
from gam_jax.planning.traces import abstract_layout
from gam_jax.planning.work import Work
from gam_jax.serve.device import check_mesh, served
from gam_jax.serve.executor import Sizes
from gam_jax.serve.listed import PAGE, WIDTHS, Listed, listed, rows_of
from gam_jax.serve.programs import Programs
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.parallel import Parallel

FIRST = 2
"""Blocks of the smaller model that is traced: several are one function, a single one is none."""
FEW = 2
"""Pages of a pool that is traced: what programs do does not depend on how many there are."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes on one device.

    Attributes:
      params: of parameters.
      rows: of what all rows have of their own, and how they draw.
      row: of these, what one row takes with it when it leaves.
      page: of one page in all pools.
    """

    params: float
    rows: float
    row: float
    page: float

    def beyond(self, other: Held, times: float) -> Held:
        """See `Passes.beyond`."""
        first, one = dataclasses.astuple(other), dataclasses.astuple(self)
        return Held(*(a + times * (b - a) for a, b in zip(first, one, strict=True)))


@dataclasses.dataclass(frozen=True)
class Traced:
    """All programs of a model on one mesh with so many rows.

    Attributes:
      sizes: of the executor, but for its pages.
      backend: whose programs they are: "cpu", "gpu" or "tpu"; None for JAX's default.
      mesh: sizes of all axes, the outermost first.
      programs: what each does, by name.
      between: bytes that each holds besides its arguments.
      held: bytes of its arguments.
      traces: how many programs were traced.
    """

    sizes: Sizes
    backend: str | None
    mesh: Mapping[str, int]
    programs: Mapping[str, Followed]
    between: Mapping[str, float]
    held: Held
    traces: int

    @property
    def least(self) -> float:
        """Bytes held on a device, without pages."""
        return self.held.params + self.held.rows + max(self.between.values())

    def work(self, name: str, tokens: int = 0) -> Work:
        """What a program asks of a device.

        Args:
          name: of the program, as "step 1".
          tokens: that the row which has the most has read when it ends.
        """
        found = self.programs[name]
        passes = found.fixed
        if found.turns:
            columns = columns_of(self.sizes.page, self.sizes.row_pages, self.backend)
            turns = -(-tokens // columns)
            passes = found.most.beyond(found.fixed, min(turns / found.turns, 1.0))
        moved = passes.product_bytes, passes.other_bytes
        return Work(self.mesh, passes.flops, *moved, passes.messages, self.least)

    def seconds(self, cluster: Cluster, name: str, tokens: int = 0) -> float:
        """That a program takes on a cluster; the arguments are those of `work`.

        Raises:
          UserError: a figure of the profile that nobody has said.
        """
        return cost(self.work(name, tokens), cluster).seconds


def trace(
    model: LanguageModel,
    mesh: Mapping[str, int],
    rows: int,
    limit: int,
    backend: str | None = None,
    page: int = PAGE,
    widths: tuple[int, ...] = WIDTHS,
    whole: bool = False,
    like: Traced | None = None,
) -> Traced:
    """Traces all programs.

    Args:
      model: that is served.
      mesh: sizes of its axes.
      rows: S.
      limit: the most tokens of a row; 0 for what the model can take at most.
      backend: whose programs: "cpu", "gpu" or "tpu"; None for JAX's default.
      page: tokens of a page.
      widths: of the blocks of a prompt, falling to 1.
      whole: whether every block is traced, and not a few of them.
      like: of the same model and mesh with other rows, whose programs of one row are these too.

    Raises:
      UserError: a model or a mesh that is not served so, see `Device` and `check_drawn`.
    """
    check_drawn(model)
    layout = abstract_layout(mesh, Parallel().whole.preset, backend=backend)
    check_mesh(layout)
    model.check_mesh(layout)
    model, limit = served(model, limit)

    def of(depth: int) -> Traced:
        own = dataclasses.replace(model, depth=depth)
        return _traced(own, layout, rows, limit, page, widths, "step" if like else "")

    if whole or model.depth <= FIRST + 1 or model.ladder:
        found = of(model.depth)
    else:
        found = _deeper(of(FIRST), of(FIRST + 1), model.depth - FIRST)
    if like is None:
        return found
    programs = {**like.programs, **found.programs}
    between = {**like.between, **found.between}
    return dataclasses.replace(found, programs=programs, between=between)


def check_drawn(model: LanguageModel) -> None:
    """Which option a drawn `Mixed` serves with is known with its logits, which no plan has.

    Raises:
      UserError: the model has one.
    """
    if _draws(model.block):
        raise UserError(
            "the model draws an option of its Mixed, and what is served depends on its logits: "
            "extract it first (gam extract)"
        )


def _draws(layer: Layer) -> bool:
    own = isinstance(layer, Mixed) and layer.drawn
    return own or any(map(_draws, layers_in(layer)))


def _deeper(few: Traced, one_more: Traced, times: int) -> Traced:
    """What programs of so many blocks more than a few do, from those and from one block more."""
    programs, between = {}, {}
    for name, each in few.programs.items():
        more = one_more.programs[name]
        fixed = more.fixed.beyond(each.fixed, times)
        programs[name] = Followed(fixed, more.most.beyond(each.most, times), each.turns)
        held = few.between[name]
        between[name] = held + times * (one_more.between[name] - held)
    arguments = one_more.held.beyond(few.held, times)
    traces = few.traces + one_more.traces
    return dataclasses.replace(
        few, programs=programs, between=between, held=arguments, traces=traces
    )


def _traced(
    model: LanguageModel,
    layout: Layout,
    rows: int,
    limit: int,
    page: int,
    widths: tuple[int, ...],
    kind: str,
) -> Traced:
    """Programs whose names begin so, of every block."""
    own, sizes = rows_of(model, layout, rows, limit=limit, page=page, widths=widths)
    own = dataclasses.replace(own, pages=FEW if sizes.page else 0)
    programs = Programs(own)
    params = jax.eval_shape(programs.ready, abstract_params(model.table()))
    mesh = {str(name): size for name, size in layout.mesh.shape.items()}
    pools = _pools(programs)
    found, between, held = {}, {}, None
    for name, one in listed(programs, sizes, params, {}).items():
        if not name.startswith(kind):
            continue
        jaxpr = _inside(programs, one)
        found[name], between[name] = follow(jaxpr, mesh, pools), float(lives(jaxpr).peak)
        if held is None:
            held = _held(jaxpr, one, pools)
    assert held is not None  # there is always a step
    return Traced(sizes, layout.axes.backend, mesh, found, between, held, len(found))


def _inside(programs: Programs, one: Listed) -> Any:
    """The jaxpr of one device, with all its arguments."""
    jaxpr = jax.make_jaxpr(programs.on_mesh(one.program, one.takes, one.gives))(*one.shapes).jaxpr
    (call,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map")
    inside, first = call.params["jaxpr"], len(call.invars) - len(jaxpr.invars)
    assert list(call.invars[first:]) == list(jaxpr.invars)
    live, _ = partial_eval.dce_jaxpr(inside, [True] * len(inside.outvars), instantiate=True)
    return live


def _pools(programs: Programs) -> list[int]:
    """Places of the pools of pages among the arguments of every program."""
    carry = programs.rows.shapes(programs.rows.rows)
    leaves, tree = jax.tree.flatten(carry)
    return programs.rows.parted(jax.tree.unflatten(tree, list(range(len(leaves)))))[1]


def _held(jaxpr: Any, one: Listed, pools: list[int]) -> Held:
    """What a step is given, on one device."""
    sizes = [math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in jaxpr.invars]
    state, params, *_ = (len(jax.tree.leaves(each)) for each in one.shapes)
    carried = len(jax.tree.leaves(one.shapes[0].carry))
    paged = sum(sizes[place] for place in pools)
    here = jaxpr.invars[0].aval.shape[0]  # rows of this device, of the counter of tokens
    return Held(
        params=sum(sizes[state : state + params]),
        rows=sum(sizes[:state]) - paged,
        row=(sum(sizes[:carried]) - paged) / here,
        page=paged / FEW,
    )
