"""Reproduced papers, one folder each."""
