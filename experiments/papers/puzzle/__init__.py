"""A child of a trained model's blocks, chosen by an integer program (Puzzle, arXiv 2411.19146)."""

from experiments.papers.puzzle.study import STUDY

__all__ = ["STUDY"]
