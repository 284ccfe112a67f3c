"""Ops that can be computed in several ways: which layers have them, which ways there are.

`ops.py` says what a tunable op is, `table.py` lists all of them; `gam tune` times their ways and
`gam_jax.tuned` sets those that were found. A new op is one `Tunable` in that table.
"""
