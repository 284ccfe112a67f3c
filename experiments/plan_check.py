"""Predicted memory beside a compiler's, for models and meshes of every kind."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from experiments.abstract_step import lowered
from experiments.planned import run_of
from gam_jax.data.text import Text
from gam_jax.layers import GAM, Attention, Block, Layer, Mamba2, MoE
from gam_jax.models.language import LanguageModel
from gam_jax.planning import profile_of
from gam_jax.planning.work import Candidate, own_trace, work_of
from gam_jax.training.experiment import Experiment, TrainConfig
from sharding.layout import Layout
from sharding.mesh import AXIS_NAMES, mesh_from_text
from sharding.parallel import Parallel
from sharding.topology import Topology, compiled

WIDTH, DEPTH, VOCAB, WINDOW, BATCH = 512, 4, 8192, 1024, 32

BLOCKS: dict[str, Layer] = {
    "gam": Block(GAM(slots=256, kernel=4)),
    "attention": Block(Attention(heads=8, context=WINDOW)),
    "mamba2": Block(Mamba2()),
    "moe": Block(GAM(slots=256, kernel=4), ffn=MoE(experts=8, chosen=2)),
}
"""What repeats in each model."""

CASES = (
    ("gam", "data=8", "data", False),
    ("gam", "data=8", "fully_sharded", True),
    ("gam", "data=2,tensor=4", "data+tensor_tokens", False),
    ("gam", "data=2,seq=4", "data+sequence", False),
    ("attention", "data=8", "zero1", True),
    ("attention", "data=8", "fully_sharded", False),
    ("attention", "data=2,tensor=4", "fully_sharded+tensor", True),
    ("attention", "data=2,seq=4", "data+sequence", True),
    ("mamba2", "data=8", "fully_sharded", True),
    ("mamba2", "data=2,tensor=4", "data+tensor_tokens", False),
    ("moe", "data=2,expert=4", "data", False),
    ("moe", "data=8", "fully_sharded", True),
)
"""Model, mesh, preset and remat: GAM, attention, Mamba-2, experts; data, ZeRO, tensor, seq."""


def case(name: str, preset: str, remat: bool) -> Experiment:
    """A language model in bfloat16, small enough to compile in seconds."""
    model = LanguageModel(
        BLOCKS[name], width=WIDTH, depth=DEPTH, vocab=VOCAB, dtype="bfloat16", remat=remat
    )
    return Experiment(
        model, Text(window=WINDOW), train=TrainConfig(batch=BATCH), parallel=Parallel(preset)
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """Bytes held at most, on each device.

    Attributes:
      case: in words.
      predicted: by the planner.
      compiled: by the machine's compiler; None where it refuses.
      memory: that programs can use.
    """

    case: str
    predicted: int
    compiled: int | None
    memory: int

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what the compiler says."""
        return 0.0 if self.compiled is None else self.predicted / self.compiled - 1

    @property
    def wrong(self) -> bool:
        """Whether it is said to fit, and does not."""
        fits = self.compiled is not None and self.compiled <= self.memory
        return self.predicted <= self.memory and not fits

    @property
    def shown(self) -> str:
        """In one line."""
        told = "refused" if self.compiled is None else f"{self.compiled:,} ({self.error:+.1%})"
        return f"{self.case}: predicted {self.predicted:,}, compiled {told}"


def rows(machine: Topology, cases: Sequence[tuple[str, str, str, bool]] = CASES) -> Iterator[Row]:
    """Each case, predicted and compiled."""
    for name, mesh, preset, remat in cases:
        experiment = case(name, preset, remat)
        layout = Layout(
            mesh_from_text(mesh, "", machine.devices, machine.hosts), experiment.parallel
        )
        step, state, batch = lowered(experiment, layout)
        found = compiled(step, (state, batch), machine)
        shown = f"{name} {mesh} {preset}{' remat' if remat else ''}"
        yield Row(shown, predicted(experiment, layout), found.held, machine.memory)


def predicted(experiment: Experiment, layout: Layout) -> int:
    """Bytes held at most, by the planner."""
    sizes = tuple((name, layout.mesh.shape.get(name, 1)) for name in AXIS_NAMES)
    remat = bool(getattr(experiment.model, "remat", False))
    one = Candidate(sizes, layout.parallel.preset, experiment.train.accumulate, remat)
    kind = layout.mesh.devices.flat[0].device_kind
    run = run_of(experiment, profile_of(kind))
    traced = own_trace(run, one)
    return round(work_of(run, one, traced).held)


def errors(found: Sequence[Row]) -> dict[str, float]:
    """The mean, the 90th percentile and the worst of absolute errors, of what compiles.

    The rule by which "Analyzing Modern NVIDIA GPU Cores" (arXiv 2503.20481) judges a simulator.
    """
    sizes = sorted(abs(row.error) for row in found if row.compiled is not None)
    if not sizes:
        return {}
    ninth = sizes[min(len(sizes) - 1, round(0.9 * (len(sizes) - 1)))]
    return {"mean": statistics.fmean(sizes), "p90": ninth, "worst": sizes[-1]}
