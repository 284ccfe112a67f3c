"""Rows of any language model on any mesh: the executor that really runs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int

from gam_jax.layers.base import Layer, layers_in
from gam_jax.layers.moe import MoE
from gam_jax.models.language import LanguageModel
from gam_jax.models.semi import SemiDrafter
from gam_jax.models.suits import positions_in
from gam_jax.params import Params, shardings
from gam_jax.sampling import Past, Sampling
from gam_jax.serve.executor import MOST_BIASED, Blocks, Drawn, Draws, Saved, Scores, Work
from gam_jax.serve.listed import PAGE, WIDTHS, empty_state, listed, rows_of
from gam_jax.serve.programs import WHOLE, Programs, Seats, marks, packed, packed_blocks
from gam_jax.serve.saved import from_bytes, to_bytes
from sharding.bounds import Count, check_number
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.products import Flops, product_flops

NO, YES = np.zeros((), bool), np.ones((), bool)


@dataclasses.dataclass(frozen=True)
class DrawnLater:
    """A step's answer, perhaps still being computed.

    Attributes:
      told: arrays on the device.
      whole: whether some row asked for log probabilities; else they are not fetched.
    """

    told: Any
    whole: bool

    def result(self) -> Drawn:
        """Waits for it."""
        told, numbers = self.told, np.asarray(self.told.numbers)
        asked = told.log_probs, told.top_ids, told.top_log_probs
        scores = (np.asarray(x) if self.whole else np.zeros(x.shape, x.dtype) for x in asked)
        return Drawn(numbers[:, :-2], numbers[:, -2], numbers[:, -1] != 0, *scores)


@dataclasses.dataclass(frozen=True)
class ScoresLater:
    """A read's answer, of so many rows; `scored` is None where none was asked for."""

    scored: Any
    rows: int

    def result(self) -> Scores | None:
        """Waits for it."""
        if self.scored is None:
            return None
        return Scores(*(np.asarray(x)[: self.rows] for x in self.scored))


@dataclasses.dataclass(frozen=True)
class OnHost:
    """An array that waits in the host's memory.

    Attributes:
      shape: of the whole.
      lies: where it belongs.
      parts: those of this process, by the place of their first number.
    """

    shape: tuple[int, ...]
    lies: NamedSharding
    parts: Mapping[tuple[int, ...], np.ndarray]

    @classmethod
    def of(cls, x: jax.Array) -> OnHost:
        """Copies it; parts that are alike once."""
        parts = {_begin(part.index): part.data for part in x.addressable_shards}
        for part in parts.values():
            part.copy_to_host_async()
        assert isinstance(x.sharding, NamedSharding)
        # A processor's array and NumPy's view of it share their memory: the view would hold it.
        return cls(x.shape, x.sharding, {at: np.array(part) for at, part in parts.items()})

    def placed(self) -> jax.Array:
        """The array, where it was."""
        return jax.make_array_from_callback(
            self.shape, self.lies, lambda index: self.parts[_begin(index)]
        )


def _begin(index: Any) -> tuple[int, ...]:
    return tuple(part.start or 0 for part in index)


class Device:
    """`executor.Executor` of a model. Not for several threads at once.

    Args:
      model: any language model whose rows do not meet.
      params: its parameters, on the layout's mesh.
      rows: S.
      layout: the mesh; None for one device.
      limit: the most tokens of a row; 0 for what the model can take at most.
      tokens: of all rows together that growing caches have room for; 0 for S times the limit.
      block: W, tokens of a row in a step with guesses; 1 for none.
      page: tokens of a page.
      widths: of the blocks of a prompt, falling to 1.
      drafter: who guesses from the model's features, and its own parameters; None for nobody.

    Raises:
      UserError: a model that cannot be served so, see `served`; sizes that make no sense.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        rows: int,
        *,
        layout: Layout | None = None,
        limit: int = 0,
        tokens: int = 0,
        block: int = 1,
        page: int = PAGE,
        widths: tuple[int, ...] = WIDTHS,
        drafter: tuple[SemiDrafter, Params] | None = None,
    ) -> None:
        check_number("limit", limit, Count)
        named = str(model)
        layout = (layout or Layout(make_mesh())).whole
        check_mesh(layout)
        model.check_mesh(layout)
        model, limit = served(model, limit)
        sized: Any = {"limit": limit, "tokens": tokens, "block": block}
        self._rows, self.sizes = rows_of(model, layout, rows, page=page, widths=widths, **sized)
        self.drafter, own = drafter or (None, {})
        passes = 0 if self.drafter is None else -(-(block - 1) // self.drafter.ahead)
        self._programs = Programs(self._rows, self.drafter, passes)
        lie = functools.partial(shardings, layout=layout)
        ready = jax.jit(self._programs.ready, out_shardings=lie(self._programs.param_specs))
        self._params = ready(params)
        whole = NamedSharding(layout.mesh, WHOLE)
        self._own = jax.device_put(own, whole)
        numbers = np.asarray(jax.jit(marks, out_shardings=whole)(self._params)).tobytes()
        self._mark = hashlib.sha256(f"{named} {self.sizes.page}".encode() + numbers)
        self.fingerprint = self._mark.hexdigest()
        self._lies = lie(self._programs.state_specs)
        empty = functools.partial(empty_state, self._programs)
        self._empty = jax.jit(empty, out_shardings=self._lies).lower().compile()
        self._state = self._empty()
        self._own_lies, self._pools_lie = map(lie, self._rows.parted(self._rows.specs(())))
        self._start = jax.jit(self._empty_row, out_shardings=self._own_lies)()
        self._across = len({device.process_index for device in layout.mesh.devices.flat}) > 1
        self._compiled: dict[str, Any] = {}
        self._traced: dict[str, Callable[[], Any]] = {}
        self._tops = np.full(rows, -1)
        words = np.full((rows, -(-self.sizes.vocab // 32)), 2**32 - 1, np.uint32)
        self._any, self._no = (_placed(x, whole) for x in (words, NO))
        self._plan()

    def _empty_row(self) -> list[Any]:
        own, _ = self._rows.parted(self._rows.shapes(1))
        return [jnp.zeros(x.shape, x.dtype) for x in own]

    def compile(self) -> tuple[str, ...]:
        """Compiles every program that there is, and returns their names."""
        self._compiled = {name: trace().lower().compile() for name, trace in self._traced.items()}
        return tuple(self._compiled)

    def memory(self, name: str) -> Any:
        """What a program needs, as XLA counts it; it need not be compiled yet."""
        program = self._compiled.get(name) or self._traced[name]().lower().compile()
        return program.memory_analysis()

    def flops(self, name: str, scopes: Collection[str] = ()) -> Flops:
        """Operations in a program's products on one device, see `sharding.products`."""
        return product_flops(self._traced[name]().jaxpr.jaxpr, scopes)

    def _plan(self) -> None:
        """Says how each program is traced."""
        layout, across = self._rows.layout, self._across
        for name, one in listed(self._programs, self.sizes, self._params, self._own).items():
            lies = jax.tree.map(lambda _: WHOLE, one.gives) if one.whole and across else one.gives
            jitted = jax.jit(
                self._programs.on_mesh(one.program, one.takes, one.gives),
                in_shardings=shardings(one.takes, layout),
                out_shardings=shardings(lies, layout),
                donate_argnums=0 if one.changes else (),
            )
            self._traced[name] = functools.partial(jitted.trace, *one.shapes)
        if across:
            whole = NamedSharding(layout.mesh, WHOLE)
            gathered = jax.jit(lambda saved: saved, out_shardings=[whole] * len(self._start))
            self._traced["gather"] = lambda: gathered.trace(self._start)

    def seat(
        self,
        row: int,
        key: int,
        draws: Draws,
        seen: Int[np.ndarray, T],
        written: Int[np.ndarray, N] | None = None,
    ) -> None:
        """Gives a row to a text, see `Executor.seat`."""
        self._tops[row] = draws.top
        self._change("seat", np.int32(row), self._seats(key, draws, seen, written))

    def load(self, row: int, saved: Saved | None) -> None:
        """Puts a state in the place of a row's own; None for the start of a text."""
        self._change("load", np.int32(row), self._start if saved is None else saved)

    def save(self, row: int) -> Saved:
        """A copy of a row's state, without its pages."""
        return self._compiled["save"](self._state, np.int32(row))

    def copy_page(self, source: int, target: int) -> None:
        """Copies a page of every growing cache."""
        self._change("copy a page", np.int32(source), np.int32(target))

    def read(self, blocks: Blocks) -> ScoresLater:
        """Feeds blocks of prompts, see `Executor.read`."""
        asked = NO if blocks.follows is None else YES
        self._state, scored = self._compiled[f"read {blocks.tokens.shape[1]}"](
            self._state, self._params, packed_blocks(blocks, self.sizes), asked
        )
        return ScoresLater(_sent(scored) if asked else None, len(blocks.rows))

    def step(self, work: Work) -> DrawnLater:
        """Feeds W tokens of each row and draws, see `Executor.step`."""
        words, constrained = (self._any, self._no) if work.allowed is None else (work.allowed, YES)
        self._state, told = self._compiled[f"step {work.tokens.shape[1]}"](
            self._state, self._params, packed(work), words, constrained
        )
        whole = bool(np.any(self._tops[work.known > 0] >= 0))
        _sent(told if whole else told.numbers)
        return DrawnLater(told, whole)

    def guess(self, work: Int[np.ndarray, "S N+1"]) -> Int[np.ndarray, "S G"]:
        """What follows rows by the drafter, see `Executor.guess`."""
        return np.asarray(self._compiled["guess"](self._state, self._params, self._own, work))

    def bytes_of(self, saved: Saved, pages: tuple[int, ...]) -> bytes:
        """A row's state and the content of its pages, for a file; it waits for the device."""
        found = list(self._compiled["gather"](saved) if self._across else saved)
        for page in pages:
            found += self._compiled["take a page"](self._state, np.int32(page))
        return to_bytes(self._mark.digest(), list(map(np.asarray, found)))

    def from_bytes(self, data: bytes, pages: tuple[int, ...]) -> Saved:
        """The inverse, into pages that are the caller's.

        Raises:
          UserError: data that are damaged, or of another model; no page is changed then.
        """
        own = self._rows.parted(self._rows.shapes(1))[0]
        of_page = self._rows.parted(self._rows.page_shapes)[1]
        arrays = from_bytes(self._mark.digest(), data, [*own, *of_page * len(pages)])
        for place, page in enumerate(pages):
            at = len(own) + place * len(of_page)
            page_of = map(_placed, arrays[at : at + len(of_page)], self._pools_lie)
            self._change("put a page", np.int32(page), list(page_of))
        return list(map(_placed, arrays[: len(own)], self._own_lies))

    def row_bytes(self) -> tuple[int, int]:
        """Bytes of a row's state without pages, and of one page of all caches."""
        own, _ = self._rows.parted(self._rows.shapes(1))
        _, pages = self._rows.parted(self._rows.page_shapes)
        return sum(map(_bytes, own)), sum(map(_bytes, pages)) if self.sizes.page else 0

    def sleep(self) -> None:
        """Moves the parameters to the host's memory and drops the rows, see `Executor.sleep`."""
        self._away = jax.tree.map(OnHost.of, (self._params, self._own, self._start))
        self._params, self._own, self._start, self._state = {}, {}, [], None

    def wake(self) -> None:
        """The inverse, see `Executor.wake`."""
        back = jax.tree.map(lambda x: x.placed(), self._away)
        self._params, self._own, self._start = back
        self._state, self._away = self._empty(), None

    def _change(self, name: str, *args: Any) -> None:
        self._state = self._compiled[name](self._state, *args)

    def _seats(self, key: int, draws: Draws, seen: Any, written: Any) -> Seats:
        """What a row draws with, as arrays of one row."""
        vocab = self.sizes.vocab
        read, counts = np.zeros((1, vocab), bool), np.zeros((1, vocab), np.int32)
        read[0, seen] = True
        if written is not None:
            np.add.at(counts[0], written, 1)
        biased = np.full((1, MOST_BIASED), vocab, np.int32)
        bias = np.zeros((1, MOST_BIASED), np.float32)
        if len(draws.bias) > MOST_BIASED:
            raise UserError(f"bias: {len(draws.bias)} tokens; give at most {MOST_BIASED}")
        for place, (token, value) in enumerate(draws.bias):
            if not 0 <= token < vocab:
                raise UserError(f"bias: {token} is no id of the vocabulary of {vocab}")
            biased[0, place], bias[0, place] = token, value
        one = {
            field.name: np.full(1, getattr(draws, field.name), np.float32)
            for field in dataclasses.fields(Sampling)
            if field.name not in ("biased", "bias", "top_k")
        }
        top_k = np.full(1, draws.top_k, np.int32)
        sampling = Sampling(**one, top_k=top_k, biased=biased, bias=bias)  # type: ignore[arg-type]
        seed, top = np.full(1, key % 2**32, np.uint32), np.full(1, draws.top, np.int32)
        past = Past(read, counts)  # type: ignore[arg-type]
        return Seats(np.zeros(1, np.int32), seed, top, sampling, past)  # type: ignore[arg-type]


def check_mesh(layout: Layout) -> None:
    """Raises a UserError for layers in stages: one row would wait for each of them in turn."""
    if layout.stages > 1:
        raise UserError(
            f"mesh axis pipe={layout.stages}: rows are not served through stages: split the model "
            f"over tensor in their place"
        )


def served(model: LanguageModel, limit: int) -> tuple[LanguageModel, int]:
    """The model for texts of at most so many tokens, and how many that is; 0 for any number.

    Raises:
      UserError: a text so long does not fit it; positions that turn by a text's own length; rows
        that meet, in experts that all rows compete for.
    """
    if meets(model.block):
        raise UserError(
            "rows of this model meet: its experts have a capacity that all texts at once compete "
            "for (capacity.tokens=0), so load would change texts: give capacity.tokens, or factor=0"
        )
    limit = limit or model.limit
    if not limit:
        return model, 0
    for positions in positions_in(model):
        reach = dataclasses.replace(positions, length=0).reach
        if limit > reach:
            raise UserError(
                f"texts of {limit} tokens: {positions.kind} positions turn by the length of a "
                f"text beyond {reach:.0f} tokens, which is not known while it is written: serve "
                f"texts of at most {reach:.0f}"
            )
    try:
        return model.for_length(limit), limit
    except ValueError as error:
        raise UserError(f"texts of at most {limit} tokens: {error}") from error


def meets(layer: Layer) -> bool:
    """Whether what one row gets depends on other rows: experts whose room is that of all rows."""
    if isinstance(layer, MoE) and layer.capacity.factor and not layer.capacity.tokens:
        return True
    return any(map(meets, layers_in(layer)))


def _placed(x: np.ndarray, lies: NamedSharding) -> jax.Array:
    """An array on the mesh, in each of several processes its own part."""
    return jax.make_array_from_callback(x.shape, lies, x.__getitem__)


def _sent(told: Any) -> Any:
    """The same; it is on its way to the host as soon as it is computed."""
    for x in jax.tree.leaves(told):
        x.copy_to_host_async()
    return told


def _bytes(x: Any) -> int:
    return x.size * x.dtype.itemsize
