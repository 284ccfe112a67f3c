"""Mamba, Mamba-2 and Falcon-H1 of Hugging Face transformers, here.

The golden folders are tiny random models that transformers saved, with what it computed from
them: see tests/golden/state_spaces.py. Where torch and transformers are installed, other random
models are compared directly.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gam_jax import decode
from gam_jax.config import from_dict, to_dict
from gam_jax.layers import GAM, Block
from gam_jax.model import LanguageModel
from gam_jax.state_spaces_hf import FAMILIES, read, write
from sharding.errors import UserError
from tests.golden import state_spaces
from tests.meshes import layout_of

GOLDEN = pathlib.Path(state_spaces.__file__).parent
TOLERANCE = 2e-4

every_folder = pytest.mark.parametrize("name", state_spaces.CONFIGS)


def opened(folder):
    """Configuration and tensors of a folder."""
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return dict(arrays)


def logits_of(model, params, tokens):
    return jax.jit(lambda params, tokens: model(params, tokens)[0])(params, tokens)


@every_folder
def test_logits_are_those_of_transformers(name):
    model, params = read(*opened(GOLDEN / name))
    wanted = expected(name)
    found = logits_of(model, params, wanted["tokens"])
    np.testing.assert_allclose(found, wanted["logits"], rtol=0, atol=TOLERANCE)


@every_folder
def test_greedy_text_written_from_the_carry_is_that_of_transformers_without_a_cache(name):
    model, params = read(*opened(GOLDEN / name))
    wanted = expected(name)
    count = wanted["greedy"].shape[1]
    pieces = decode.generate(
        model, params, wanted["tokens"], count, jax.random.key(0), temperature=0.0
    )
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), wanted["greedy"])


@every_folder
def test_export_gives_back_every_array_and_the_model(name):
    config, tensors = opened(GOLDEN / name)
    model, params = read(config, tensors)
    exported, arrays = write(config["model_type"], model, params)
    assert set(arrays) == set(tensors)
    for key, array in tensors.items():
        np.testing.assert_array_equal(arrays[key], array, err_msg=key)
    assert read(exported, arrays)[0] == model
    assert exported["architectures"] == config["architectures"]
    same = set(exported) & set(config) - {"time_step_limit", "rope_parameters"}
    assert {key: exported[key] for key in same} == {key: config[key] for key in same}


@every_folder
def test_the_model_is_a_config_like_any_other(name):
    model, _ = read(*opened(GOLDEN / name))
    assert from_dict(LanguageModel, json.loads(json.dumps(to_dict(model)))) == model


def test_a_hybrid_from_outside_gives_its_logits_on_a_mesh():
    from gam_jax.train import make_eval_step

    model, params = read(*opened(GOLDEN / "hf_falcon_h1"))
    tokens = np.random.default_rng(0).integers(0, 48, (2, 17)).astype(np.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((2, 16), np.float32),
    }
    losses = [
        float(make_eval_step(model, layout_of(shape))(params, batch)[0])
        for shape in ((1, 1, 1), (2, 2, 2))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("hf_mamba", {"use_bias": True}, "use_bias=True"),
        ("hf_mamba2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("hf_falcon_h1", {"attention_bias": True}, "attention_bias=True"),
        ("hf_falcon_h1", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ("hf_falcon_h1", {"model_type": "falcon"}, "model_type 'falcon' is not one of"),
    ],
)
def test_what_is_not_known_is_named(name, change, words):
    config, tensors = opened(GOLDEN / name)
    with pytest.raises(UserError, match=words):
        read({**config, **change}, tensors)


def test_a_missing_array_is_named():
    config, tensors = opened(GOLDEN / "hf_mamba")
    del tensors["backbone.layers.1.mixer.D"]
    with pytest.raises(UserError, match=r"mixer\.D"):
        read(config, tensors)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_that_transformers_cannot_express_is_refused(kind):
    model = LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=8)
    with pytest.raises(UserError, match="it cannot be written as that"):
        write(kind, model, {})


@every_folder
def test_transformers_opens_what_is_written_and_agrees(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = state_spaces.random_model(name, seed=1)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = read(*opened(tmp_path / "theirs"))
    wanted = state_spaces.expected(theirs, seed=1)
    np.testing.assert_allclose(
        logits_of(model, params, wanted["tokens"]), wanted["logits"], rtol=0, atol=TOLERANCE
    )
    config, tensors = write(theirs.config.model_type, model, params)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "ours" / "model.safetensors", {"format": "pt"})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        found = again(torch.tensor(wanted["tokens"], dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(found, wanted["logits"], rtol=0, atol=TOLERANCE)
