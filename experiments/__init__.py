"""What people run: train, evaluate, sample, benchmark."""

import importlib.util

if importlib.util.find_spec("jax_plugins") is not None:
    import sharding  # noqa: F401, before any module of ours imports JAX: `sharding.plugins`
