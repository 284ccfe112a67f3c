"""Baselines against counting by hand, and the compressors against themselves."""

from __future__ import annotations

import collections
import gzip
import itertools
import lzma
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.data import baselines as module
from gam_jax.data.baselines import baselines

tokens = st.lists(st.integers(0, 6), min_size=1, max_size=60)


def by_hand(train: list[int], validation: list[int], vocab: int, scored: list[int]):
    """Mean nats of unigram and Witten-Bell bigram, with dictionaries and loops."""
    counts = collections.Counter(train)
    pairs = collections.Counter(itertools.pairwise(train))
    unigram = {b: (counts[b] + 1) / (len(train) + vocab) for b in range(vocab)}
    sums = [0.0, 0.0]
    for i in scored:
        a, b = validation[i - 1], validation[i]
        after = {y: n for (x, y), n in pairs.items() if x == a}
        total, distinct = sum(after.values()), len(after)
        weight = total / (total + distinct) if total else 0.0
        maximum_likelihood = after.get(b, 0) / total if total else 0.0
        sums[0] -= math.log(unigram[b])
        sums[1] -= math.log(weight * maximum_likelihood + (1 - weight) * unigram[b])
    return [s / max(1, len(scored)) for s in sums]


@pytest.mark.parametrize("dense", [0, 1 << 24], ids=["sorted pairs", "table"])
@given(train=tokens, validation=tokens)
def test_counts_agree_with_counting_by_hand(dense, train, validation):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DENSE", dense)
        patch.setattr(module, "CHUNK", 7)  # so that several chunks meet
        found = baselines(np.array(train, np.uint16), np.array(validation, np.uint16), 7, 50, [])
    expected = by_hand(train, validation, 7, list(range(1, len(validation))))
    assert found["unigram"]["loss"] == pytest.approx(expected[0])
    assert found["bigram"]["loss"] == pytest.approx(expected[1])


@given(train=tokens, validation=tokens)
def test_with_gaps_between_windows_the_same_tokens_are_scored(train, validation):
    arrays = (np.array(train, np.uint16), np.array(validation, np.uint16))
    found = baselines(*arrays, 7, 50, [], window=4, stride=6)
    scored = [i for i in range(1, len(validation)) if 1 <= i % 6 <= 4]
    expected = by_hand(train, validation, 7, scored)
    assert found["unigram"]["loss"] == pytest.approx(expected[0])
    assert found["bigram"]["loss"] == pytest.approx(expected[1])


def test_figures_are_three_views_of_one_loss():
    train = np.array([0, 1, 2, 3] * 25, np.uint16)
    found = baselines(train, train[:40], 4, 80, ["some text"])
    for figures in found.values():
        assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
        assert figures["bits_per_byte"] == pytest.approx(figures["loss"] / math.log(2) * 40 / 80)
    assert found["unigram"]["loss"] == pytest.approx(math.log(4))
    assert found["bigram"]["loss"] < 0.1


def test_compressors_are_those_of_the_command_line():
    documents = [f"document {i} of some text that repeats itself\n" for i in range(500)]
    text = "".join(documents).encode()
    found = baselines(np.zeros(9, np.uint16), np.zeros(len(text), int), 256, len(text), documents)
    sizes = {"gzip": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text, preset=9))}
    for name, size in sizes.items():
        assert found[name]["bits_per_byte"] == pytest.approx(8 * size / len(text), rel=0.02)
        assert found[name]["text_bytes"] == len(text)


def test_only_the_start_of_a_very_long_text_is_compressed(monkeypatch):
    monkeypatch.setattr(module, "COMPRESSED", 1000)
    array = np.zeros(10, np.uint16)
    found = baselines(array, array, 256, 5000, ["x" * 300] * 20)
    assert found["gzip"]["text_bytes"] == found["xz"]["text_bytes"] == 1000
