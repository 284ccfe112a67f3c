"""Drafts guess, and are given up where they do not pay."""

import argparse
import heapq
import inspect
import math
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.serve.drafts import Draft, Lookup, NgramDraft, RunDraft
from gam_jax.serve.executor import Draws
from gam_jax.serve.pace import EXCESS, LONGEST, MARGIN, TRIAL, Pace, Shadow
from gam_jax.serve.request import Counts
from gam_jax.serve.seating import Settings
from sharding.errors import UserError
from tests.gam_jax.serve.fake import FakeExecutor, alone
from tests.gam_jax.serve.test_service import BUDGET, VOCAB, Always, Load, sizes_of


def slow_repeated(tokens, most, longest):
    """By its words: the longest end that stands in the text before, and its latest place."""
    for size in range(min(longest, len(tokens) - 1), 0, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[-size:]:
                follows = list(tokens)
                while len(follows) < len(tokens) + most:
                    follows.append(follows[start + size + len(follows) - len(tokens)])
                return follows[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 4))
def test_an_ngram_draft_is_prompt_lookup(tokens, most, longest):
    lookup = Lookup(longest)
    for end in range(1, len(tokens) + 1):
        assert lookup.guess(tokens[:end], most) == slow_repeated(tokens[:end], most, longest)
    assert lookup.guess(tokens, 0) == []


@given(st.integers(2, 9), st.integers(0, 10**6), st.integers(1, 60))
def test_the_shadow_of_a_draft_counts_the_passes_that_it_would_have_saved(block, seed, count):
    """Beside the service with that draft switched on from the start."""
    draws, vocab = Draws(temperature=0), 5
    load = Load(sizes_of(1, block, vocab=vocab), Settings(BUDGET, snapshots=0), NgramDraft())
    load.service._pace = Always(block)
    text = load.ask([1, 2, 3, 1, 2], count=count, seed=seed, draws=draws)
    load.run()
    tokens, shadow, lookup, passes = [1, 2, 3, 1], Shadow(block), Lookup(), []
    for token in [2, *text.tokens]:
        tokens.append(token)
        passes += shadow.push(tokens, 1, lookup.guess)
    counts = load.service.counts()
    # The service asks for no more guesses than the text has room for.
    assert 0 <= counts.passes - len(passes) <= 2


def simulated(pace, gives, cost, passes):
    """Time with and without a draft that gives so many tokens a pass, of a text that is written."""
    time = tokens = 0.0
    pace.timed(1, 1.0)
    pace.timed(16, cost)
    for place in range(passes):
        if pace.pays():
            pace.guessed(0, gives(place))
            time, tokens = time + cost, tokens + gives(place)
        else:
            pace.wrote(1)
            if pace._free:
                pace._gave(gives(place))
            time, tokens = time + 1, tokens + 1
    return time, tokens


@given(st.booleans(), st.floats(1.5, 6), st.integers(0, 10**6))
def test_a_draft_that_does_not_pay_costs_a_twentieth_at_most(free, cost, seed):
    rng = np.random.default_rng(seed)
    time, tokens = simulated(Pace(16, free, cost), lambda _: 1 + (rng.random() < 0.1), cost, 2000)
    first = 0 if free else 24 * cost  # it must be tried once
    assert time <= tokens * (1 + EXCESS) * 1.01 + first + 8 * cost


@given(st.booleans(), st.floats(1.2, 4))
def test_a_draft_that_pays_is_kept(free, cost):
    gave = int(cost * MARGIN * 1.5) + 1
    time, tokens = simulated(Pace(16, free, cost), lambda _: gave, cost, 3000)
    assert time / tokens < 1.15 * cost / gave


def test_a_text_that_repeats_itself_takes_fewer_passes():
    draws = Draws(temperature=0)
    counts = []
    for draft in (None, NgramDraft()):
        load = Load(sizes_of(2, 6, vocab=3), Settings(BUDGET), draft)
        texts = [load.ask([1, seed % 3], count=120, seed=seed, draws=draws) for seed in range(4)]
        load.run()
        counts.append(load.service.counts())
        assert [len(text.tokens) for text in texts] == [120] * 4
    assert counts[0].passes == 480
    assert counts[1].passes < 480 / 1.5
    assert counts[1].accepted <= counts[1].guessed


class Coin(Draft):
    """Knows how a text goes on, and says so with a probability."""

    def __init__(self, text, chance):
        self.text, self.chance, self.random = text, chance, np.random.default_rng(0)

    def guess(self, asked):
        """Wrong guesses are of no token that follows."""
        found = {}
        for row, (tokens, most) in asked.items():
            right = self.random.random(most) < self.chance
            follows = self.text[len(tokens) : len(tokens) + most]
            pairs = zip(follows, right, strict=False)
            found[row] = [token if own else (token + 1) % VOCAB for token, own in pairs]
        return found


@pytest.mark.parametrize(("chance", "replayed"), [(0.5, 1.88), (0.7, 2.90), (0.8, 3.99)])
def test_tokens_a_pass_stand_beside_the_ideal(chance, replayed):
    """The ideal is by the measured acceptance; what is read again after a fall costs the rest.

    The figures are of a simulation of such blocks.
    """
    count, block = 2000, 16
    text = [1, *alone([1], count, 0, Draws(), VOCAB)]
    load = Load(sizes_of(1, block), Settings(BUDGET, snapshots=0), Coin(text, chance))
    load.service._pace = Always(block)
    asked = load.ask([1], count=count)
    load.run()
    assert asked.tokens == text[1:]
    counts = load.service.counts()
    assert counts.acceptance == pytest.approx(chance, abs=0.03)
    assert counts.tokens_a_pass == pytest.approx(replayed, rel=0.08)
    a = counts.acceptance
    assert counts.ideal_tokens_a_pass == pytest.approx(sum(a**i for i in range(block)))
    assert counts.tokens_a_pass < counts.ideal_tokens_a_pass


@pytest.mark.parametrize("length", [10, 100])
def test_a_draft_that_was_given_up_is_tried_as_often_whatever_texts_are_long(length):
    """A pass of it costs two; what it has cost by the end is as near to its bound as a trial is."""
    written, wrong = 4000, Coin([0] * length, 0.0)
    load = Load(sizes_of(2, 4), Settings(BUDGET, snapshots=0), wrong)
    for seed in range(written // length):
        load.ask([0], count=length, seed=seed)
    load.run()
    counts = load.service.counts()
    excess = 2 * counts.guessed_passes - counts.guessed_written
    time = written + excess
    first = 24  # by which it is given up
    assert EXCESS * time - first - 2 * TRIAL <= excess <= EXCESS * time + first


def test_without_guesses_there_is_no_acceptance():
    counts = Counts()
    assert math.isnan(counts.acceptance)
    assert math.isnan(counts.tokens_a_pass)
    assert math.isnan(counts.ideal_tokens_a_pass)


def test_a_draft_of_another_vocabulary_or_number_of_rows_is_refused():
    for other, message in ((sizes_of(2, vocab=9), "vocab are 9, "), (sizes_of(3), "rows are 3, ")):
        with pytest.raises(UserError, match=message):
            RunDraft(FakeExecutor(other), sizes_of(2))


@pytest.mark.parametrize("module", [argparse, heapq, textwrap], ids=lambda module: module.__name__)
def test_library_code_is_written_in_two_thirds_of_the_passes(module):
    """By a model that writes just this code; bytes, blocks of 16."""
    code = list(inspect.getsource(module).encode())[:5000]
    shadow, lookup = Shadow(16), Lookup()
    passes = [len(shadow.push(code[:end], 1, lookup.guess)) for end in range(1000, len(code))]
    assert sum(passes) < (len(code) - 1000) / 1.5


def test_a_mode_is_kept_while_it_is_about_as_good_as_the_other():
    pace = Pace(16, cost=2.0)
    modes = []
    for number in range(400):
        pace.rate = 2.1 + 0.09 * (-1) ** number  # never worth a beginning, always worth going on
        modes.append(pace.pays())
    assert not any(modes)
    pace.rate = 2.5
    assert pace.pays()
    for number in range(100):
        pace.rate = 2.1 + 0.09 * (-1) ** number
        assert pace.pays()
    pace.rate = 1.9
    assert not pace.pays()


def test_a_pass_that_waits_for_the_machine_hardly_counts():
    pace, rng = Pace(16), np.random.default_rng(0)
    for _ in range(300):
        for width, seconds in ((1, 1e-3), (16, 3e-3)):
            late = rng.random() < 0.1
            pace.timed(width, seconds * rng.uniform(0.9, 1.1) * (100 if late else 1))
    assert pace.cost == pytest.approx(3, rel=0.25)


def test_a_text_that_cannot_be_guessed_is_seldom_guessed():
    guessed = []

    def guess(tokens, most):
        guessed.append(len(tokens))
        return [-1]

    tokens, shadow, passes = [], Shadow(4, pause=3), []
    for token in range(101):
        tokens.append(token)
        passes += shadow.push(tokens, 1, guess)
    assert passes == [1] * 26  # as if there were a guess after each fourth token
    assert guessed == [1, 5, 13, 29, 61]


def test_a_text_that_begins_to_repeat_itself_is_guessed_again():
    """After noise, within the longest pause; from then on in each pass."""
    rng = np.random.default_rng(0)
    tokens, passes = rng.integers(0, 10**6, 300).tolist(), []
    shadow, lookup = Shadow(4, pause=3), Lookup()
    for end in range(1, len(tokens) + 1):
        passes += shadow.push(tokens[:end], 1, lookup.guess)
    assert passes == [1] * len(passes)
    assert abs(len(passes) - len(tokens) / 4) <= 1
    passes = []
    for _ in range(2 * LONGEST):
        tokens.append(tokens[-3])
        passes += shadow.push(tokens, 1, lookup.guess)
    right = [gave for gave in passes if gave > 1]
    assert sum(right) >= len(passes) > len(right) > 10
