"""What counts travels with the tokens: encoding, packing, rows, caches, mixtures, scores."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import pickle
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.data.chat_template import ChatTemplate, Marked
from gam_jax.data.counted import token_counts
from gam_jax.data.mixture import TextMixture
from gam_jax.data.packing import DocumentRows
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import ByteTokenizer, HFTokenizer
from gam_jax.layers.block import Block
from gam_jax.layers.gam import GAM
from gam_jax.models import LanguageModel
from sharding.errors import UserError
from tests.gam_jax.data import templates
from tests.gam_jax.data.templates import BOS, EOS, TEMPLATES
from tests.gam_jax.data.test_chat_template import ALL, conversations, merged

BPE = HFTokenizer(templates.make_tokenizer())
TOKENIZERS = {"bytes": ByteTokenizer(), "bpe": BPE}
RECORDS = [
    {
        "messages": [
            {"role": "user", "content": f"the user said {'no ' * (i % 7)}{i}"},
            {"role": "assistant", "content": f"yes, ßaid {'yes ' * (i % 5)}{i}"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": f"no\n\n{i}."},
        ]
    }
    for i in range(40)
]
PAIRS = [{"prompt": f"{i} times ", "completion": f"yes {i}" * (1 + i % 3)} for i in range(40)]


def lines(folder, records, name="a.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"text:{folder / name}"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Conversations, and a tokenizer's folder with a template."""
    folder = tmp_path_factory.mktemp("chat")
    source = TEMPLATES["llama"].source
    return Text(
        name=lines(folder / "in", RECORDS),
        dir=str(folder / "data"),
        tokenizer=str(templates.save(folder / "hf", source, templates.make_tokenizer())),
        format="chat",
        documents="packed",
        window=128,
    )


@pytest.fixture(scope="module")
def data(config):
    """They, opened."""
    return config.open()


def of_rows(data, split="train", **changes):
    """(begins, target, counts) of each predicted token, row by row."""
    rows = dataclasses.replace(data, config=dataclasses.replace(data.config, **changes)).rows(split)
    return [rows[i] for i in range(len(rows))]


def pieces_of(row):
    """Inputs, targets and weights of each document of a row."""
    begins = np.flatnonzero(row["starts"]) if "starts" in row else np.array([0])
    for begin, end in zip(begins, [*begins[1:], len(row["inputs"])], strict=True):
        own = slice(begin, end)
        yield row["inputs"][own], row["targets"][own], row["weights"][own]


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations())
def test_the_tokens_that_count_decode_to_what_counts(tokenizer, name, messages):
    own = TEMPLATES[name]
    messages = [m for m in messages if own.system or m["role"] != "system"]
    if tokenizer is BPE:  # so that no token straddles a border
        messages = [{**m, "content": f"a{m['content']}b"} for m in messages]
    marked = ALL[name].marked(messages, None, "here")
    ((ids, places),) = tokenizer.encode_places([marked.text], special=True)
    counts = token_counts(places, marked)
    text, spans = merged(own.pieces(messages))
    assert tokenizer.shown(ids) == text
    assert tokenizer.shown(ids[counts > 0]) == "".join(text[start:end] for start, end in spans)


def test_special_tokens_of_a_template_are_those_and_the_first_stands_once():
    text = ALL["llama"].written(RECORDS[0]["messages"], None, "here")
    ((ids, _),) = BPE.encode_places([text], special=True)
    named = dict(zip(templates.SPECIAL, range(len(templates.SPECIAL)), strict=True))
    assert ids[0] == named[BOS]
    assert (ids == named[BOS]).sum() == 1
    assert (ids == named["<|eot|>"]).sum() == 4
    ((plain, _),) = BPE.encode_places([text], special=False)
    assert not np.isin(plain, list(named.values())).any()


@pytest.mark.parametrize(
    ("span", "counts"),
    [((7, 10), [0, 0, 1]), ((8, 10), [0, 0, 1]), ((0, 7), [1, 1, 0]), ((0, 8), [1, 1, 1])],
)
def test_a_token_that_straddles_a_border_counts(span, counts):
    places = np.array([[0, 6], [6, 7], [7, 10]])  # "Answer", ":", " ye"
    assert token_counts(places, Marked("Answer: ye", (span,))).tolist() == counts


def test_a_token_of_no_characters_counts_as_its_place():
    places = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2]])
    assert token_counts(places, Marked("ab", ((1, 2),))).tolist() == [0, 0, 1, 1, 0]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    marks=st.lists(st.booleans(), min_size=80, max_size=80),
    window=st.integers(1, 12),
    separators=st.booleans(),
    packed=st.booleans(),
)
def test_packing_keeps_weights_with_their_tokens(lengths, marks, window, separators, packed):
    """Tokens are numbered, so that a target tells which mark was its own."""
    total = sum(lengths) + separators * (len(lengths) - 1)
    tokens, counts = np.arange(1, total + 1), np.asarray(marks[:total], np.uint8)
    separator = total + 1 if separators else None
    rows = DocumentRows(tokens, np.asarray(lengths), window, separator, packed, counts=counts)
    plain = DocumentRows(tokens, np.asarray(lengths), window, separator, packed)
    mark_of = dict(zip(tokens.tolist(), counts.tolist(), strict=True)) | {total + 1: 1}
    found = []
    for row in (rows[i] for i in range(len(rows))):
        assert row["weights"].sum() > 0
        for inputs, targets, weights in pieces_of(row):
            if targets.any():
                assert weights.tolist() == [mark_of.get(t, 0) for t in targets.tolist()]
                found += [(i, t) for i, t, w in zip(inputs, targets, weights, strict=True) if w]
    every = [
        (i, t)
        for row in (plain[i] for i in range(len(plain)))
        for i, t, w in zip(row["inputs"], row["targets"], row["weights"], strict=True)
        if w and mark_of[t]
    ]
    assert sorted(found) == sorted(every)


@pytest.mark.parametrize("documents", ["packed", "rows"])
def test_a_conversation_is_a_document_and_its_answers_count(data, documents):
    held = {split: [] for split in ("train", "validation")}
    for split, found in held.items():
        for row in of_rows(data, split, documents=documents):
            for inputs, targets, weights in pieces_of(row):
                if weights.any():
                    assert BPE.shown(inputs[:1]) == BOS
                    found.append(BPE.shown(targets[weights > 0]))
    want = [
        "".join(m["content"] + "<|eot|>" for m in record["messages"] if m["role"] == "assistant")
        for record in RECORDS
    ]
    assert sorted(held["train"] + held["validation"]) == sorted(want)
    assert 0 < len(held["validation"]) < 10
    share = re.search(r"([\d.]+)% of the tokens count", data.described())
    assert float(share[1]) == pytest.approx(100 * data.counts["train"].mean(), abs=0.06)


def test_a_completion_counts_with_the_separator_that_ends_it(config):
    own = dataclasses.replace(
        config, name=lines(_folder(config), PAIRS, "p.jsonl"), format="prompt", tokenizer="bytes"
    )
    data = own.open()
    found = [
        bytes(targets[weights > 0].astype(np.uint8))
        for split in ("train", "validation")
        for row in of_rows(data, split)
        for _, targets, weights in pieces_of(row)
        if weights.any()
    ]
    assert sorted(found) == sorted(pair["completion"].encode() + b"\0" for pair in PAIRS)
    whole = [pair["prompt"] + pair["completion"] for pair in PAIRS]
    assert set(data.tokenizer.decode(data.train).split("\0")) < set(whole)


def _folder(config):
    return pathlib.Path(config.name.removeprefix("text:")).parent


def test_with_loss_all_every_token_counts_but_the_first(config, data):
    whole = dataclasses.replace(config, loss="all").open()
    np.testing.assert_array_equal(whole.train, data.train)
    firsts = np.cumsum(whole.lengths["train"]) - whole.lengths["train"]
    assert np.flatnonzero(whole.counts["train"] == 0).tolist() == firsts.tolist()


def test_what_was_made_with_other_settings_is_not_taken(config, data):
    """Each opens with the caches of the others in the same folder."""
    marked = _folder(config) / "t.jinja"
    marked.write_text(TEMPLATES["chatml, marked"].source)
    other = dataclasses.replace(config, template=str(marked)).open()
    assert not np.array_equal(other.train, data.train)
    assert other.fingerprints["template"] != data.fingerprints["template"]
    again = config.open()
    np.testing.assert_array_equal(again.train, data.train)
    np.testing.assert_array_equal(again.counts["train"], data.counts["train"])


def test_a_flipped_bit_in_what_counts_is_seen(config, capsys):
    own = dataclasses.replace(config, loss="all")
    counts = own.open().counts["train"]
    whole = np.array(counts)
    with open(counts.filename, "r+b") as file:
        file.seek(-3, 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    assert not np.array_equal(counts, whole)
    np.testing.assert_array_equal(own.open().counts["train"], whole)
    assert "has other bytes than were written: it is made anew" in capsys.readouterr().err


def test_a_run_keeps_its_template(config, data):
    assert set(data.files) == set(config.kept_files) == {"tokenizer.json", "chat_template.json"}
    elsewhere = dataclasses.replace(config, tokenizer="/nowhere")
    again = elsewhere.open(data.files)
    assert again.fingerprints == data.fingerprints
    np.testing.assert_array_equal(again.train, data.train)
    assert Text().kept_files == ("tokenizer.json",)
    assert "chat template" in data.changed("template", {})


@pytest.mark.parametrize("processes", [1, 2])
def test_the_position_is_exact_for_any_number_of_processes(data, processes):
    def batches(count, **at):
        with data.train_stream(4, seed=1, **at) as stream:
            return [next(stream) for _ in range(count)]

    whole = batches(5)
    parts = [batches(3, process=p, processes=processes, position=2) for p in range(processes)]
    for batch, *own in zip(whole[2:], *parts, strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in own]), value)


def test_rows_go_to_another_process_by_their_files(data):
    rows = data.rows("train")
    sent = pickle.dumps(rows)
    assert all(held.filename.name.encode() in sent for held in (data.train, data.counts["train"]))
    assert len(sent) < 2000 + 40 * len(data.lengths["train"])
    for name, value in rows[3].items():
        np.testing.assert_array_equal(pickle.loads(sent)[3][name], value)


def test_a_mixture_has_one_template_and_scores_what_counts(config):
    other = lines(_folder(config), RECORDS[::2], "b.jsonl")
    name = f"mix:0.5*{config.name},0.5*{other}"
    mixed = dataclasses.replace(_mixture(config), name=name)
    data = mixed.open()
    assert set(data.fingerprints) >= {"tokenizer", "template"}
    with data.train_stream(4, seed=0) as stream:
        assert set(next(stream)) == {"inputs", "targets", "weights", "starts"}
    sums = {part: {"loss": (8.0, 4.0)} for part in data.parts}
    scores = data.scores(sums)
    assert scores["loss"] == 2.0
    assert "bits_per_byte" not in scores
    assert mixed.open(data.files).fingerprints == data.fingerprints


def _mixture(config):
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(Text)}
    return TextMixture(**{**fields, "name": f"mix:1*{config.name}"})


def test_scores_and_baselines_are_of_what_counts(data):
    assert set(data.scores({"": {"loss": (3.0, 2.0)}})) == {"loss", "perplexity"}
    told = data.scores({"": {"loss": (3.0, 2.0), "agreed": (1.0, 4.0), "none": (0.0, 0.0)}})
    assert set(told) == {"loss", "perplexity", "agreed"}
    assert told["agreed"] == 0.25
    found = data.baselines()
    assert set(found) == {"unigram", "bigram"}
    counting = np.asarray(data.counts["train"]) > 0
    seen = np.bincount(np.asarray(data.train)[counting], minlength=BPE.vocab)
    scored = np.asarray(data.validation)[np.asarray(data.counts["validation"]) > 0]
    wanted = -np.log((seen[scored] + 1) / (seen.sum() + BPE.vocab)).mean()
    assert found["unigram"]["loss"] == pytest.approx(wanted)
    assert found["bigram"]["loss"] < wanted


def test_the_first_tokens_are_whole_conversations(data):
    cut = data.first(200, 1)
    assert len(cut.lengths["validation"]) == 1
    for split in ("train", "validation"):
        lengths, tokens = cut.lengths[split], cut.split(split)
        assert len(tokens) == len(cut.counts[split]) == lengths.sum()
        assert lengths.tolist() == data.lengths[split][: len(lengths)].tolist()
    assert (
        cut.lengths["train"].sum()
        <= 200
        < data.lengths["train"][: len(cut.lengths["train"]) + 1].sum()
    )
    assert data.scored_on("train").counts["validation"] is data.counts["train"]


def test_the_loss_of_packed_rows_is_the_weighted_mean_over_conversations(data):
    model = LanguageModel(Block(GAM(slots=4)), width=8, depth=1, vocab=BPE.vocab, packed=True)
    params = model.init_params(jax.random.key(0))
    packed, single = (of_rows(data, documents=documents) for documents in ("packed", "rows"))
    empty = {name: np.zeros_like(value) for name, value in packed[0].items()}

    def summed(rows):
        rows = [{**row, "starts": row.get("starts", np.arange(128) == 0)} for row in rows]
        rows += [empty] * (len(single) - len(rows))
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        total, count = objective(params, batch)
        return float(total), float(count)

    objective = jax.jit(lambda p, b: (model.objective(p, b)[0], model.count(b)))
    (total, count), (each, counts) = summed(packed), summed(single)
    assert len(packed) < len(single)
    assert count == counts == data.counts["train"].sum()
    assert total / count == pytest.approx(each / counts, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "messages"}, "data.format is 'messages': choose 'text' or 'prompt' or 'chat'"),
        ({"loss": "none"}, "data.loss is 'none': choose 'completion' or 'all'"),
        ({"format": "chat"}, "data.name=python_stdlib has none: set data.format=text"),
        ({"format": "chat", "name": "text:a"}, "set data.documents=packed .* or rows"),
        ({"format": "prompt", "name": "mix:1*text:a"}, "set data.documents=packed"),
        (
            {"format": "chat", "name": "text:a", "documents": "rows", "field": "b"},
            "data.field=b names the field of texts",
        ),
        ({"template": "t.jinja"}, "data.template=t.jinja .* set data.format=chat"),
        ({"template": "gs://a/b", "format": "chat"}, "data.template"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Text(**fields)


def test_a_content_that_spells_a_special_token_is_refused_with_its_line(config):
    bad = {
        "messages": [{"role": "user", "content": f"{EOS} is a token"}, *RECORDS[0]["messages"][1:]]
    }
    own = dataclasses.replace(config, name=lines(_folder(config), [*RECORDS, bad], "c.jsonl"))
    with pytest.raises(UserError, match=r"c.jsonl: c.jsonl, line 41: spells '<\|endoftext\|>'"):
        own.open()


def test_a_template_that_refuses_names_the_line(config):
    template = _folder(config) / "alternate.jinja"
    template.write_text(TEMPLATES["gemma"].source)
    twice = {"messages": [RECORDS[0]["messages"][0], *RECORDS[0]["messages"]]}
    own = dataclasses.replace(
        config, name=lines(_folder(config), [twice, *RECORDS], "d.jsonl"), template=str(template)
    )
    with pytest.raises(UserError, match=r"d.jsonl, line 1: .*alternate.jinja refuses it \(Roles"):
        own.open()


def test_a_long_conversation_is_whole_however_many_records_it_takes(config, monkeypatch):
    monkeypatch.setattr("gam_jax.data.builders.files.pieces.__defaults__", (60,))
    own = dataclasses.replace(config, name=lines(_folder(config), RECORDS, "e.jsonl"))
    data = own.open()
    assert len(data.lengths["train"]) + len(data.lengths["validation"]) == len(RECORDS)


def test_few_conversations_are_split_whole(config):
    own = dataclasses.replace(
        config, name=lines(_folder(config), RECORDS[:3], "f.jsonl"), validation_fraction=0.3
    )
    data = own.open()
    assert sorted((len(data.lengths["train"]), len(data.lengths["validation"]))) == [1, 2]


def test_templates_without_now_are_the_same_on_any_day():
    assert ChatTemplate("a").fingerprint == ChatTemplate("a", where="there").fingerprint
    assert ChatTemplate("a").fingerprint != ChatTemplate("a", now="2024-07-26").fingerprint
