"""What one turn does: budgets, waiting, steps begun ahead, ends, constraints, scores."""

from __future__ import annotations

import numpy as np
import pytest

from gam_jax.serve.executor import Draws
from gam_jax.serve.request import Token
from gam_jax.serve.seating import Settings
from gam_jax.serve.service import Service
from sharding.errors import UserError
from tests.gam_jax.serve.fake import FakeExecutor, alone
from tests.gam_jax.serve.test_service import BUDGET, VOCAB, Load, sizes_of


def test_while_a_long_prompt_is_read_no_row_waits_for_more_than_budget_and_a_step():
    load = Load(sizes_of(rows=3))
    writers = [load.ask([seed], count=60, seed=seed) for seed in range(2)]
    for _ in range(5):
        load.turn()
    long = load.ask(list(range(40)) * 5, count=3)
    load.run()
    waited = {0: 0, 1: 0}
    for kind, count, rows in load.executor.fed:
        for row in waited:
            if kind == "step" and row in rows:
                waited[row] = 0
            else:
                waited[row] += count * len(rows)
        if not long.tokens:
            continue
        assert max(waited.values()) <= BUDGET + 3
    assert long.tokens == long.alone
    assert all(text.tokens == text.alone for text in writers)
    turns = [turn for turn in load.fed if any(kind == "read" for kind, _, _ in turn)]
    assert all(any(kind == "step" for kind, _, _ in turn) for turn in turns)


def test_two_long_prompts_are_read_by_turns():
    load = Load(sizes_of(rows=2), Settings(prefill_budget=8, snapshots=0))
    load.ask(list(range(40)) * 2)
    load.ask(list(range(40)) * 2)
    load.run()
    rows = [rows[0] for kind, count, rows in load.executor.fed if kind == "read" and count == 8]
    assert rows == [0, 1] * 9


def test_users_take_turns_and_each_is_served_in_order():
    load = Load(sizes_of(rows=1))
    for user in ("a", "a", "a", "b", "b"):
        load.ask([1], count=2, user=user)
    order = []
    while load.service.busy:
        load.turn()
        order += [n for n, one in enumerate(load.all) if one.tokens and n not in order]
    assert order == [0, 3, 1, 4, 2]


def test_a_step_begins_before_the_last_one_is_heard():
    """An end is seen one step late: one wasted step of a row, and none if the end was known."""
    load = Load(sizes_of(rows=1))
    end = alone([1], 9, 0, Draws(), VOCAB)[4]
    stopped = load.ask([1], count=50, ends=[end])
    load.run()
    assert stopped.tokens == stopped.alone
    assert stopped.end is not None
    assert stopped.end.reason == "stop"
    assert load.service.counts().wasted == 1
    assert len(load.executor.fed) == len(stopped.tokens) + 1
    load.ask([1], count=5)
    load.run()
    assert load.service.counts().wasted == 1


def test_a_stop_text_over_two_tokens_is_cut_from_the_text():
    whole = "".join(chr(97 + token) for token in alone([1], 9, 0, Draws(), VOCAB))
    load = Load(sizes_of(rows=1))
    one = load.ask([1], count=9, stops=[whole[3:5]])
    load.run()
    assert one.text == whole[:3]
    assert len(one.tokens) == 5
    assert one.end is not None
    assert one.end.reason == "stop"


class Rising:
    """Allows ids above the last one, and ends at the vocabulary's end."""

    def __init__(self):
        self.last = 10

    @property
    def ended(self):
        return self.last >= VOCAB - 1

    def allowed(self):
        bits = np.arange(64) > self.last
        return np.packbits(bits, bitorder="little").tobytes()

    def push(self, token):
        if token <= self.last:
            raise UserError("it fell")
        self.last = token


@pytest.mark.parametrize("block", [1, 4])
def test_a_row_with_a_constraint_waits_for_its_tokens_and_the_others_do_not(block):
    load = Load(sizes_of(rows=2, block=block))
    held = load.ask([1], count=50, constraint=Rising())
    free = load.ask([2], count=30)
    load.run()
    assert held.tokens == sorted(set(held.tokens))
    assert held.tokens[-1] == VOCAB - 1
    assert held.end is not None
    assert held.end.reason == "stop"
    assert free.tokens == free.alone
    steps = [rows for kind, _, rows in load.executor.fed if kind == "step"]
    assert sum(1 in rows for rows in steps) == 30
    assert load.service.counts().wasted == 0


def test_stop_ids_are_not_drawn_before_the_least_number_of_tokens():
    ends = list(range(0, VOCAB, 2))
    load = Load(sizes_of(rows=1))
    one = load.ask([1], count=20, ends=ends, min_tokens=6)
    load.run()
    assert all(token not in ends for token in one.tokens[:6])
    assert one.tokens[-1] in ends or len(one.tokens) == 20


@pytest.mark.parametrize("size", [1, 2, 30])
@pytest.mark.parametrize("count", [0, 3])
def test_a_prompt_is_scored_token_by_token(size, count):
    load = Load(sizes_of(rows=2))
    load.ask(list(range(size)), count=2)  # what it remembers is not used: each token is scored
    load.run()
    one = load.ask(list(range(size)), count=count, scores_prompt=True)
    load.run()
    told = [token for token in one.told if isinstance(token, Token)][:size]
    assert [token.id for token in told] == list(range(size))
    assert np.isnan(told[0].log_prob)
    assert [token.log_prob for token in told[1:]] == [
        -(sum(range(place + 1)) % 97) for place in range(1, size)
    ]
    assert one.tokens == one.alone
    assert one.end is not None
    assert (one.end.reason, one.end.cached_tokens) == ("length", 0)
    assert one.end.completion_tokens == count


def test_logits_that_are_no_numbers_end_their_text_alone():
    load = Load(sizes_of(rows=2))
    load.executor.unsound = {0}
    bad, good = load.ask([1]), load.ask([2])
    load.run()
    assert bad.end is not None
    assert (bad.end.reason, bad.tokens) == ("error", [])
    assert "no numbers" in bad.end.error
    assert good.tokens == good.alone


def test_a_listener_that_fails_ends_its_text_alone():
    load = Load(sizes_of(rows=2))
    bad, good = load.ask([1], count=9), load.ask([2], count=9)

    def tell(told):
        raise RuntimeError("the reader is gone")

    object.__setattr__(bad.request, "tell", tell)
    load.run()
    assert good.tokens == good.alone
    assert dict(load.service.counts().requests) == {"error": 1, "length": 1}
    load.check_nothing_is_left()


def test_a_budget_without_room_for_a_block_is_refused():
    with pytest.raises(UserError, match=r"prefill_budget=7: .*blocks of up to 8 tokens"):
        Service(FakeExecutor(sizes_of()), Settings(prefill_budget=7))


def test_the_youngest_row_waits_when_there_are_no_pages_and_goes_on_from_its_state():
    load = Load(sizes_of(rows=3, page=4, pages=9, limit=32), Settings(BUDGET, snapshots=0))
    texts = [load.ask([seed] * 3, count=25, seed=seed) for seed in range(3)]
    parked = set()
    while load.service.busy:
        load.turn()
        parked |= {text.number for text in load.service.seats.parked}
    assert parked == {2, 3}
    assert all(text.tokens == text.alone for text in texts)
    assert load.service.counts().read == 9  # nothing was read again
    load.check_nothing_is_left()


def test_a_scored_text_that_left_its_row_before_it_was_read_tells_its_prompt_once():
    """The first takes all pages; the other one has a row by then, and has read nothing."""
    load = Load(sizes_of(rows=2, page=4, pages=5, limit=16), Settings(BUDGET, snapshots=0))
    first = load.ask(list(range(13)), count=2)
    scored = load.ask([7], count=3, scores_prompt=True)
    load.run().check_nothing_is_left()
    assert first.tokens == first.alone
    assert scored.tokens == scored.alone
    assert scored.tokens[0] == 7


class Broken:
    """A stream that cannot decode, not even what is left at the end."""

    def push(self, token):
        raise UserError(f"no such token as {token}")

    def flush(self):
        raise UserError("no such token is whole")


@pytest.mark.parametrize("leaves", [False, True])
def test_a_text_that_cannot_be_decoded_ends_all_the_same(leaves):
    load = Load(sizes_of(rows=2))
    broken, other = load.ask([1], count=9), load.ask([2], count=9)
    broken.request.continuation._stream = Broken()
    if leaves:
        load.service.cancel({1})
    load.run().check_nothing_is_left()
    assert broken.end is not None
    assert broken.end.reason == "error"
    assert "no such token" in broken.end.error
    assert other.tokens == other.alone
