"""Timings: medians of several runs, ratios within one process."""
