"""What is read without padding costs what its tokens cost, and calls have one order."""

from __future__ import annotations

import pytest

from experiments.papers import energonai
from experiments.papers.energonai import (
    BATCHES,
    LONGEST,
    arrivals,
    lengths_of,
    linked,
    served,
    whole,
)
from experiments.study import Setting

SHORT = Setting("short")
ASKED = sum(lengths_of("short"))


def test_operations_of_a_server_are_those_of_the_tokens_asked():
    """To the last one: programs times calls is the formula of N tokens; B x T costs more."""
    assert served(SHORT, 1) == pytest.approx({"fed": ASKED, "over": 1.0, "work": 29.032448})
    assert whole(SHORT, packed=True)["over"] == 1.0
    padded = whole(SHORT, packed=False)
    assert padded["fed"] == len(lengths_of("short")) * LONGEST
    assert padded["over"] == padded["fed"] / ASKED


def test_tokens_cost_what_the_formula_of_the_paper_says():
    """24 D^2 a layer, of four products for attention and a feed-forward of 4 D."""
    model = energonai.model_of(64)
    params = energonai.model_params(model)
    assert energonai.token_flops(params) == energonai.DEPTH * 24 * 64**2


def test_calls_that_arrive_in_any_order_are_run_in_one():
    assert arrivals("arrival")["apart"] > BATCHES / 2
    assert arrivals("tickets")["apart"] == 0
    assert arrivals("tickets")["lengths"] > 0
    assert linked() == {"apart": 0, "run": BATCHES}
