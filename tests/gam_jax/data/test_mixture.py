"""Several texts in one stream: weights, processes, positions, tokenizers, scores."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.config import from_dict, to_dict
from gam_jax.data import TextMixture
from gam_jax.data.bpe import cached_bpe
from gam_jax.data.stream import mixed
from gam_jax.data.tokenizer import ByteTokenizer, HFTokenizer
from gam_jax.layers import GAM, Block
from gam_jax.models import LanguageModel
from gam_jax.training import Experiment
from sharding.errors import UserError

WEIGHTS = {"a": 0.7, "b": 0.2, "c": 0.1}


class Marked:
    """Rows that say whose they are and which."""

    def __init__(self, mark: int, rows: int) -> None:
        self._mark, self._rows = mark, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index):
        return {"from": np.int32(self._mark), "row": np.int32(index.__index__())}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TextMixture:
    """Three small files, each of one letter and digits of its own."""
    folder = tmp_path_factory.mktemp("mixture")
    for name in WEIGHTS:
        lines = (f"{name * (i % 7 + 1)} {i}\n" for i in range(400))
        (folder / f"{name}.txt").write_text("".join(lines))
    entries = (f"{weight}*text:{folder / name}.txt" for name, weight in WEIGHTS.items())
    return TextMixture(name=f"mix:{','.join(entries)}", window=16, dir=str(folder / "data"))


@pytest.fixture(scope="module")
def data(config):
    """The mixture, opened."""
    return config.open()


def batches(data, count, **kwargs):
    """The first inputs of a stream of twelve rows."""
    with data.train_stream(12, seed=3, **kwargs) as stream:
        return [next(stream)["inputs"] for _ in range(count)]


@pytest.mark.slow
@settings(max_examples=5)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_weights_are_honoured_exactly_over_a_long_run(weights, seed):
    sources = [Marked(mark, rows=5 + mark) for mark in range(len(weights))]
    share = [weight / sum(weights) for weight in weights]
    rows = mixed(sources, share, seed, shuffle=True)
    marks = [int(rows[i]["from"]) for i in range(240)]
    for length in (60, 240):
        for mark, wanted in enumerate(share):
            assert abs(marks[:length].count(mark) - wanted * length) <= len(weights)


def test_each_source_is_read_whole_before_any_row_comes_again():
    sources = [Marked(0, rows=10), Marked(1, rows=4)]
    rows = mixed(sources, [0.5, 0.5], seed=0, shuffle=True)
    found = [(int(row["from"]), int(row["row"])) for row in (rows[i] for i in range(20))]
    assert sorted(row for mark, row in found if mark == 0) == list(range(10))
    assert sorted({row for mark, row in found[:8] if mark == 1}) == list(range(4))


def test_rows_are_windows_of_one_text_each(data):
    letters = [set(data.tokenizer.decode(row)) & set("abc") for b in batches(data, 20) for row in b]
    assert all(len(each) == 1 for each in letters)
    shares = {name: sum(name in each for each in letters) / len(letters) for name in WEIGHTS}
    assert shares == pytest.approx(WEIGHTS, abs=0.02)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_global_batches_are_the_same_for_any_number_of_processes(data, processes):
    whole = batches(data, 4)
    parts = [batches(data, 4, process=p, processes=processes) for p in range(processes)]
    for batch, own in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(own), batch)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_goes_on_at_any_position(data, processes):
    at = {"process": processes - 1, "processes": processes}
    np.testing.assert_array_equal(batches(data, 9, **at)[5:], batches(data, 4, position=5, **at))


def test_another_seed_gives_another_order(data):
    with data.train_stream(12, seed=4) as stream:
        assert not np.array_equal(next(stream)["inputs"], batches(data, 1)[0])


def test_bytes_need_no_training_and_a_bpe_learns_from_all_texts(config, data):
    assert isinstance(data.tokenizer, ByteTokenizer)
    learned = dataclasses.replace(config, tokenizer="bpe:300").open()
    assert isinstance(learned.tokenizer, HFTokenizer)
    assert learned.sizes == {"vocab": 300, "window": 16, "packed": 0}
    for text in learned.texts.values():
        assert text.tokenizer is learned.tokenizer
        alone = cached_bpe([text.corpus], text.config, 300)
        assert alone.fingerprint != learned.tokenizer.fingerprint


def test_a_run_s_own_tokenizer_is_used_again(config):
    files = dataclasses.replace(config, tokenizer="bpe:300").open().files
    assert config.open(files).sizes["vocab"] == 300


def test_each_text_is_scored_by_itself_and_all_are_scored_together(data):
    assert data.parts == tuple(data.texts)
    sums = {part: {"loss": (10.0 * n, 5.0 * n)} for n, part in enumerate(data.parts, start=1)}
    first = data.parts[0]
    sums[first] = {"loss": (40.0, 10.0)}
    found = data.scores(sums)
    assert found["loss"] == pytest.approx((40 + 20 + 30) / (10 + 10 + 15))
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found[f"loss/{first}"] == 4.0
    assert all(found[f"loss/{part}"] == 2.0 for part in data.parts[1:])


def test_a_cut_is_one_of_each_text(data):
    cut = data.first(train=64, validation=32)
    for part in cut.parts:
        assert len(cut.texts[part].train) == 65
        scored = sum(b["weights"].sum() for b in cut.validation_stream(part, 2))
        assert scored == 32


def test_a_changed_text_changes_the_fingerprint_of_that_text_alone(config, data, tmp_path):
    (tmp_path / "b.txt").write_text("another\n" * 100)
    before = next(name for name in data.parts if name.endswith("b.txt"))
    changed = config.name.replace(before, f"text:{tmp_path / 'b.txt'}")
    other = dataclasses.replace(config, name=changed).open()
    names = {text: f"corpus {text}" for text in data.parts if text != before}
    assert all(other.fingerprints[name] == data.fingerprints[name] for name in names.values())
    assert data.fingerprints[f"corpus {before}"] not in other.fingerprints.values()


def test_the_configuration_comes_back_as_a_mixture(config):
    one = Experiment(LanguageModel(Block(GAM(slots=4)), width=8, depth=1), data=config)
    assert from_dict(Experiment, to_dict(one)).data == config


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mix:", "'' is no weight above 0, a star and a name of a text: write mix:"),
        ("mix:text:a", "'text:a' is no weight above 0"),
        ("mix:0*text:a", "'0*text:a' is no weight above 0"),
        ("mix:-1*text:a", "'-1*text:a' is no weight above 0"),
        ("mix:0.5*", "'0.5*' is no weight above 0"),
        ("mix:inf*text:a", "'inf*text:a' is no weight above 0"),
        ("mix:1e308*text:a,1e308*text:b", "a text gets less than 1e-09 of the rows"),
        ("mix:1e-300*text:a,1*text:b", "a text gets less than 1e-09 of the rows"),
        ("mix:0.5*text:a,0.5*text:a", "'text:a' stands there twice: keep one"),
        ("mix:0.5*mix:1*text:a", "a mixture holds texts, not mixtures"),
        ("mix:1*domain:pyton", "did you mean 'domain:python'"),
        ("mix:1*text:/nowhere.txt", "text:/nowhere.txt does not exist"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(name, words):
    with pytest.raises(UserError) as caught:
        TextMixture(name=name).open()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_may_hold_commas_and_weights_need_not_sum_to_one():
    mixture = TextMixture(name="mix:3*text:a,b.txt,1e0*domain:c")
    assert mixture.weights == {"text:a,b.txt": 0.75, "domain:c": 0.25}
