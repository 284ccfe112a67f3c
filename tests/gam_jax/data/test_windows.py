"""Windows and batches: nothing lost, nothing twice, the same for any processes and position."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.data.text import Text
from gam_jax.data.windows import (
    ScoredWindows,
    Windows,
    validation_batches,
    windows,
)
from gam_jax.data.windows import train_batches as batches_of_rows
from sharding.errors import UserError

# A token's value is its place, so that a batch tells which tokens it holds.
sizes = st.tuples(st.integers(2, 12), st.integers(0, 15), st.integers(0, 150))


def counting(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.uint16)


def config(window: int = 4, stride: int = 0, **settings) -> Text:
    return Text(window=window, stride=stride, **settings)


def train_batches(tokens: np.ndarray, config: Text, **settings):
    return batches_of_rows(windows(tokens, config.window, config.step), config, **settings)


def take(stream, count: int) -> list[dict[str, np.ndarray]]:
    with stream:
        return list(itertools.islice(stream, count))


def same(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@given(st.integers(1, 12), st.integers(0, 150))
def test_full_windows_predict_every_token_once_but_an_incomplete_end(window, length):
    source = Windows(counting(length), window, window)
    targets = [t for i in range(len(source)) for t in source[i]["targets"]]
    assert targets == list(range(1, len(source) * window + 1))
    assert length - 1 - len(targets) < window


def test_a_window_is_inputs_and_the_same_one_later():
    window = Windows(counting(20), 4, 5)[2]
    assert window["inputs"].tolist() == [10, 11, 12, 13]
    assert window["targets"].tolist() == [11, 12, 13, 14]
    assert window["weights"].tolist() == [1, 1, 1, 1]
    assert [window[k].dtype for k in window] == [np.int32, np.int32, np.float32]


def test_blocks_of_257_are_the_papers():
    tokens = counting(257 * 3 + 100)
    source = Windows(tokens, 256, 257)
    assert len(source) == 3
    for i in range(3):
        block = tokens[i * 257 : (i + 1) * 257]
        np.testing.assert_array_equal(source[i]["inputs"], block[:256])
        np.testing.assert_array_equal(source[i]["targets"], block[1:])


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 99), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_each_epoch_is_a_permutation_of_the_windows(window, count, seed, batch):
    length = count * window + 1
    stream = train_batches(counting(length), config(window), batch=batch, seed=seed)
    rows = [row[0] for b in take(stream, -(-2 * count // batch)) for row in b["inputs"]]
    starts = [window * i for i in range(count)]
    assert sorted(rows[:count]) == starts
    assert sorted(rows[count : 2 * count]) == starts


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed: int) -> list[list[int]]:
        batches = take(train_batches(counting(401), config(4), batch=50, seed=seed), 4)
        rows = [int(row[0]) for b in batches for row in b["inputs"]]
        return [rows[:100], rows[100:]]

    (a, b), (c, d) = order(0), order(1)
    assert len({tuple(x) for x in (a, b, c, d, sorted(a))}) == 5
    assert order(0) == [a, b]


def test_without_shuffle_the_windows_come_in_order():
    stream = train_batches(counting(41), config(4, shuffle=False), batch=5, seed=0)
    rows = [int(row[0]) for b in take(stream, 4) for row in b["inputs"]]
    assert rows == [*range(0, 40, 4)] * 2


@pytest.mark.slow
@given(processes=st.sampled_from([1, 2, 3, 6]), position=st.integers(0, 25), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_processes_from_any_position_give_the_one_process_batches(processes, position, seed):
    tokens, settings_ = counting(4 * 17 + 1), config(4)
    whole = take(train_batches(tokens, settings_, batch=6, seed=seed), position + 4)[position:]
    parts = [
        take(
            train_batches(
                tokens,
                settings_,
                batch=6,
                seed=seed,
                process=process,
                processes=processes,
                position=position,
            ),
            4,
        )
        for process in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[i][key] for part in parts]) for key in whole[0]}
        for i in range(4)
    ]
    same(joined, whole)


@given(st.integers(0, 12))
@settings(max_examples=10, deadline=None)
def test_the_position_is_all_it_takes_to_go_on(stop):
    tokens, settings_ = counting(4 * 11 + 1), config(4)
    with train_batches(tokens, settings_, batch=3, seed=5) as stream:
        before = list(itertools.islice(stream, stop))
        position = stream.position
    assert position == stop
    after = take(train_batches(tokens, settings_, batch=3, seed=5, position=position), 5)
    same(before + after, take(train_batches(tokens, settings_, batch=3, seed=5), stop + 5))


def test_worker_processes_give_the_batches_of_threads(tmp_path):
    np.save(tmp_path / "tokens.npy", counting(201))
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    workers = take(train_batches(tokens, config(4, workers=2), batch=4, seed=1, position=3), 6)
    same(workers, take(train_batches(tokens, config(4), batch=4, seed=1, position=3), 6))


def test_a_worker_maps_the_file_and_a_slice_travels_whole(tmp_path):
    np.save(tmp_path / "tokens.npy", counting(5000))
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    packed = pickle.dumps(Windows(tokens, 8, 8))
    assert len(packed) < 1000
    for source in (Windows(tokens, 8, 8), Windows(tokens[1000:], 8, 8)):
        again = pickle.loads(pickle.dumps(source))
        assert len(again) == len(source)
        same([again[3]], [source[3]])


@given(sizes, st.sampled_from([1, 2, 4]), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_validation_counts_every_token_once_whatever_the_overlap(size, processes, rows):
    window, stride, length = size
    stride = min(stride, window)
    batch = rows * processes
    shares = [
        list(
            validation_batches(
                counting(length),
                config(window, stride),
                batch=batch,
                process=process,
                processes=processes,
            )
        )
        for process in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    counts = np.zeros(max(length, 1))
    for b in itertools.chain(*shares):
        assert all(array.shape == (rows, window) for array in b.values())
        np.add.at(counts, b["targets"].ravel(), b["weights"].ravel())
        kept = b["weights"] > 0
        np.testing.assert_array_equal(b["inputs"][kept] + 1, b["targets"][kept])
    np.testing.assert_array_equal(counts[1:], 1)
    assert counts[0] == 0


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 100))
def test_with_gaps_validation_scores_what_lies_within_windows(window, gap, length):
    stride = window + gap
    source = ScoredWindows(counting(length), window, stride, multiple=1)
    scored = [
        int(t)
        for i in range(len(source))
        for t, w in zip(source[i]["targets"], source[i]["weights"], strict=True)
        if w
    ]
    assert scored == [t for t in range(1, length) if 1 <= t % stride <= window]


def test_validation_comes_in_order_and_can_be_limited():
    batches = list(validation_batches(counting(100), config(4), batch=3, limit=2))
    assert len(batches) == 2
    assert [int(r[0]) for b in batches for r in b["inputs"]] == [0, 4, 8, 12, 16, 20]


def test_bad_numbers_are_refused():
    with pytest.raises(UserError, match=r"batch of 6 does not divide among 4 processes: .* of 4"):
        train_batches(counting(100), config(), batch=6, seed=0, processes=4)
    with pytest.raises(UserError, match="batch of 0"):
        validation_batches(counting(100), config(), batch=0)
    with pytest.raises(UserError, match="process 2 of 2"):
        train_batches(counting(100), config(), batch=2, seed=0, process=2, processes=2)
    with pytest.raises(UserError, match="seed -1 is out of range"):
        train_batches(counting(100), config(), batch=2, seed=-1)
    with pytest.raises(UserError, match="4 tokens long, and one window needs 5: give more text"):
        windows(counting(4), 4, 4)
