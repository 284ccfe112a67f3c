"""The tables of the Gated Associative Memory paper (arXiv 2509.00605)."""

from experiments.papers.gam.study import STUDY

__all__ = ["STUDY"]
