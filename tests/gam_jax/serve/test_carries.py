"""What is remembered: conversations, prompts that part, files, bytes."""

from __future__ import annotations

import pytest

from gam_jax.serve.carries import Carries
from gam_jax.serve.executor import Draws
from gam_jax.serve.pages import Pages, pages_of
from gam_jax.serve.seating import Settings
from tests.gam_jax.serve.fake import FakeExecutor, State, alone
from tests.gam_jax.serve.test_service import BUDGET, VOCAB, Load, sizes_of

PROMPT = list(range(30)) * 2
PLACES = pytest.mark.parametrize("place", [(0, 1), (4, 100)], ids=["state", "pages"])


def load_of(place=(0, 1), options=Settings(BUDGET), executor=None):
    return Load(sizes_of(2, 1, *place), options, executor=executor)


def cached(load, prompt, count=6):
    """Asks, and tells how many tokens of the prompt were remembered."""
    one = load.ask(prompt, count=count)
    load.run()
    assert one.tokens == one.alone
    assert one.end is not None
    return one.end.cached_tokens


@PLACES
def test_the_next_turn_of_a_conversation_reads_what_is_new_alone(place):
    load = load_of(place)
    assert cached(load, PROMPT, 20) == 0
    answer = alone(PROMPT, 20, 0, Draws(), VOCAB)
    second = [*PROMPT, *answer, *[7] * 20]
    assert cached(load, second) == len(PROMPT) + 19  # the last token of an answer is not read
    assert cached(load, second) == len(second) - 1
    assert load.service.counts().read == len(PROMPT) + 21 + 1
    load.check_nothing_is_left()


@PLACES
def test_prompts_that_part_share_what_they_begin_with(place):
    load = load_of(place)
    assert cached(load, [*PROMPT, *[1] * 20]) == 0
    assert cached(load, [*PROMPT, *[2] * 20]) == 0  # here it is seen where they part
    assert cached(load, [*PROMPT, *[3] * 20]) == len(PROMPT)
    load.check_nothing_is_left()


@PLACES
def test_exact_hits_are_at_borders_of_blocks_alone(place):
    """So that what is read after a hit is read in the blocks of a text without a hit."""
    load = load_of(place, Settings(BUDGET, exact=True))
    cold = load_of(place, Settings(BUDGET, snapshots=0))
    prompts = ([*PROMPT, *[1] * 20], [*PROMPT, *[2] * 20], [*PROMPT, *[3] * 20])
    assert [cached(load, prompt) for prompt in prompts] == [0, 0, 56]
    assert cached(load, [*prompts[0], 9, 9]) == 72
    before = len(load.executor.fed)
    cached(load, prompts[2])
    cached(cold, prompts[2])
    hit = [width for kind, width, _ in load.executor.fed[before:] if kind == "read"]
    whole = [width for kind, width, _ in cold.executor.fed if kind == "read"]
    assert hit == whole[len(whole) - len(hit) :]
    load.check_nothing_is_left()


@PLACES
def test_what_is_in_the_folder_is_found_after_a_restart(place, tmp_path):
    options = Settings(BUDGET, folder=str(tmp_path))
    first = load_of(place, options)
    cached(first, PROMPT)
    first.check_nothing_is_left()
    assert len(list(tmp_path.iterdir())) == 1
    second = load_of(place, options)
    assert cached(second, [*PROMPT, 1]) >= len(PROMPT) - 1
    second.check_nothing_is_left()
    of_another = FakeExecutor(sizes_of(2, 1, *place), fingerprint="another")
    assert cached(load_of(place, options, of_another), PROMPT) == 0


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "gone"])
def test_a_damaged_file_is_a_miss_and_is_removed(damage, tmp_path):
    options = Settings(BUDGET, folder=str(tmp_path))
    first = load_of(options=options)
    cached(first, PROMPT)
    first.service.seats.carries.close()
    (path,) = tmp_path.iterdir()
    second = load_of(options=options)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        wrong = {"cut": content[:-1], "empty": b"", "bit": content[:-1] + bytes([content[-1] ^ 1])}
        path.write_bytes(wrong[damage])
    assert cached(second, PROMPT) == 0
    assert not path.exists()
    second.service.seats.carries.close()
    assert cached(load_of(options=options), PROMPT) == len(PROMPT) - 1


@PLACES
def test_bytes_in_memory_and_in_the_folder_are_bounded(place, tmp_path):
    size = 4000
    load = load_of(place, Settings(BUDGET, snapshots=size, folder=str(tmp_path)))
    for first in range(30):
        cached(load, [first, *PROMPT], 20)
        carries = load.service.seats.carries
        assert carries.bytes <= size
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= size
    assert 0 < len(carries) < 30
    assert cached(load, [29, *PROMPT]) > 0
    assert cached(load, [0, *PROMPT]) == 0
    load.check_nothing_is_left()


def test_a_folder_that_cannot_be_written_is_told_and_left(tmp_path, capsys):
    folder = tmp_path / "file"
    folder.write_text("")
    load = load_of(options=Settings(BUDGET, folder=str(folder)))
    assert cached(load, PROMPT) == 0
    assert load.service.seats.carries.settle()
    assert "no more snapshots are written" in capsys.readouterr().err
    assert not load.service.seats.carries.settle()
    assert cached(load, PROMPT) == len(PROMPT) - 1


def test_snapshots_leave_the_device_before_rows_do():
    load = load_of((4, 24))
    for first in range(4):
        cached(load, [first, *PROMPT], 8)
    assert load.service.counts().pages > 0
    both = [load.ask([9, *PROMPT[:30]], 8), load.ask([8, *PROMPT[:30]], 8)]
    while load.service.busy:
        load.turn()
        assert not load.service.seats.parked
    assert all(one.tokens == one.alone for one in both)
    assert cached(load, [3, *PROMPT]) > 0  # from the host's memory


@PLACES
@pytest.mark.parametrize("exact", [False, True])
def test_several_answers_to_one_prompt_read_it_once(place, exact):
    load = Load(sizes_of(4, 1, *place), Settings(BUDGET, exact=exact))
    ones = [load.ask(PROMPT, count=9, seed=seed) for seed in range(6)]
    load.run()
    assert all(one.tokens == one.alone for one in ones)
    again = 60 - 56 if exact else 1
    assert load.service.counts().read == len(PROMPT) + 5 * again
    load.check_nothing_is_left()


def test_what_is_read_from_the_folder_and_has_no_room_on_the_device_keeps_to_the_bytes(tmp_path):
    """All pages are in use: whatever is looked for is a miss, and memory is bounded as ever."""
    sizes = sizes_of(2, 1, 4, 80)
    executor, pool = FakeExecutor(sizes), Pages(sizes.pages)
    executor.states[0] = State(30)
    prompts = [[seed] * 30 for seed in range(4)]

    def remember(carries, prompts):
        """Rows go on in the pages."""
        for prompt in prompts:
            carries.put(prompt, 0, [pool.take() for _ in range(pages_of(30, 4))])

    before = Carries(executor, pool, 10_000, tmp_path, live=4)
    remember(before, prompts)
    before.close()
    (size,) = {path.stat().st_size for path in tmp_path.iterdir()}
    again = Carries(executor, pool, 4 * size, tmp_path, live=4)
    remember(again, [[9] * 30, [10] * 30])
    held = [pool.take() for _ in range(pool.free)]
    for prompt in prompts:
        assert again.find(prompt) == (0, None, ())
        assert again.bytes <= 4 * size
    pool.release(held)
    assert again.find([10] * 30)[0] == 30
