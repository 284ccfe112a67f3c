"""When a claim holds, when it does not, and when nothing can be said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.study.claim import (
    HOLDS,
    NOT_RUN,
    ONE_SEED,
    REVERSED,
    UNCLEAR,
    Claim,
    Summary,
    Values,
)

OPPOSITE = {HOLDS: REVERSED, REVERSED: HOLDS, UNCLEAR: UNCLEAR, ONE_SEED: ONE_SEED}


def seeds(*values):
    """Values of seeds 0, 1, ..."""
    return Values(values, "seeds", tuple(range(len(values))))


def turns(*values):
    """Seconds of turns."""
    return Values(values, "turns")


def exact(value):
    """A number without noise."""
    return Values((value,), "exact")


def kept(mean, deviation, count):
    """Of seeds whose values are not known one by one."""
    return Values((), "seeds", (), Summary(mean, count, deviation))


def verdict(kind, *values, value=0.0, tolerance=0.0):
    """The word for arms a, b, ... of these values."""
    found = dict(zip("abcdef", values, strict=False))
    claim = Claim("", kind, tuple(found), "loss", value, tolerance)
    return claim.judge(found).word


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (seeds(2.0, 2.01, 1.99), seeds(3.0, 3.01, 2.99), HOLDS),
        (seeds(3.0, 3.01, 2.99), seeds(2.0, 2.01, 1.99), REVERSED),
        (seeds(2.0, 2.4, 1.6), seeds(2.5, 1.6, 2.3), UNCLEAR),
        (seeds(2.0), seeds(3.0), ONE_SEED),
        (exact(2.0), exact(3.0), HOLDS),
        (exact(3.0), exact(2.0), REVERSED),
        (exact(2.0), seeds(3.0, 3.01), HOLDS),
        (exact(2.0), seeds(3.0), ONE_SEED),
        # A measure that one of three seeds did not give.
        (Values((2.0, 2.01), "seeds", (0, 1, 2)), seeds(3.0, 3.01, 2.99), HOLDS),
        (kept(2.0, 0.01, 3), kept(3.0, 0.01, 3), HOLDS),
        (kept(3.0, 0.01, 2), seeds(2.0, 2.01), REVERSED),
        (kept(2.0, 2.0, 3), kept(3.0, 2.0, 3), UNCLEAR),
        (kept(2.0, None, 3), kept(3.0, 0.01, 3), UNCLEAR),
        (kept(2.0, 0.01, 3), seeds(3.0), ONE_SEED),
    ],
)
def test_lower_holds_beyond_the_noise_or_is_not_claimed(first, second, word):
    assert verdict("lower", first, second) == word
    assert verdict("higher", first, second) == OPPOSITE[word]


def test_seeds_are_compared_one_by_one_where_both_have_the_same():
    """Each seed gains 0.1, and seeds lie 1 apart: noise between arms says nothing of it."""
    first, second = seeds(1.0, 2.0, 3.0), seeds(1.1, 2.11, 3.09)
    assert verdict("lower", first, second) == HOLDS
    others = Values(second.values, "seeds", (3, 4, 5))
    assert verdict("lower", first, others) == UNCLEAR


def test_a_claim_about_what_was_not_run_says_so():
    claim = Claim("", "lower", ("a", "b"), "loss")
    found = claim.judge({"a": seeds(1.0, 1.1)})
    assert (found.word, found.detail) == (NOT_RUN, "without b")
    assert claim.judge({}).word == NOT_RUN


@pytest.mark.parametrize(
    ("quick", "slow", "word"),
    [
        (turns(1.0, 1.1, 0.9), turns(2.0, 2.1, 1.9), HOLDS),
        (turns(2.0, 2.1, 1.9), turns(1.0, 1.1, 0.9), REVERSED),
        (turns(1.0, 1.1, 2.0), turns(1.5, 1.0, 2.0), UNCLEAR),
    ],
)
def test_faster_is_said_where_quartiles_do_not_meet(quick, slow, word):
    assert verdict("faster", quick, slow) == word


def test_one_slow_turn_changes_no_verdict():
    quick, slow = (1.0, 1.01, 0.99, 1.0, 1.0), turns(*[2.0] * 5)
    assert verdict("faster", turns(*quick), slow) == HOLDS
    assert verdict("faster", turns(*quick[:-1], 60.0), slow) == HOLDS


@pytest.mark.parametrize(
    ("kind", "own", "word"),
    [
        ("near", exact(5.4), HOLDS),
        ("near", exact(5.6), REVERSED),
        ("near", seeds(5.0, 5.02, 4.98), HOLDS),
        ("near", seeds(7.0, 7.02, 6.98), REVERSED),
        ("near", seeds(5.0, 6.0, 5.4), UNCLEAR),
        ("near", seeds(5.0), ONE_SEED),
        ("at_most", exact(5.0), HOLDS),
        ("at_most", seeds(4.0, 4.1), HOLDS),
        ("at_most", seeds(6.0, 6.1), REVERSED),
        ("at_most", seeds(4.0, 6.1), UNCLEAR),
        ("at_least", seeds(6.0, 6.1), HOLDS),
        ("at_least", seeds(4.0, 4.1), REVERSED),
        ("at_least", kept(6.0, None, 2), UNCLEAR),
        ("at_least", kept(6.0, 0.1, 2), HOLDS),
    ],
)
def test_a_bound_of_5_with_a_tolerance_of_a_half_for_near(kind, own, word):
    assert verdict(kind, own, value=5.0, tolerance=0.5 if kind == "near" else 0.0) == word


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (exact(29.0), exact(10.0), HOLDS),
        (exact(31.0), exact(10.0), REVERSED),
        (turns(20.0, 20.1, 19.9), turns(10.0, 10.1, 9.9), HOLDS),
        (turns(30.0, 20.1, 39.9), turns(10.0, 10.1, 9.9), UNCLEAR),
        (seeds(40.0, 40.1), exact(10.0), REVERSED),
        (seeds(40.0), exact(10.0), ONE_SEED),
    ],
)
def test_at_most_three_times_as_much(first, second, word):
    assert verdict("times_at_most", first, second, value=3.0) == word
    assert verdict("times_at_least", first, second, value=3.0) == OPPOSITE[word]


def test_an_order_is_as_sure_as_its_least_sure_pair():
    low, middle, high = (seeds(m, m + 0.01, m - 0.02) for m in (1.0, 2.0, 3.0))
    wide = seeds(1.0, 2.5, 3.0)
    assert verdict("ordered", low, middle, high) == HOLDS
    assert verdict("ordered", low, high, middle) == REVERSED
    assert verdict("ordered", low, wide, high) == UNCLEAR
    assert verdict("ordered", low, middle, seeds(3.0)) == ONE_SEED


numbers = st.floats(0.5, 9.5)
samples = st.lists(numbers, min_size=1, max_size=5).map(lambda v: seeds(*v))
times = st.lists(numbers, min_size=1, max_size=7).map(lambda v: turns(*v))


@given(first=samples | numbers.map(exact), second=samples | numbers.map(exact))
def test_swapping_the_arms_swaps_holds_and_reversed(first, second):
    for kind in ("lower", "higher"):
        word = verdict(kind, first, second)
        if first.mean != second.mean:  # of exact equals neither is lower
            assert verdict(kind, second, first) == OPPOSITE[word]
        assert verdict("lower", first, second) == verdict("higher", second, first)


@given(first=times, second=times)
def test_swapping_what_was_timed_swaps_holds_and_reversed(first, second):
    assert verdict("faster", second, first) == OPPOSITE[verdict("faster", first, second)]


def test_a_claim_that_names_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="names"):
        Claim("", "lower", ("a", "b"), "loss").check({"a"}, {"loss"}, "study")
    with pytest.raises(ValueError, match="no such kind, or other arms"):
        Claim("", "lower", ("a",), "loss").check({"a"}, {"loss"}, "study")
    with pytest.raises(ValueError, match="no such kind"):
        Claim("", "nicer", ("a",), "loss").check({"a"}, {"loss"}, "study")


@pytest.mark.parametrize(
    ("second", "word"),
    [
        (seeds(1.0, 1.01), HOLDS),
        (seeds(3.0, 3.01), REVERSED),
        (seeds(1.0), ONE_SEED),
        (seeds(1.9, 2.05), UNCLEAR),
    ],
)
def test_a_bound_of_several_arms_is_a_bound_of_each(second, word):
    assert verdict("at_most", seeds(1.2, 1.21), second, value=2.0) == word


@pytest.mark.parametrize(
    ("figure", "ours", "word"),
    [
        ("1.75", 1.7549, HOLDS),
        ("1.75", 1.7551, REVERSED),
        ("-92", -91.6, HOLDS),
        ("1.2e26", 1.2e26, HOLDS),
        ("1.2e26", 1.26e26, REVERSED),
        ("47", 47.5, HOLDS),  # a tie is rounded either way
        ("0", 0.6, REVERSED),
    ],
)
def test_a_printed_figure_holds_to_its_last_digit(figure, ours, word):
    claim = Claim("", "printed", ("a",), "loss", figures=(figure,))
    assert claim.judge({"a": exact(ours)}).word == word


def test_of_printed_figures_those_that_are_off_are_named():
    claim = Claim("", "printed", ("a", "b"), "loss", tolerance=0.01, figures=("100", "100"))
    found = claim.judge({"a": exact(100.9), "b": exact(101.1)})
    assert (found.word, found.detail) == (REVERSED, "1 of 2 as printed; b 101.1, printed 100")
    for wrong in ((), ("1",)):
        with pytest.raises(ValueError, match="one figure an arm"):
            Claim("", "printed", ("a", "b"), "loss", figures=wrong).check("ab", ["loss"], "s")
    with pytest.raises(ValueError, match="one figure an arm"):
        Claim("", "near", ("a",), "loss", figures=("1",)).check("ab", ["loss"], "s")


def test_as_much_as_a_bound_of_times_is_within_it():
    for kind in ("times_at_most", "times_at_least"):
        assert verdict(kind, exact(2.0), exact(2.0), value=1.0) == HOLDS
