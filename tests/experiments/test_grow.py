"""A trained run grows: an ordinary run folder with the same scores, which trains on anywhere."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from gam_jax.grow import grown, grown_moments, growth
from gam_jax.layers import (
    GAM,
    MLP,
    Attention,
    Block,
    LinearMemory,
    MoE,
    Residual,
    RMSNorm,
)
from gam_jax.models import LanguageModel, SideTuned
from gam_jax.training.folder import RunFolder, load_params
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.arrays import initial
from tests.examples import random_like

HIDDEN, DEPTH = "--config.model.block.ffn.hidden=160", "--config.model.depth=3"


def one_device():
    return Layout(make_mesh(devices=jax.devices()[:1]))


@pytest.fixture
def grown_run(trained, workshop, command):
    """The trained run with more hidden units, twice as many slots, and a block more."""
    path = workshop.path / "grown"
    if not path.exists():
        slots = "--config.model.block.mixer.slots=64"
        flags = (f"--run={trained.path}", f"--out={path}", HIDDEN, DEPTH, slots, "--json")
        result = command("grow", *flags)
        assert result.code == 0, result.err
        facts = json.loads(result.out)
        assert facts["difference"] < 1e-5
        assert facts["grown"] == [
            "block.mixer.slots: 32 -> 64",
            "block.ffn.hidden: 128 -> 160",
            "depth: 1 more blocks",
        ]
        assert facts["parameters"][1] > facts["parameters"][0]
    return path


def test_what_grows_may_be_computed_otherwise():
    """Methods, chunks and blocks change no function; the hidden units that grow are found."""
    block = Block(LinearMemory(heads=2), MLP(hidden=8))
    wider = Block(LinearMemory(heads=2, chunk=8, method="associative"), MLP(hidden=16))
    small, large = (LanguageModel(own, 8, 1, vocab=4) for own in (block, wider))
    assert len(growth(small, large).steps) == 1
    other = dataclasses.replace(wider, mixer=LinearMemory(heads=2, negative=True))
    with pytest.raises(UserError, match="computes something else"):
        growth(small, dataclasses.replace(large, block=other))


def test_the_grown_run_scores_as_before_on_another_mesh(grown_run, trained, command):
    scores = []
    for path, mesh in ((trained.path, "data=1"), (grown_run, "data=2,tensor=2")):
        words = (f"--run={path}", "--tokens=2048", f"--mesh={mesh}", "--json")
        result = command("evaluate", *words)
        assert result.code == 0, result.err
        scores.append(json.loads(result.out))
    assert scores[0]["step"] == scores[1]["step"]
    assert scores[1]["loss"] == pytest.approx(scores[0]["loss"], rel=1e-5)


def test_it_has_no_beginning_of_its_own(grown_run, trained, command):
    assert json.loads((grown_run / "init.json").read_text())["source"].startswith(str(trained.path))
    result = command("train", f"--run={grown_run}", "--resume=0", "--mesh=data=1")
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert "began from another run, and its checkpoint 0 is gone" in result.err


def test_it_trains_on_and_its_optimizer_remembers(grown_run, command):
    folder = RunFolder(grown_run)
    _, before = load_params(folder, folder.experiment(), one_device())
    words = ("--resume", "--mesh=data=4", "--config.train.steps=124", "--change=train.steps")
    result = command("train", f"--run={grown_run}", *words, "--json")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (grown_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"][-1] == 124
    step, after = load_params(folder, folder.experiment(), one_device())
    assert step == 124
    old, new = (np.asarray(params["blocks"]["ffn"]["w_out"]) for params in (before, after))
    assert np.any(new[2] != old[2])  # a block that changed nothing learns


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config.model.block.ffn.hidden=100",), "`gam shrink` keeps some"),
        (("--config.model.depth=1",), "blocks are added, and not taken from 2"),
        (("--config.model.block.mixer.slots=40",), "choose a multiple of 32"),
        (("--config.model.width=48",), "no unit covers that"),
        (("--config.model.block.mixer.kernel=9",), "blocks/mixer/conv would be"),
        (("--config.train.batch=4", HIDDEN), "--config.train.batch: `gam grow` changes sizes"),
        ((), "nothing grows"),
        (("--config.model.block.norms=sandwich", HIDDEN), "blocks"),
        (("--config.model.logit_scale=2.0", HIDDEN), "computes something else"),
    ],
)
def test_what_cannot_grow_is_one_line(words, message, trained, command, tmp_path):
    result = command("grow", f"--run={trained.path}", f"--out={tmp_path / 'b'}", *words)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert message in result.err
    assert not (tmp_path / "b").exists()


def test_sizes_that_the_usual_config_does_not_have_can_be_set(trained, command, tmp_path):
    """As those of a Residual; what else a config names is not taken from there."""
    old = RunFolder(trained.path).experiment()
    block = Residual(LinearMemory(heads=2, key_width=4, value_width=4))
    new = dataclasses.replace(old, model=LanguageModel(block, 16, 2, vocab=256))
    source = RunFolder(tmp_path / "a")
    source.start(new, {})
    words = (f"--run={source.path}", f"--out={tmp_path / 'b'}")
    result = command("grow", *words, "--config.model.block.inner.heads=3")
    assert "no checkpoint in" in result.err, result.err
    result = command("grow", *words, "--config.model.block.inner.heads=1")
    assert "2 units cannot become 1" in result.err, result.err
    result = command("grow", *words, "--config=gam_paper", "--config.model.depth=3")
    assert "from its own configuration" in result.err, result.err


@pytest.mark.parametrize("verb", ["grow", "shrink"])
def test_another_model_is_refused_by_its_kind(verb, trained, command, tmp_path):
    old = RunFolder(trained.path).experiment()
    inner = LanguageModel(Block(GAM(slots=8), MLP()), 16, 2, vocab=256)
    optimizer = dataclasses.replace(old.optimizer, only="side/*")
    new = dataclasses.replace(old, model=SideTuned(inner), optimizer=optimizer)
    RunFolder(tmp_path / "a").start(new, {})
    words = {"grow": "--config.model.inner.depth=3", "shrink": "--keep=ffn:0.5"}[verb]
    result = command(verb, f"--run={tmp_path / 'a'}", f"--out={tmp_path / 'b'}", words)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert f"only language models {verb}, not a SideTuned" in result.err


def model(block, **fields):
    return LanguageModel(block, **{"width": 16, "depth": 2, "vocab": 32, **fields})


FFN = MLP(hidden=24, activation="swiglu", bias=False)
HEADS = Attention(heads=4, kv_heads=2, head_size=4, context=32)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            model(Block(HEADS, FFN, RMSNorm()), tied=False),
            model(
                Block(
                    Attention(heads=12, kv_heads=4, head_size=4, context=32),
                    MLP(hidden=40, activation="swiglu", bias=False),
                    RMSNorm(),
                ),
                tied=False,
                width=32,
                depth=3,
            ),
            id="width, groups, queries, hidden units and depth",
        ),
        pytest.param(
            model(Block(GAM(slots=8, slot_bias=True), MoE(4, 2, MLP(hidden=8), shared=1))),
            model(
                Block(
                    GAM(slots=11, slot_bias=True),
                    MoE(8, 4, MLP(hidden=12), shared=1, shared_hidden=20),
                ),
            ),
            id="slots, experts and what is chosen, hidden units of all",
        ),
        pytest.param(
            model(Residual(LinearMemory(heads=2, key_width=4, value_width=4))),
            model(Residual(LinearMemory(heads=3, key_width=4, value_width=4)), depth=4),
            id="memories and depth",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_models_of_several_kinds_keep_their_function(old, new):
    found = growth(old, new)
    params = random_like(old.table())
    larger = jax.jit(lambda p: grown(found, p, jax.random.key(1)))(params)
    wanted = jax.eval_shape(new.init_params, jax.random.key(0))
    assert jax.tree.map(np.shape, larger) == jax.tree.map(np.shape, wanted)
    moments = jax.eval_shape(lambda p: grown_moments(found, p, 2), params)
    assert jax.tree.map(np.shape, moments) == jax.tree.map(np.shape, wanted)
    tokens = np.random.default_rng(2).integers(0, 32, (2, 8)).astype(np.int32)
    logits = [jax.jit(one)(p, tokens)[0] for one, p in ((old, params), (new, larger))]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4 * np.abs(logits[0]).max())


def test_noise_moves_copies_alone():
    old, new = model(Block(HEADS, FFN)), model(Block(HEADS, MLP(hidden=30, **PLAIN)))
    params, found = jax.tree.map(np.asarray, initial(old)), growth(old, new)
    exact, moved = (
        jax.tree.map(
            np.asarray, jax.jit(lambda p, n=n: grown(found, p, jax.random.key(1), n))(params)
        )
        for n in (0.0, 0.01)
    )
    for name in ("w_in", "w_gate"):
        a, b = exact["blocks"]["ffn"][name], moved["blocks"]["ffn"][name]
        np.testing.assert_array_equal(a[..., :24], b[..., :24])
        ratio = np.std(b[..., 24:] - a[..., 24:]) / np.std(params["blocks"]["ffn"][name])
        assert 0.005 < ratio < 0.02
    np.testing.assert_array_equal(*(x["blocks"]["ffn"]["w_out"] for x in (exact, moved)))


PLAIN = {"activation": "swiglu", "bias": False}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            model(Block(HEADS, MoE(4, 2, MLP(hidden=8)))),
            model(Block(HEADS, MoE(8, 2, MLP(hidden=8)))),
            "let chosen grow alike",
        ),
        (
            model(Block(HEADS, MoE(4, 2, MLP(hidden=8)))),
            model(Block(HEADS, MoE(4, 1, MLP(hidden=16)))),
            "computes something else",
        ),
        (
            model(Block(HEADS, FFN)),
            model(Block(HEADS, FFN), width=32),
            "the head is the embedding",
        ),
        (
            model(Block(HEADS, FFN), tied=False),
            model(Block(HEADS, FFN), tied=False, width=24),
            "norms see the whole width: choose a multiple of 16",
        ),
        (
            model(Block(Attention(heads=4, context=32), FFN)),
            model(Block(Attention(heads=8, context=32), FFN)),
            "a head's, can be given",
        ),
        (
            model(Residual(LinearMemory(16, heads=2, variant="retnet"))),
            model(Residual(LinearMemory(16, heads=4, variant="retnet", key_width=8))),
            "decay of a head is that of its number",
        ),
        (
            model(Block(HEADS, FFN, norms="post")),
            model(Block(HEADS, FFN, norms="post"), depth=3),
            "does not say what makes a block of it one that changes nothing",
        ),
    ],
)
def test_what_would_change_the_function_is_refused(old, new, message):
    with pytest.raises(UserError, match=message):
        growth(old, new)
