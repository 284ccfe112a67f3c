"""A table of all layers: whether a machine's compiler takes a training step of each, and how.

Each layer stands in a language model of two blocks, as small as tells something.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.abstract_step import lowered
from gam_jax.config import unknown
from gam_jax.data.text import Text
from gam_jax.layers import (
    GAM,
    GRU,
    LAYERS,
    LSTM,
    MHS,
    MLP,
    TCN,
    TCNCA,
    Adapted,
    Attention,
    Bidirectional,
    Block,
    Chunked,
    Elman,
    FalconH1,
    FusedDelta,
    InTurn,
    LatentAttention,
    Layer,
    LayerNorm,
    Linear,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    Mixed,
    MoE,
    MoFME,
    Nested,
    NoOp,
    ParScale,
    Pattern,
    ProductMemory,
    Residual,
    RMSNorm,
    Series,
    Shallow,
    SoftMixture,
    Stack,
    WrittenGAM,
)
from gam_jax.models import LanguageModel
from gam_jax.training.experiment import Experiment, TrainConfig
from sharding.chains import longest_chain
from sharding.errors import UserError, one_line
from sharding.layout import Layout
from sharding.mesh import mesh_from_text
from sharding.parallel import Parallel
from sharding.topology import Topology, compiled

WIDTH, VOCAB, ROWS = 128, 512, 8
TOKENS, MANY_TOKENS = 512, 8192
MESHES = {
    "data=2,tensor=2": "fully_sharded+tensor_tokens",
    "data=2,seq=2": "data+sequence",
}
"""Mesh -> preset: state in shards and layers split; tokens split."""
PAGE = pathlib.Path("docs/accelerators.md")

_GAM = GAM(slots=128)
_ATTENTION = Attention(heads=4, context=MANY_TOKENS)
_MAMBA2 = Mamba2(head=32, state=16)
_MEMORY = LinearMemory(heads=4)

BLOCKS: dict[type, Layer] = {
    Adapted: Adapted(Block(_GAM), rank=4),
    Attention: Block(_ATTENTION),
    Bidirectional: Block(Bidirectional(GRU())),
    Block: Block(_GAM),
    Chunked: Block(Chunked(_GAM, size=256)),
    Elman: Block(Elman()),
    FalconH1: Block(FalconH1(_ATTENTION, dataclasses.replace(_MAMBA2, norm="none"))),
    FusedDelta: Block(FusedDelta(heads=4)),
    GAM: Block(_GAM),
    GRU: Block(GRU()),
    InTurn: InTurn((Block(_GAM), Residual(GRU()))),
    LSTM: Block(LSTM()),
    LatentAttention: Block(LatentAttention(heads=4, context=MANY_TOKENS)),
    LayerNorm: Block(_GAM, norm=LayerNorm()),
    Linear: Block(_GAM, Linear()),
    LinearMemory: Block(_MEMORY),
    MHS: Block(MHS(head=4)),
    MLP: Block(_GAM, MLP(activation="swiglu")),
    Mamba: Block(Mamba()),
    Mamba2: Block(_MAMBA2),
    MinimalRNN: Block(MinimalRNN()),
    Mixed: Block(Mixed((_GAM, _MEMORY), share=2)),
    MoE: Block(_GAM, MoE()),
    ParScale: Block(_GAM),  # of two streams, see `model_of`
    MoFME: Block(_GAM, MoFME()),
    Nested: Block(_GAM, Nested(MLP(hidden=256), "hidden", (64, 128, 256), "softmax")),
    NoOp: Block(_GAM, NoOp()),
    Pattern: Pattern((Block(_GAM), Residual(_MEMORY)), (0, 1)),
    ProductMemory: Block(_GAM, ProductMemory(side=32, keys=16)),
    RMSNorm: Block(_GAM, norm=RMSNorm()),
    Residual: Residual(_MEMORY),
    Series: Series(Block(_MEMORY), Residual(GRU())),
    Shallow: Shallow(Block(_MEMORY), 2),
    SoftMixture: Block(SoftMixture(_MEMORY, 2)),
    Stack: Block(_GAM),
    TCN: Block(TCN()),
    TCNCA: Block(TCNCA()),
    WrittenGAM: Block(WrittenGAM(_MEMORY)),
}
"""Of every layer a block with it, sized so that two devices divide it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of a layer's training step.

    Attributes:
      layer: its name.
      held: for each mesh, the most bytes that a device holds, or why there are none.
      chains: turns of loops that follow one another in a step, at each number of tokens; None
        where no language model holds the layer.
      seconds: to compile for all meshes.
    """

    layer: str
    held: tuple[int | str, ...]
    chains: tuple[int | None, ...]
    seconds: float


def experiment_of(layer: type, tokens: int, preset: str) -> Experiment:
    """A language model of two blocks with the layer, in bfloat16."""
    model = LanguageModel(
        BLOCKS[layer],
        width=WIDTH,
        depth=2,
        vocab=VOCAB,
        dtype="bfloat16",
        streams=2 if layer is ParScale else 1,
    )
    data, train = Text(window=tokens), TrainConfig(batch=ROWS)
    return Experiment(model, data, train=train, parallel=Parallel(preset))


def row_of(layer: type, machine: Topology) -> Row:
    """Compiles a step of a layer on every mesh."""
    held: list[int | str] = []
    chains: list[int | None] = []
    seconds = 0.0
    for mesh, preset in MESHES.items():
        try:
            step, *args = step_of(layer, TOKENS, mesh, preset, machine)
            traced = step.trace(*args)
            if not held:  # the first mesh splits no tokens
                longer, *others = step_of(layer, MANY_TOKENS, mesh, preset, machine)
                both = (traced, longer.trace(*others))
                chains = [longest_chain(one.jaxpr.jaxpr) for one in both]
        except ValueError as error:
            held.append(one_line(str(error)))
            continue
        found = compiled(traced, (), machine)
        seconds += found.seconds
        held.append(found.reason or found.held or 0)
    return Row(layer.__name__, tuple(held), tuple(chains) or (None, None), seconds)


def step_of(
    layer: type, tokens: int, mesh: str, preset: str, machine: Topology
) -> tuple[Any, Any, Any]:
    """A layer's training step on a mesh of the machine, and shapes of what it is given.

    Raises:
      ValueError: no language model holds the layer, or tracing the step says what does not fit.
    """
    experiment = experiment_of(layer, tokens, preset)
    devices = mesh_from_text(mesh, "", machine.devices, machine.hosts)
    return lowered(experiment, Layout(devices, experiment.parallel))


def chosen(names: Sequence[str]) -> list[type]:
    """The layers of these names, all if there are none, in the order of `LAYERS`.

    Raises:
      UserError: there is no layer of a name.
    """
    for name in names:
        if name not in LAYERS:
            raise UserError(f"--layers: {unknown(name, LAYERS, 'layer')}")
    return [layer for name, layer in LAYERS.items() if name in names or not names]


def rows(
    machine: Topology, layers: Sequence[type], say: Callable[[str], Any] = lambda _: None
) -> Iterator[Row]:
    """Those of some layers, each as soon as it is there; `say` is told how many are left."""
    begun = time.monotonic()
    for done, layer in enumerate(layers, 1):
        yield row_of(layer, machine)
        left = len(layers) - done
        guess = (time.monotonic() - begun) / done * left / 60
        say(f"{done} of {len(layers)} layers" + (f", about {guess:.0f} min left" if left else ""))


def table(found: Sequence[Row]) -> str:
    """The rows in Markdown."""
    return _with_head([_line(row) for row in found])


def _with_head(lines: list[str]) -> str:
    heads = " | ".join(f"bytes held, {mesh}" for mesh in MESHES)
    first = f"| layer | {heads} | turns at {TOKENS:,} tokens | at {MANY_TOKENS:,} | seconds |"
    return "\n".join((first, f"|{'---|' * (len(MESHES) + 4)}", *lines))


def _line(row: Row) -> str:
    found = (*row.held, *row.chains)
    cells = [f"{x:,}" if isinstance(x, int) else (x or "-").replace("|", "\\|") for x in found]
    return f"| `{row.layer}` | {' | '.join(cells)} | {row.seconds:.1f} |"


def kept(page: str, name: str, found: Sequence[Row]) -> str:
    """A page with these rows between the marks of a machine, in place of those before.

    Rows of other layers stay, and all stand in the order of `LAYERS`. A page without the marks is
    given back as it is.
    """
    begin, end = f"<!-- every layer: {name} -->", "<!-- end -->"
    part = re.compile(rf"{re.escape(begin)}(.*?){re.escape(end)}", re.DOTALL)

    def renewed(place: re.Match[str]) -> str:
        lines = {
            line.split("`")[1]: line for line in re.findall(r"^\| `.*$", place[1], re.MULTILINE)
        }
        lines |= {row.layer: _line(row) for row in found}
        text = _with_head([lines[layer] for layer in LAYERS if layer in lines])
        return f"{begin}\n\n{text}\n\n{end}"

    return part.sub(renewed, page)
