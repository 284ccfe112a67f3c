"""Clusters that are made up."""

from __future__ import annotations

from gam_jax.planning.cluster import Cluster, Level
from gam_jax.planning.profiles import Figure, Profile


def profile(flops: float = 1e12, bandwidth: float = 1e11, capacity: float = 1e9) -> Profile:
    """A device that says what plans ask for."""
    figures = {
        "flops.float32": (flops, "FLOP/s"),
        "flops.bfloat16": (flops, "FLOP/s"),
        "memory.device.capacity": (capacity, "B"),
        "memory.device.bandwidth": (bandwidth, "B/s"),
    }
    told = {name: Figure(*pair, "measured", "made up") for name, pair in figures.items()}
    return Profile("made", "made up", told)


def made(*levels: Level, **figures: float) -> Cluster:
    """A cluster of such devices."""
    return Cluster("made", profile(**figures), levels)
