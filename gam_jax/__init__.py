"""Parallel sequence architectures as pure JAX functions."""
