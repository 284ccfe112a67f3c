"""A trained run is made narrower: an ordinary run folder, of what matters most."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from gam_jax import units
from gam_jax.adapters import adapted
from gam_jax.layers import MLP, Attention, Block, LinearMemory, MoE, Residual
from gam_jax.models import LanguageModel
from gam_jax.shrink import asked, shrinking
from gam_jax.training.folder import RunFolder, load_params
from sharding.errors import UserError
from tests.arrays import compiled
from tests.examples import random_like
from tests.experiments.test_grow import one_device

MODEL = LanguageModel(
    Block(Attention(heads=4, kv_heads=2, head_size=4, context=16), MLP(hidden=12)),
    width=8,
    depth=3,
    vocab=16,
)


def test_the_narrower_run_trains_on_elsewhere(trained, command, tmp_path):
    out = tmp_path / "narrow"
    words = (f"--run={trained.path}", f"--out={out}", "--keep=ffn:0.5", "--by=contribution")
    result = command("shrink", *words, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["kept"] == ["block.ffn.hidden: 128 -> 64"]
    before, after = facts["losses"]
    assert before < after < before + 1.0
    assert facts["parameters"][1] < facts["parameters"][0]
    folder = RunFolder(out)
    _, kept = load_params(folder, folder.experiment(), one_device())
    old = RunFolder(trained.path)
    _, wide = load_params(old, old.experiment(), one_device())
    weights = (np.asarray(params["blocks"]["ffn"]["w_in"]) for params in (kept, wide))
    for own, old in zip(*weights, strict=True):
        assert {*map(bytes, own.T)} < {*map(bytes, old.T)}
    words = ("--resume", "--mesh=data=2,tensor=2", "--config.train.steps=122")
    result = command("train", f"--run={out}", *words, "--change=train.steps", "--json")
    assert result.code == 0, result.err


def test_each_layer_keeps_what_scores_most_and_moments_follow():
    params = random_like(MODEL.table())
    found = shrinking(MODEL, params, asked("ffn:0.5,mixer.queries:0.5", MODEL), units.scale)
    assert found.told() == ["block.ffn.hidden: 12 -> 6", "block.mixer.queries: 4 -> 2"]
    w_in, w_out = (np.asarray(params["blocks"]["ffn"][n]) for n in ("w_in", "w_out"))
    b_in = np.asarray(params["blocks"]["ffn"]["b_in"])
    size = np.sqrt(((w_in**2).sum(1) + b_in**2) * (w_out**2).sum(1))
    best = np.sort(np.argsort(-size, axis=1)[:, :6], axis=1)
    np.testing.assert_array_equal(found.steps[0].index, best)
    narrow = compiled(found.params, params)
    own = {name: np.asarray(x) for name, x in narrow["blocks"]["ffn"].items()}
    for layer in range(3):
        np.testing.assert_array_equal(own["w_in"][layer], w_in[layer][:, best[layer]])
        np.testing.assert_array_equal(own["w_out"][layer], w_out[layer][:, best[layer]])
    shapes = jax.tree.map(np.shape, random_like(found.model.table()))
    assert jax.tree.map(np.shape, narrow) == shapes
    queries = np.asarray(found.steps[1].index)
    assert np.all(np.sort(queries // 2, axis=-1) == [0, 1])  # one of each group


def test_what_else_changes_is_told():
    mixer = Attention(heads=2, context=16)
    routed = LanguageModel(Block(mixer, MoE(4, 2, MLP(hidden=6))), width=8, depth=1, vocab=16)
    params = random_like(routed.table())
    found = shrinking(routed, params, {"block.ffn.experts": 0.5}, units.scale)
    assert found.told() == ["block.ffn.experts: 4 -> 2, chosen: 2 -> 1"]
    retention = Residual(LinearMemory(16, heads=2, variant="retnet"))
    fixed = LanguageModel(retention, width=16, depth=1, vocab=16)
    found = shrinking(fixed, random_like(fixed.table()), {"block.inner.groups": 0.5}, units.scale)
    assert "2 -> 1, the first, since the decay" in found.told()[0]


def test_blocks_without_units_are_named():
    bare = adapted(MODEL, "ffn/*", rank=2)
    with pytest.raises(UserError, match="blocks of Adapted tell of no units"):
        asked("ffn:0.5", bare)


def test_scores_that_are_no_numbers_are_refused():
    def scores(params, unit):
        return units.scale(params, unit).at[0, 0].set(np.nan)

    with pytest.raises(UserError, match="not all of its scores are finite"):
        shrinking(MODEL, random_like(MODEL.table()), {"block.ffn.hidden": 0.5}, scores)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("ffn", "write units and a share below 1"),
        ("ffn:1.5", "write units and a share below 1"),
        ("width:0.5", "norms see the whole width"),
        ("mixer:0.5", "names several units: give one of block.mixer.groups, block.mixer.queries"),
        ("slots:0.5", "names no units: give one of"),
        ("ffn:0.5,hidden:0.5", "is there twice"),
        ("ffn:0.01", "leaves 0"),
        ("groups:0.5,queries:0.5", "are both parts of blocks/mixer/query: keep some of the one"),
    ],
)
def test_what_cannot_be_kept_is_one_line(keep, message):
    with pytest.raises(UserError, match=message):
        shrinking(MODEL, random_like(MODEL.table()), asked(keep, MODEL), units.scale)
