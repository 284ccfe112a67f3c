"""Any model goes out as a folder of JSON and safetensors, and comes back bit for bit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.config import MODEL_KEY, to_dict
from gam_jax.convert import load_model, save_model
from gam_jax.layers import GAM, Block, LinearMemory, Pattern
from gam_jax.models import ImageClassifier, LanguageModel
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel
from tests.arrays import put
from tests.examples import random_like

GAMS = LanguageModel(Block(GAM(slots=8)), width=8, depth=2, vocab=16)
MODELS = {
    "gam": GAMS,
    "streams": dataclasses.replace(GAMS, streams=2, prefix=3),
    "bfloat16": dataclasses.replace(GAMS, param_dtype="bfloat16", logit_cap=3.0, tied=False),
    "pattern": LanguageModel(
        Pattern((Block(GAM(slots=8)), Block(LinearMemory(heads=2))), (0, 1, 0)), 8, 1, vocab=16
    ),
    "classifier": ImageClassifier(Block(GAM(slots=8)), 8, 1, side=4, classes=3),
}


def params_of(model):
    """Random, in the dtypes in which they are stored."""
    return random_like(model.stored_table())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard_bytes", [10**9, 300])
def test_what_is_written_is_read_back_bit_for_bit(name, shard_bytes, tmp_path):
    model = MODELS[name]
    params = params_of(model)
    save_model(model, params, tmp_path / "out", shard_bytes)
    files = len(list((tmp_path / "out").glob("*.safetensors")))
    assert (files > 1) == (shard_bytes == 300)
    again, same = load_model(tmp_path / "out")
    assert again == model
    wanted = dict(jax.tree_util.tree_leaves_with_path(params))
    found = dict(jax.tree_util.tree_leaves_with_path(same))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        assert found[path].dtype == leaf.dtype
        np.testing.assert_array_equal(found[path], leaf, err_msg=str(path))


def test_it_is_read_onto_the_shards_of_a_mesh(tmp_path):
    params = params_of(GAMS)
    save_model(GAMS, params, tmp_path)
    layout = Layout(make_mesh(data=2, tensor=2), Parallel("fully_sharded+tensor"))
    _, placed = load_model(tmp_path, layout)
    assert not placed["embedding"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, params)


def test_ten_lines_of_python_open_it(tmp_path):
    save_model(GAMS, params_of(GAMS), tmp_path)
    model, params = load_model(tmp_path)
    logits, carry = jax.jit(model)(params, put([[1, 2, 3]]))
    more, _ = model(params, put([[4]]), carry)
    whole, _ = model(params, put([[1, 2, 3, 4]]))
    np.testing.assert_allclose(jnp.concatenate([logits, more], axis=1), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type='llama' .*no folder of save_model"),
        ({"format": 2}, "format=2 .*later gam_jax, this one reads 1"),
        ({"format": None}, "has no format"),
        ({"model": None}, "the folder has lost what its model is"),
        ({"model": {**to_dict(GAMS), "modle": 1}}, "unknown field 'modle'"),
        ({"model": {**to_dict(GAMS), MODEL_KEY: "os.system"}}, "unknown model 'os.system'"),
        ({"model": {**to_dict(GAMS), "vocab": 17}}, r"has the shape \(16, 8\) where .*\(17, 8\)"),
        ({"model": {**to_dict(GAMS), "tied": False}}, "has no 'head'"),
        ({"model": {**to_dict(GAMS), "depth": 0}}, "depth"),
        ({"model": {**to_dict(GAMS), "param_dtype": "bfloat16"}}, "is of dtype F32 .* stores BF16"),
        ({"note": "x"}, "note='x' .*field that is not known"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(changes, words, tmp_path):
    save_model(GAMS, params_of(GAMS), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=words) as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_array_that_the_model_does_not_have_is_refused(tmp_path):
    untied = dataclasses.replace(GAMS, tied=False)
    save_model(untied, params_of(untied), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["tied"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the folder has 'head'"):
        load_model(tmp_path)
