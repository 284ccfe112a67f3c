"""What the program of one device holds in memory while it runs, and moves, read from its jaxpr.

Compilers make no array of what is computed element by element and read by the next operation: they
fuse the two. So arrays are written only for products, sums, messages, loops and whatever these
read. Everything else lives in what it is computed from. What is computed element by element from an
array that nothing else reads lies where that lay. So the gradient by what several products read is
one array, to which they are added one by one.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from sharding.messages import inner_jaxprs
from sharding.opaque import NAME as OPAQUE
from sharding.products import own_flops, turns_of

LOOPS = ("scan", "while", "cond")
SHAPES = ("reshape", "squeeze", "expand_dims", "pvary", "pcast", "copy", "optimization_barrier")
"""What changes how an array is seen, and no byte of it."""
FUSED = frozenset(
    (
        *SHAPES,
        *("broadcast_in_dim", "convert_element_type", "iota", "transpose", "slice", "name"),
        *("reduce_precision", "stop_gradient", "select_n", "clamp", "concatenate", "pad", "rev"),
        *("dynamic_slice", "add", "sub", "mul", "div", "neg", "max", "min", "pow", "integer_pow"),
        *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sqrt", "rsqrt", "cbrt"),
        *("erf", "erf_inv", "erfc", "sin", "cos", "square", "sign", "abs", "floor", "ceil"),
        *("round", "is_finite", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor"),
        *("shift_left", "shift_right_logical", "shift_right_arithmetic", "rem", "add_any"),
        *("random_bits", "random_wrap", "random_unwrap", "random_fold_in", "axis_index"),
    )
)
"""What compilers compute within whatever reads it."""
KERNELS = ("pallas_call", OPAQUE)
"""What keeps arrays of its own to itself."""
ELSEWHERE = frozenset(
    (
        *("broadcast_in_dim", "iota", "transpose", "slice", "concatenate", "pad", "rev"),
        *("dynamic_slice", "axis_index", "random_bits", "random_wrap", "random_unwrap"),
    )
)
"""Of `FUSED`, what has numbers where other ones lay."""
ELEMENTWISE = FUSED - ELSEWHERE
ADDED = frozenset(("add", "add_any"))
REDUCED = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax"))
"""What writes an array, and computes what it reads on the way."""
LANES = 128
"""Numbers in a row of a TPU's tiles: an array takes more if no dimension of it fills such rows."""


@dataclasses.dataclass(frozen=True)
class Lives:
    """The arrays that a program writes, and when each is held.

    Attributes:
      sizes: bytes of each array, int64 [N].
      tiles: by what part each is larger where memory has tiles, see `LANES`, [N].
      alive: which of them are held at each point of the program, bool [P, N]. Arguments are not
        among them.
      moved: how often each is written or read while the program runs, [N].
      operands: how often products read or write each of them, [N]; among `moved` too.
      stacked: those that a loop stacks for a later one, bool [N].
      near: those that are read before any loop runs, and by none: a device with memory on its chip
        may hold them there, bool [N].
      flops: operations of each product, all its turns together, [M].
      dtypes: of the factors of each product.
    """

    sizes: np.ndarray
    tiles: np.ndarray
    alive: np.ndarray
    moved: np.ndarray
    operands: np.ndarray
    stacked: np.ndarray
    near: np.ndarray
    flops: np.ndarray
    dtypes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes held at the point that holds most."""
        return int((self.alive @ self.sizes).max(initial=0))


class Equation(NamedTuple):
    """An equation after all calls are written out; inputs that are literals are left out."""

    name: str
    eqn: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclasses.dataclass
class _Found:
    """What is gathered on the way."""

    sizes: list[int] = dataclasses.field(default_factory=list)
    tiles: list[float] = dataclasses.field(default_factory=list)
    moved: list[float] = dataclasses.field(default_factory=list)
    operands: list[float] = dataclasses.field(default_factory=list)
    stacked: list[bool] = dataclasses.field(default_factory=list)
    near: list[bool] = dataclasses.field(default_factory=list)
    points: list[frozenset[int]] = dataclasses.field(default_factory=list)
    flops: list[float] = dataclasses.field(default_factory=list)
    dtypes: list[str] = dataclasses.field(default_factory=list)

    def add(self, aval: Any) -> int:
        """A new array's number."""
        self.moved.append(0.0)
        self.operands.append(0.0)
        self.stacked.append(False)
        self.near.append(False)
        self.sizes.append(_bytes(aval))
        self.tiles.append(tiles(aval.shape))
        return len(self.sizes) - 1

    @property
    def mark(self) -> tuple[int, int]:
        """How many arrays and products there are so far."""
        return len(self.sizes), len(self.flops)

    def keep_dearest(self, marks: Sequence[tuple[int, int]]) -> None:
        """Of branches between these marks, of which one runs, that which multiplies most counts."""
        spans = list(itertools.pairwise(marks))
        dearest = max(spans, key=lambda span: sum(self.flops[span[0][1] : span[1][1]]))
        for span in spans:
            if span is not dearest:
                (array, product), (arrays, products) = span
                self.flops[product:products] = [0.0] * (products - product)
                self.moved[array:arrays] = self.operands[array:arrays] = [0.0] * (arrays - array)


def tiles(shape: Sequence[int]) -> float:
    """By what part an array of these sizes is larger where memory has tiles, see `LANES`."""
    return min((-(-d // LANES) * LANES / d for d in shape if d), default=1.0)


def lives(jaxpr: Any) -> Lives:
    """Follows a program from its first equation to its last.

    Of the branches of a `lax.cond` that which multiplies most counts in what is moved and
    multiplied; what each of them holds is among the points.

    Args:
      jaxpr: open, of the program; without what no result depends on. What is inside
        `jax.shard_map` is that of one device.
    """
    found = _Found()
    _follow(jaxpr, found, frozenset(), 1.0)
    alive = np.zeros((len(found.points), len(found.sizes)), bool)
    for row, held in zip(alive, found.points, strict=True):
        row[list(held)] = True
    return Lives(
        np.asarray(found.sizes, np.int64),
        np.asarray(found.tiles),
        alive,
        np.asarray(found.moved),
        np.asarray(found.operands),
        np.asarray(found.stacked, bool),
        np.asarray(found.near, bool),
        np.asarray(found.flops),
        tuple(found.dtypes),
    )


def _follow(
    jaxpr: Any, found: _Found, around: frozenset[int], turns: float, kept: int | None = None
) -> None:
    """Adds the arrays of one jaxpr; `around` are those held while it runs.

    Of its results the first `kept` are held until it ends, all if None: what a turn of a loop adds
    to a stack is copied there at once.
    """
    env: dict[Any, Any] = {}
    eqns = list(written_out(jaxpr, env))
    outs = [env.get(v, v) for v in jaxpr.outvars if not isinstance(v, core.Literal)]
    reads, own, roots, straight = _arrays(eqns, outs, found)
    last = {array: i for i, read in enumerate(reads) for array in read}
    for v in jaxpr.outvars[:kept]:
        for array in () if isinstance(v, core.Literal) else roots.get(env.get(v, v), ()):
            last[array] = len(eqns)
    loops = [i for i, eqn in enumerate(eqns) if eqn.name in LOOPS]
    held: set[int] = set()
    for i, (eqn, read) in enumerate(zip(eqns, reads, strict=True)):
        written = [own[v] for v in eqn.outputs if v in own]
        for array in (x for x in written if x not in held):
            end = last.get(array, i)
            found.near[array] = end < len(eqns) and not any(i <= loop <= end for loop in loops)
        _count(eqn, read, written, found, turns)
        if eqn.name in LOOPS:
            _loop(eqn, found, around | held | set(written), written, turns)
        for v in eqn.outputs:  # it may lie where one of them lies that is not read again
            free = (x for x in straight.get(v, ()) if x in held and last.get(x, i) <= i)
            held -= {next((x for x in free if found.sizes[x] == found.sizes[own[v]]), -1)}
        held.update(written)
        found.points.append(around | held)
        held = {array for array in held if last.get(array, i) > i}


def _loop(
    eqn: Equation, found: _Found, around: frozenset[int], written: list[int], turns: float
) -> None:
    """What runs inside a loop or a branch, beside `around`, which holds what it writes too."""
    if eqn.name == "scan":
        numbers = dict(zip(eqn.outputs, written, strict=True))
        for v in eqn.outputs[eqn.eqn.params["num_carry"] :]:
            found.stacked[numbers[v]] = True
    of_scan = eqn.name == "scan"
    times = turns * (turns_of(eqn.eqn) or 1)
    kept = eqn.eqn.params["num_carry"] if of_scan else None
    marks = [found.mark]
    for part in inner_jaxprs(eqn.eqn):
        _follow(part, found, around, times, kept)
        marks.append(found.mark)
    if eqn.name == "cond":
        found.keep_dearest(marks)


def _count(
    eqn: Equation, read: frozenset[int], written: list[int], found: _Found, turns: float
) -> None:
    """Adds what an equation moves and multiplies."""
    if eqn.name in LOOPS:
        return
    product = own_flops(eqn.eqn)
    if product:
        found.flops.append(turns * product)
        factor = eqn.eqn.invars[-1 if eqn.name == OPAQUE else 0]  # documents may stand first
        found.dtypes.append(str(factor.aval.dtype))
    for array in (*read, *written):
        found.moved[array] += turns
        found.operands[array] += turns * bool(product)


@dataclasses.dataclass(frozen=True, eq=False)
class _Value:
    """What an equation of a call gives, apart from what it gives in other calls of the same."""

    aval: Any


def written_out(jaxpr: Any, env: dict[Any, Any], called: bool = False) -> Iterator[Equation]:
    """The equations with those of every call in its place.

    Several calls may be of one jaxpr, as those of equal blocks are, so what is `called` has results
    of its own each time.
    """

    def named(v: Any) -> Any:
        return None if isinstance(v, core.Literal) else env.get(v, v)

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inner = () if name in LOOPS or name in KERNELS else tuple(inner_jaxprs(eqn))
        if not inner or "reduce" in name or name.startswith(("scatter", "sort", "cum")):
            inputs = tuple(named(v) for v in eqn.invars if not isinstance(v, core.Literal))
            outputs = tuple(_Value(v.aval) if called else v for v in eqn.outvars)
            env.update(zip(eqn.outvars, outputs, strict=True))
            yield Equation(name, eqn, inputs, outputs)
            continue
        body = inner[0]
        given = eqn.invars[len(eqn.invars) - len(body.invars) :]
        own = {v: named(o) for v, o in zip(body.invars, given, strict=True)}
        yield from written_out(body, own, called=True)
        for v, o in zip(body.outvars, eqn.outvars, strict=True):
            env[o] = None if isinstance(v, core.Literal) else own.get(v, v)


class _Arrays(NamedTuple):
    """Of a jaxpr: numbers of arrays.

    Attributes:
      reads: that each equation reads.
      own: of each value that is an array.
      roots: that each value is read from.
      straight: those that an array is computed from element by element.
    """

    reads: list[frozenset[int]]
    own: dict[Any, int]
    roots: dict[Any, frozenset[int]]
    straight: dict[Any, frozenset[int]]


def _arrays(eqns: list[Equation], outs: list[Any], found: _Found) -> _Arrays:
    """Adds the arrays of a jaxpr to those that were found before."""
    needed = {v for v in outs if v is not None}
    for eqn in eqns:
        if eqn.name not in FUSED and eqn.name not in REDUCED:
            needed.update(v for v in eqn.inputs if v is not None)
    own: dict[Any, int] = {}
    for eqn in eqns:
        if eqn.name in SHAPES or (eqn.name in FUSED and needed.isdisjoint(eqn.outputs)):
            continue
        for v in eqn.outputs:
            if eqn.name not in FUSED or v in needed:
                own[v] = found.add(v.aval)
    sums = _summed(eqns, outs, own, found.sizes)
    roots = _roots_of(eqns, {**own, **sums})
    reads = []
    for eqn in eqns:
        (out, *_) = eqn.outputs or (None,)
        fused = eqn.name in FUSED and not any(v in own for v in eqn.outputs)
        inputs = () if fused and out not in sums else eqn.inputs
        read = frozenset(array for v in inputs for array in roots.get(v, ()))
        reads.append(read - {sums[out]} if out in sums else read)
    return _Arrays(reads, own, roots, _straight(eqns, own, sums))


def _summed(
    eqns: list[Equation], outs: list[Any], own: dict[Any, int], sizes: Sequence[int]
) -> dict[Any, int]:
    """Sums that lie where one of their terms lies, which was written for the sum alone.

    Where both terms were, and the later one is a product, it is added to the other as it is
    computed: its value in `own` becomes the other's array.
    """
    uses = collections.Counter(v for eqn in eqns for v in eqn.inputs if v is not None)
    uses.update(v for v in outs if v is not None)
    alone: dict[Any, Any] = {}  # value -> that whose array it is, or will be computed from
    products, found = set(), dict[Any, int]()
    for eqn in eqns:
        terms = [alone[v] for v in eqn.inputs if v in alone and uses[v] == 1]
        for v in eqn.outputs:
            if v in own and eqn.name not in FUSED and eqn.name not in LOOPS:
                alone[v] = v
                products |= {v} if own_flops(eqn.eqn) and eqn.name not in KERNELS else set()
            elif terms and v not in own and eqn.name in ELEMENTWISE:
                first, last = terms[0], terms[-1]
                same = all(_bytes(v.aval) == sizes[own[term]] for term in terms)
                if same and eqn.name in ADDED and len(eqn.inputs) == 2:
                    first, last = sorted((first, last), key=lambda term: own[term])
                    if last in products:
                        own[last] = own[first]
                    found[v] = own[first]
                alone[v] = first
    return found


def _straight(
    eqns: list[Equation], own: Mapping[Any, int], sums: Mapping[Any, int]
) -> dict[Any, frozenset[int]]:
    """Arrays that an array is computed from element by element."""
    places = {**own, **sums}
    below: dict[Any, frozenset[int]] = {}
    found: dict[Any, frozenset[int]] = {}
    for eqn in eqns:
        arrays = frozenset(array for v in eqn.inputs for array in below.get(v, ()))
        for v in eqn.outputs:
            if v in own and eqn.name in ELEMENTWISE:
                found[v] = arrays
            fused = arrays if eqn.name in ELEMENTWISE else frozenset()
            below[v] = frozenset((places[v],)) if v in places else fused
    return found


def _roots_of(eqns: list[Equation], own: Mapping[Any, int]) -> dict[Any, frozenset[int]]:
    """The arrays that a value is read from."""
    roots: dict[Any, frozenset[int]] = {}
    for eqn in eqns:
        below = frozenset(array for v in eqn.inputs for array in roots.get(v, ()))
        for v in eqn.outputs:
            roots[v] = frozenset((own[v],)) if v in own else below
    return roots


def _bytes(aval: Any) -> int:
    itemsize = getattr(aval.dtype, "itemsize", 4)
    return math.prod(aval.shape) * itemsize
