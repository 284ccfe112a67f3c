"""The audit counts what its formulas say, and shows what grows with the sequence."""

from __future__ import annotations

import json

import pytest

from experiments.audit import expected_traffic, memory_by_formula, state_memory
from gam_jax.bilevel import Bilevel
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Block, Mixed
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import Experiment, TrainConfig
from tests.meshes import layout_of

SMALL = (
    "--config.model.width=32",
    "--config.model.depth=2",
    "--config.model.block.mixer.slots=32",
    "--config.data.window=64",
)


@pytest.fixture
def audit(command):
    """The audit's JSON for a mesh."""

    def run(mesh, *args):
        result = command("audit", f"--mesh={mesh}", "--json", *SMALL, *args)
        assert result.code == 0, result.err
        return json.loads(result.out)

    return run


@pytest.mark.parametrize("mesh", ["data=2,seq=2,tensor=2", "data=8", "tensor=4"])
def test_counts_and_bytes_equal_the_formulas(mesh, audit):
    found = audit(mesh, "--config.parallel.preset=fully_sharded+sequence+tensor_tokens")
    assert found["agree"]
    assert all(row["sent"] == row["formula_sent"] > 0 for row in found["rows"])
    sent = sum(row["sent"] for row in found["rows"])
    assert sent <= found["compiled_sent"] <= sent + 2000
    assert found["memory"]["activations and other temporaries"] > 0


def test_three_times_of_products_and_messages_at_given_rates(audit):
    """One by one, in a ring, ideally; slow links are worth hiding, fast ones are not."""
    words = ("--nocompile", "--config.parallel.preset=data+tensor_tokens")
    ring = (*words, "--config.parallel.overlap=ring")
    slow, fast = (audit("tensor=4", *ring, f"--rates=1e9,{link},0.2") for link in ("1e8", "1e12"))
    assert slow["agree"]
    assert fast["agree"]
    assert [row["layer"] for row in slow["doors"]] == ["GAM", "MLP", "MLP"]
    for row in slow["doors"]:
        product, sent = row["flops"] / 1e9, row["sent"] / 1e8
        step = 1.2 * product / 4
        assert row["serial"] == pytest.approx(product + sent)
        assert row["decomposed"] == pytest.approx(step + 3 * max(step, sent / 3))
        assert row["ideal"] == pytest.approx(product / 4 + 3 * max(product / 4, sent / 3))
    assert all(row["worth_it"] for row in slow["doors"])
    assert not any(row["worth_it"] for row in fast["doors"])


def test_rates_that_cannot_be_used_are_refused(command):
    split = "--config.parallel.preset=data+tensor_tokens"
    rules = (split, "--rates=1e9,1e9", "--config.parallel.rules=ffn=none")
    for args in ((split, "--rates=fast"), (split, "--rates=1e9,0"), ("--rates=1e9,1e9",), rules):
        result = command("audit", "--mesh=tensor=2", *SMALL, *args)
        assert result.code == 2
        assert "--rates" in result.err


def test_state_in_shards_is_a_part_of_the_whole(audit):
    memory = audit("data=8", "--config.parallel.preset=fully_sharded", "--nocompile")["memory"]
    held = memory["parameters"] + memory["optimizer state"]
    assert held == pytest.approx(memory["both on one device alone"] / 8, rel=0.01)


def test_bytes_held_equal_the_formulas_whatever_they_are_stored_in(audit):
    fields = ("--config.model.param_dtype=bfloat16", "--config.optimizer.moments=bfloat16")
    args = ("--nocompile", "--config.parallel.preset=zero1")
    wide, narrow = audit("data=2", *args), audit("data=2", *args, *fields)
    for found in (wide, narrow):
        assert found["agree"]
        assert found["memory_by_formula"].items() <= found["memory"].items()
    assert "of it the float32 master copy" in narrow["memory_by_formula"]
    before, after = (found["memory"]["both on one device alone"] for found in (wide, narrow))
    assert after / before == pytest.approx((2 + 4 + 4) / 12, rel=0.01)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_bytes_held_where_logits_are_trained_apart(moments):
    """Averages of logits are float32, and their steps are counted."""
    model = LanguageModel(Block(Mixed((MLP(hidden=8), GAM(slots=8)), "one")), 8, 2, vocab=16)
    train = TrainConfig(accumulate=2, bilevel=Bilevel(0.1))
    run = Experiment(model, Text(), train, OptimizerConfig(moments=moments))
    for layout in (layout_of((1, 1, 1)), layout_of((2, 1, 2), "fully_sharded+tensor")):
        held, formula = state_memory(run, layout), memory_by_formula(run, layout)
        assert held.pop("both on one device alone") >= sum(held.values())
        assert held == formula
        assert expected_traffic(run, layout) is None


def test_traffic_over_split_tokens_stays_where_ring_attention_s_grows(audit):
    rows = audit("seq=4", "--nocompile")["longer"]
    assert [row["tokens"] for row in rows] == [64, 256, 1024]
    assert len({row["halo_sent"] for row in rows}) == 1
    first, _, last = (row["ring_attention_sent"] for row in rows)
    assert last == 16 * first


@pytest.mark.parametrize("vocab", [(), ("--config.model.vocab=300",)], ids=["found", "given"])
def test_where_documents_begin_is_in_the_formulas(vocab, audit):
    args = ("--nocompile", *vocab)
    found, alone = audit("seq=2", "--config.data.documents=packed", *args), audit("seq=2", *args)
    assert found["agree"]
    assert alone["agree"]
    sent, less = (sum(row["sent"] for row in one["rows"]) for one in (found, alone))
    assert sent > less


CONFIG = """
from experiments.config_flags import config
from gam_jax.training.experiment import Experiment
from gam_jax.data.text import Text
from gam_jax.layers import Attention, Block
from gam_jax.models.language import LanguageModel

def get_config():
    block = Block(Attention(heads=4, context=64))
    return config(Experiment(LanguageModel(block, width=32, depth=2), Text(window=64)))
"""


def test_traffic_of_attention_over_split_tokens_is_that_of_a_ring(command, tmp_path):
    (tmp_path / "transformer.py").write_text(CONFIG)
    args = ("--mesh=seq=4", "--nocompile", "--json", f"--config={tmp_path / 'transformer.py'}")
    result = command("audit", *args)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["agree"]
    for row in found["longer"]:  # and two exchanges of half shards: queries, keys and values; back
        exchanged = 2 * 2 * 16 * row["tokens"] // 4 * 32 * 4 * (3 + 1)
        assert row["halo_sent"] == row["ring_attention_sent"] + exchanged


def test_with_other_rules_there_are_counts_and_no_formulas(audit):
    found = audit("tensor=2", "--nocompile", "--config.parallel.rules=ffn=none")
    assert found["agree"] is None
    assert all(row["formula_sent"] is None and row["sent"] > 0 for row in found["rows"])


def test_the_table_is_for_people(command):
    result = command("audit", "--mesh=data=2,seq=2", "--nocompile", *SMALL)
    assert result.code == 0
    for words in ("all_reduce", "data x seq", "equal the formulas", "ring attention would send"):
        assert words in result.out


def test_a_tokenizer_that_does_not_tell_its_size_is_named(command):
    result = command("audit", "--config.data.tokenizer=tokenizer.json")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "set --config.model.vocab" in result.err
