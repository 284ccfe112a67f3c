"""Nets and the devices that they run on, searched at once (NASAIC, arXiv 2002.04116)."""

from experiments.papers.nasaic.study import STUDY

__all__ = ["STUDY"]
