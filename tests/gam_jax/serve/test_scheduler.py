"""Turns between users, blocks without padding, pages counted by reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.serve.executor import Blocks, Sizes
from gam_jax.serve.pages import Pages, pages_of
from gam_jax.serve.programs import packed_blocks
from gam_jax.serve.scheduler import Turns, block_of, deal, gathered
from sharding.errors import UserError

WIDTHS = (256, 64, 16, 4, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=30))
def test_first_come_first_served_within_a_user_and_turns_between_users(asked):
    queue: Turns[tuple[str, int]] = Turns()
    for item in asked:
        queue.push(item[0], item)
    assert len(queue) == len(asked)
    served = []
    while queue:
        first = next(iter(queue))
        served.append(queue.pop())
        assert served[-1] is first
    for user in "abc":
        own = [item for item in asked if item[0] == user]
        assert [item for item in served if item[0] == user] == own
    # While a user waits, every other is served at most once.
    for place, (user, _) in enumerate(served):
        since = next((p for p in range(place - 1, -1, -1) if served[p][0] == user), -1)
        others = [item[0] for item in served[since + 1 : place]]
        assert len(others) == len(set(others))


def test_what_is_removed_is_not_served():
    queue: Turns[int] = Turns()
    for number in range(6):
        queue.push(str(number % 2), number)
    assert queue.remove(lambda number: number in (0, 3)) == [0, 3]
    assert [queue.pop() for _ in range(len(queue))] == [2, 1, 4, 5]


@given(st.integers(2, 5000), st.integers(0, 5000))
def test_a_prompt_is_read_in_blocks_that_add_up_to_it(unread, border):
    blocks, left, to_border = [], unread, min(border, unread - 1)
    while left > 1:
        blocks.append(block_of(left, WIDTHS, to_border))
        left, to_border = left - blocks[-1], max(to_border - blocks[-1], 0)
    assert sum(blocks) == unread - 1
    sums = [sum(blocks[: i + 1]) for i in range(len(blocks))]
    assert 0 < border < unread - 1 or blocks == sorted(blocks, reverse=True)
    assert not 0 < border < unread or border in sums
    most = 6 if 0 < border < unread - 1 else 3
    assert all(blocks.count(width) <= most for width in WIDTHS[1:])


@given(st.lists(st.integers(1, 2000), max_size=6), st.integers(256, 1500))
def test_blocks_of_a_turn_keep_the_budget_and_are_those_of_each_text_alone(unread, budget):
    dealt = deal(unread, WIDTHS, [0] * len(unread), budget)
    assert sum(width for _, width in dealt) <= budget
    for text, count in enumerate(unread):
        own = [width for number, width in dealt if number == text]
        left = count
        for width in own:
            assert width == block_of(left, WIDTHS)
            left -= width
    assert dealt or all(count == 1 for count in unread)
    if any(count > 1 for count in unread):  # the one that has waited longest is served
        assert dealt[0][0] == next(text for text, count in enumerate(unread) if count > 1)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(WIDTHS)), max_size=40),
    st.lists(st.integers(1, 4), min_size=len(WIDTHS), max_size=len(WIDTHS)),
)
def test_blocks_that_are_read_together_are_all_blocks_each_text_s_in_order(dealt, room):
    most = dict(zip(WIDTHS, room, strict=True))
    read = gathered(dealt, most.__getitem__)
    for text in range(6):
        own = [width for number, width in dealt if number == text]
        assert [width for width, texts in read if text in texts] == own
    for width, texts in read:
        assert len(texts) == len(set(texts)) <= most[width]
    alone = gathered(dealt, lambda width: 1)
    assert len(read) <= len(alone) == len(dealt)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([0, 1, 2, 3, 4], "at most 4, each of another row"),
        ([1, 1], "each of another row"),
        ([0, 8], r"rows \[0, 8\]: there are rows 0 to 7"),
        ([-1], "there are rows 0 to 7"),
    ],
)
def test_blocks_that_cannot_be_read_together_are_refused(rows, words):
    """A row that there is not would be read for nobody, and the first of two be lost."""
    sizes = Sizes(8, WIDTHS, 1, 0, 1, 0, 0, 50)
    blocks = Blocks(np.array(rows), np.zeros((len(rows), 4), int), np.zeros((len(rows), 0), int))
    with pytest.raises(UserError, match=words):
        packed_blocks(blocks, sizes)


def test_equal_prompts_are_read_in_as_few_blocks_as_there_is_room_for():
    dealt = deal([16] * 6, WIDTHS, [0] * 6, 2000)
    read = [width for width, _ in gathered(dealt, lambda width: 4)]
    assert read == 5 * [4] + 5 * [1]  # of 18 blocks each


@given(st.lists(st.integers(0, 5), max_size=60), st.data())
def test_pages_are_free_if_and_only_if_nobody_holds_them(actions, data):
    pool, held = Pages(6), []
    for action in actions:
        if action < 3 and pool.free:
            held.append(pool.take())
        elif action == 3 and held:
            page = data.draw(st.sampled_from(held))
            pool.hold([page])
            held.append(page)
        elif held:
            page = held.pop(data.draw(st.integers(0, len(held) - 1)))
            pool.release([page])
        assert pool.used == len(set(held))
        assert pool.free + pool.used == 5
        assert all(pool.holders(page) == held.count(page) for page in range(6))
    assert 0 not in held


def test_a_shared_last_page_is_copied_and_whole_ones_are_not():
    pool = Pages(9)
    own = [pool.take() for _ in range(3)]
    pool.hold(own)
    assert pool.wanted(own, 12, 13, 4) == (1, False)  # the three are full
    assert pool.wanted(own, 10, 12, 4) == (1, True)
    assert pool.wanted(own, 10, 13, 4) == (2, True)
    pool.release(own[2:])
    assert pool.wanted(own, 10, 13, 4) == (1, False)
    assert [pages_of(tokens, 4) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]
