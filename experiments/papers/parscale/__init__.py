"""Parallel scaling streams (ParScale, arXiv 2505.10475): what they cost and what they bring."""

from experiments.papers.parscale.study import STUDY

__all__ = ["STUDY"]
