"""A paper as data: arms, measures, published figures and claims; one engine runs them all."""

from experiments.study.claim import Claim
from experiments.study.declare import (
    Absent,
    Arm,
    Begins,
    Measure,
    Published,
    Setting,
    Study,
    as_printed,
    closed,
)

__all__ = [
    "Absent",
    "Arm",
    "Begins",
    "Claim",
    "Measure",
    "Published",
    "Setting",
    "Study",
    "as_printed",
    "closed",
]
