"""What a study is: a paper's question said as data, which the engine then answers."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.study.claim import Claim
from gam_jax.data.base import Dataset
from gam_jax.params import Params
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder

if TYPE_CHECKING:
    from experiments.study.found import Found

SHORT, CPU, PAPER = "short", "cpu", "paper"
"""Scales: seconds, for tests; minutes, on a laptop; the published size, for accelerators."""

Numbers = Mapping[str, float]
"""Measure -> value."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a study is run: what a person may change of it.

    Attributes:
      scale: one of the study's scales.
      data: name of the data that is read; the study's own if empty.
      data_dir: where data sets are kept.
      steps: updates of each run; the study's own if 0.
      learning_rate: the highest; the study's own if 0.
    """

    scale: str = CPU
    data: str = ""
    data_dir: str = ""
    steps: int = 0
    learning_rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is told of an arm.

    Attributes:
      title: the heading of its column.
      better: "lower", "higher", or "" where neither is better.
      unit: "nats a token", "s", "tokens/s", "B", "%"; "" for a plain number.
      form: how a value is written, as Python's format.
    """

    title: str
    better: str = ""
    unit: str = ""
    form: str = ".4f"


@dataclasses.dataclass(frozen=True)
class Begins:
    """Parameters that a run begins with, from runs of other arms with the same seed.

    Attributes:
      arms: whose; they are run first.
      make: (experiment, the arms' experiments, their parameters, seed) -> parameters; None takes
        over from the one arm what has the same name and shape.
    """

    arms: tuple[str, ...]
    make: Callable[[Experiment, Sequence[Experiment], Sequence[Params], int], Params] | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """One thing that is compared with others. It has exactly one of the three ways to be measured.

    Attributes:
      title: as tables show it.
      experiment: a training run; its last validation gives the measures.
      numbers: (setting, seed) -> measures: a closed formula, or a computation of its own.
      timed: setting -> measure -> a call; calls of all arms take turns, and their seconds are
        the measure's values.
      exact: of `numbers`: whether no seed plays a part.
      begins: what a run begins with; None for new parameters.
      fitted: (experiment, opened data) -> experiment, where the data decide something, as the
        steps of an epoch.
      also: (run folder, experiment) -> further measures of a finished run.
      default: whether it takes part where no arms are named.
      reads: a file that is no part of the project and that `Setting.data` must name; such an arm
        takes part only where it is named. "" for none.
    """

    title: str
    experiment: Callable[[Setting], Experiment] | None = None
    numbers: Callable[[Setting, int], Numbers] | None = None
    timed: Callable[[Setting], Mapping[str, Callable[[], Any]]] | None = None
    exact: bool = False
    begins: Begins | None = None
    fitted: Callable[[Experiment, Dataset], Experiment] | None = None
    also: Callable[[RunFolder, Experiment], Numbers] | None = None
    default: bool = True
    reads: str = ""

    def __post_init__(self) -> None:
        ways = [w for w in (self.experiment, self.numbers, self.timed) if w is not None]
        if not ways or (self.experiment is not None and len(ways) > 1):
            raise ValueError(f"arm '{self.title}': give an experiment, or numbers and timed calls")


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure that a paper prints.

    Attributes:
      arm, measure: of which it is.
      value: as printed.
      table: where: "Table 1".
    """

    arm: str
    measure: str
    value: float
    table: str


def as_printed(claims: Sequence[Claim]) -> tuple[Published, ...]:
    """The published figures of claims of the kind "printed"."""
    return tuple(
        Published(arm, claim.measure, float(figure), claim.source)
        for claim in claims
        for arm, figure in zip(claim.arms, claim.figures, strict=False)
    )


def closed(title: str, numbers: Callable[[], Numbers]) -> Arm:
    """An arm of a closed formula, in which neither a setting nor a seed plays a part."""
    return Arm(title, numbers=lambda setting, seed: numbers(), exact=True)


@dataclasses.dataclass(frozen=True)
class Absent:
    """What a paper publishes and cannot be had here.

    Attributes:
      text: the figure or the claim.
      reason: why.
    """

    text: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Study:
    """A paper's question.

    Attributes:
      name: of the command: `study run NAME`.
      title: in words.
      source: the paper.
      page: of the documentation that tells it.
      arms: by name.
      measures: by name, the most important one first.
      published: the paper's figures.
      claims: what it says, or what is asked here.
      scales: their names; the second one is taken if none is named.
      groups: named subsets of the arms, such as a table of the paper.
      figure: draws what was found; None for points of the first measure.
      notes: what a reader of the figures must know.
      absent: what the paper publishes and is not seen here, for the page of claims.
    """

    name: str
    title: str
    source: str
    page: str
    arms: Mapping[str, Arm]
    measures: Mapping[str, Measure]
    published: tuple[Published, ...] = ()
    claims: tuple[Claim, ...] = ()
    scales: tuple[str, ...] = (SHORT, CPU)
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    figure: Callable[[Study, Found, pathlib.Path], None] | None = None
    notes: tuple[str, ...] = ()
    absent: tuple[Absent, ...] = ()

    def __post_init__(self) -> None:
        for claim in self.claims:
            claim.check(self.arms, self.measures, self.name)
        for figure in self.published:
            if figure.arm not in self.arms or figure.measure not in self.measures:
                raise ValueError(f"study {self.name}: {figure} is of no arm or measure of it")

    @property
    def default_arms(self) -> tuple[str, ...]:
        """Those that are run where none are named."""
        return tuple(name for name, arm in self.arms.items() if arm.default and not arm.reads)
