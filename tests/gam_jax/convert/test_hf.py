"""Folders of Hugging Face transformers, read and written without torch.

The golden folders were written by `gam convert --selftest --keep=tests/golden`, with what
transformers computes from them.
"""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gam_jax import decode
from gam_jax.convert import from_hf, to_hf
from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.convert.hf import FAMILIES, read, write
from gam_jax.convert.patterns import blocks_of
from gam_jax.layers import GAM, MLP, Attention, Block, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.nested import with_held
from gam_jax.ops.rotary import Positions
from sharding.errors import UserError
from tests.examples import random_like
from tests.meshes import slow_unless_chosen

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NAMES = (
    "hf_llama",
    "hf_qwen2",
    "hf_llama3",
    "hf_mistral",
    "hf_qwen2_sliding",
    "hf_qwen3",
    "hf_smollm3",
    "hf_gemma",
    "hf_gemma2",
    "hf_gemma3",
    "hf_olmo2",
    "hf_olmo3",
    "hf_phi3",
    "hf_glm4",
    "hf_qwen3_moe_mixed",
    "hf_mamba",
    "hf_mamba2",
    "hf_falcon_h1",
    "hf_falcon_h1_normed",
    "hf_mamba_biased",
    "hf_mamba2_biased",
    "hf_falcon_h1_biased",
    "hf_granite",
    "hf_bamba",
    "hf_granite4",
    "hf_granite4_dense",
    "hf_nemotron_h",
    "hf_nemotron_h_moe",
    "hf_jamba",
    "hf_mixtral",
    "hf_qwen3_moe",
    "hf_deepseek_v3",
    "hf_deepseek_v3_plain",
    "hf_qwen3_next",
    "hf_qwen3_5",
    "hf_qwen3_5_moe",
    "hf_olmo_hybrid",
    "hf_kimi_linear",
    "hf_deepseek_v3_odd",
    "hf_deepseek_v3_dense",
    "hf_deepseek_v2",
    "hf_glm4_moe",
    "hf_gpt_oss",
)
"""Of classes of transformers."""
PARSCALE = "hf_parscale"  # by its official code, see tests/golden/parscale.py
LIBRARY = ("hf_gla", "hf_gla_convolved", "hf_delta_net", "hf_gated_deltanet", "hf_retnet")
"""By the code of flash-linear-attention, see tests/golden/fla_models.py."""
EVERY = (*NAMES, PARSCALE, *LIBRARY)
every_folder = pytest.mark.parametrize("name", EVERY)
ALIKE = ("hf_qwen2_sliding", "hf_olmo2", "hf_qwen3_5_moe", "hf_gla_convolved")
"""Folders whose logits are found by the same code as those of another."""


def arrays_of(folder):
    return read_config(folder), read_tensors(folder)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in EVERY],
)
def test_logits_are_those_of_transformers(name):
    model, params = from_hf(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    model = model.for_length(expected["tokens"].shape[1])
    logits, _ = jax.jit(model)(params, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-4)


WRITES = (
    "hf_llama",
    "hf_phi3",
    "hf_mamba",
    "hf_deepseek_v3_odd",
    "hf_gpt_oss",
    "hf_retnet",
    PARSCALE,
)
"""Folders whose text is written by default, one for each kind of cache; the others are slow."""


@pytest.mark.parametrize(
    "name",
    slow_unless_chosen(
        [(name,) for name in EVERY],
        [(name,) for name in WRITES],
    ),
)
def test_greedy_text_is_that_of_transformers(name):
    model, params = from_hf(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    pieces = decode.generate(
        model, params, expected["tokens"], 12, jax.random.key(0), temperature=0.0
    )
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), expected["greedy"])


@every_folder
@pytest.mark.parametrize("shard_bytes", [10**9, 5_000])
def test_there_and_back_is_the_identity_in_one_file_or_in_many(name, shard_bytes, tmp_path):
    model, params = from_hf(GOLDEN / name)
    config, tensors = arrays_of(GOLDEN / name)
    beside = {"config.json": (GOLDEN / name / "config.json").read_bytes()}
    official = config["architectures"][0]
    to_hf(model, params, tmp_path / "out", shard_bytes, official, source=beside)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard_bytes == 5_000)
    again, same = arrays_of(tmp_path / "out")
    assert same.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(same[key], array, err_msg=key)
    written = config.keys() & again.keys()
    assert {k: config[k] for k in written} == {k: again[k] for k in written}
    assert from_hf(tmp_path / "out")[0] == model


def test_half_precision_is_read_into_float32(tmp_path):
    shutil.copytree(GOLDEN / "hf_llama", tmp_path / "half")
    tensors = read_tensors(GOLDEN / "hf_llama")
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    safetensors.numpy.save_file(half, tmp_path / "half" / "model.safetensors")
    _, params = from_hf(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    scale = half["model.norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["final_norm"]["scale"], scale)


def test_biases_of_llama_go_both_ways():
    block = Block(
        Attention(heads=2, bias=True, out_bias=True, context=16, block_size=8),
        MLP(activation="swiglu", hidden=12),
        RMSNorm(),
    )
    model = LanguageModel(block, width=8, depth=2, vocab=16, norm=RMSNorm(), tied=False)
    params = random_like(model.table())
    config, tensors = write(model, params)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "model.layers.1.mlp.up_proj.bias" in tensors
    again, same = read(config, tensors)
    assert again.block.mixer.out_bias
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_array_equal(dict(jax.tree_util.tree_leaves_with_path(same))[path], leaf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLN"]}, "did you mean 'LlamaForCausalLM'"),
        (
            {"architectures": None},
            "unknown architecture 'None'; choose one of: Bamba.*SmolLM3ForCausalLM",
        ),
        ({"rope_parameters": {"rope_type": "axial"}}, "rope_type='axial'.*not known"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "no rope_scaling.factor"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'.*'silu' alone"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"num_hidden_layers": 3}, r"has no 'model.layers.2.self_attn.q_proj.weight'"),
        ({"intermediate_size": 48}, r"0.mlp.gate_proj.weight' has .*\(40, 24\).*\(48, 24\)"),
        ({"num_attention_heads": 5}, "not a multiple"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(changes, message):
    config, tensors = arrays_of(GOLDEN / "hf_llama")
    with pytest.raises(UserError, match=message) as raised:
        read({**config, **changes}, tensors)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hf_falcon_h1", {"scale": 2.0}, "no such positions: scale=2.0"),
        ("hf_falcon_h1", {"turned": 2}, "no such positions: turned=2"),
        ("hf_falcon_h1", {"neighbours": True}, "neighbours=False where"),
        ("hf_llama", {"neighbours": True}, "neighbours=False where"),
        ("hf_llama", {"kind": "linear", "factor": 2.0, "slow": 3.0}, "no such positions: .*slow"),
        ("hf_deepseek_v3", {"turned": 2}, "no such positions: turned=2"),
    ],
)
def test_positions_that_a_class_does_not_have_are_refused(name, changes, message):
    """Each kind is written as itself, or not at all."""
    model, params = from_hf(GOLDEN / name)
    official = read_config(GOLDEN / name)["architectures"][0]
    positions = Positions(**changes)
    with pytest.raises(UserError, match=message):
        write(with_positions(model, positions), params, official)


def with_positions(config, positions):
    own = {"positions": positions} if hasattr(config, "positions") else {}
    return with_held(config, lambda inner: with_positions(inner, positions), **own)


def test_smollm3_has_windows_where_it_has_no_positions():
    config = read_config(GOLDEN / "hf_smollm3")
    changes = {"use_sliding_window": True, "sliding_window": 5, "layer_types": None}
    model = FAMILIES["SmolLM3ForCausalLM"].model({**config, **changes})
    windows = [block.mixer.window for block in blocks_of(model)]
    assert windows == [5 if not turns else 0 for turns in config["no_rope_layers"]]


def test_what_phi_3_called_longrope_first_is_read():
    config, tensors = arrays_of(GOLDEN / "hf_phi3")
    older = {**config["rope_parameters"], "rope_type": "su"}
    assert read({**config, "rope_parameters": older}, tensors)[0] == read(config, tensors)[0]


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*config.json"):
        from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no model.safetensors"):
        from_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot read .*model.safetensors"):
        from_hf(tmp_path)
    index = {"weight_map": {"lm_head.weight": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors.numpy.save_file({"x": np.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"names lm_head.weight, which a.safetensors does not"):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(GAM(slots=8), norm=RMSNorm()), "Attention where this model has a GAM"),
        (Block(Attention(sinks=True), MLP(activation="swiglu"), RMSNorm()), "mixer.sinks=False"),
        (Block(Attention(), MLP(), RMSNorm()), "ffn.activation='swiglu' where"),
        (
            Block(Attention(), MLP(activation="swiglu"), RMSNorm(), form="parallel"),
            "block.form='sequential' where",
        ),
    ],
)
def test_what_transformers_lacks_is_refused(block, message, tmp_path):
    model = LanguageModel(block, width=8, depth=1, vocab=16, norm=RMSNorm())
    with pytest.raises(UserError, match=message):
        to_hf(model, random_like(model.table()), tmp_path / "out")


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        to_hf(*from_hf(GOLDEN / "hf_llama"), tmp_path)


def test_a_parscale_folder_of_one_stream_is_read_as_the_qwen2_that_it_is():
    config, tensors = arrays_of(GOLDEN / PARSCALE)
    one = {name: x for name, x in tensors.items() if "prefix" not in name and "agg" not in name}
    model, params = read({**config, "parscale_n": 1}, one)
    assert model.streams == 1
    config, _ = write(model, params)
    assert config["architectures"] == ["Qwen2ForCausalLM"]


def test_streams_of_what_has_no_official_code_are_refused(tmp_path):
    model = LanguageModel(Block(GAM(slots=8), norm=RMSNorm()), 8, 1, 16, norm=RMSNorm(), streams=2)
    with pytest.raises(UserError, match="Attention where this model has a GAM"):
        to_hf(model, random_like(model.table()), tmp_path / "out")
