"""A paper as data: arms, measures, published figures and claims; one engine runs them all."""

from experiments.study.claim import Claim
from experiments.study.declare import Arm, Begins, Measure, Published, Setting, Study

__all__ = ["Arm", "Begins", "Claim", "Measure", "Published", "Setting", "Study"]
