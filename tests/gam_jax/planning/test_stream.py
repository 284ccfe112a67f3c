"""STREAM's bytes, and that a wrong kernel would not pass its self-check."""

from __future__ import annotations

import dataclasses

from gam_jax.planning import stream


def test_each_array_is_counted_once():
    found = {name: kernel.bytes(1000) for name, kernel in stream.KERNELS.items()}
    assert found == {"copy": 16_000, "scale": 16_000, "add": 24_000, "triad": 24_000}
    assert stream.KERNELS["triad"].bytes(10, itemsize=4) == 120


def test_the_self_check_passes_and_finds_an_array_that_is_wrong(monkeypatch):
    assert stream.self_check(100) < 1e-5
    wrong = dataclasses.replace(stream.KERNELS["add"], formula=lambda a, b: a - b)
    true_turn = stream.one_turn

    def turn(arrays):
        found = true_turn(arrays)
        return {**found, "c": wrong.formula(found["a"], found["b"])}

    monkeypatch.setattr(stream, "one_turn", turn)
    assert stream.self_check(100) > 0.01
