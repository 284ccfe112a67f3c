"""Plans for serving and batches that grow as they go (APEX, arXiv 2411.17651)."""

from experiments.papers.apex.study import STUDY

__all__ = ["STUDY"]
