"""Quantized weights mean the numbers of their published rules, and reach every family plain."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gam_jax.convert import from_hf, to_hf
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import in_memory, open_arrays, read_config, read_tensors
from gam_jax.convert.formats import dequantized, format_of
from gam_jax.convert.hf import model_of_config, read, write
from sharding.checkpoint import names
from sharding.errors import UserError
from tests.examples import random_like

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
MXFP4 = {"quant_method": "mxfp4"}


def plain(config, arrays):
    """The arrays of a folder that says so of its quantization."""
    stored = {name: in_memory(name, array) for name, array in arrays.items()}
    found = dequantized(format_of(Fields({"quantization_config": config})), stored)
    return {name: one.array for name, one in found.items()}


def e4m3(code):
    """arXiv 2209.05433, table 1, and section 3: sign, four bits of exponent (bias 7), three."""
    sign, exponent, mantissa = -1 if code >> 7 else 1, code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return np.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def e2m1(code):
    """OCP Microscaling Formats v1.0, section 5.3.3: sign, two bits of exponent (bias 1), one."""
    sign, exponent, mantissa = -1 if code >> 3 else 1, code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else (2 + mantissa) * 2.0 ** (exponent - 2))


def test_fp8_is_each_block_times_its_scale():
    """float64 loops; the last blocks have fewer rows and columns, as DeepSeek-V3's have."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (11, 13), np.uint8)
    codes.flat[:143] = np.arange(143)
    codes[10, 12] = 0x7F
    scales = rng.uniform(0.01, 3, (3, 4)).astype(np.float32)
    weight = codes.view(ml_dtypes.float8_e4m3fn)
    config = {**FP8, "weight_block_size": [5, 4]}
    found = plain(config, {"a.weight": weight, "a.weight_scale_inv": scales})["a.weight"]
    wanted = np.empty((11, 13))
    for i in range(11):
        for j in range(13):
            wanted[i, j] = e4m3(int(codes[i, j])) * float(scales[i // 5, j // 4])
    np.testing.assert_array_equal(found, wanted.astype(np.float32))
    part = found[3:11, ::-1].T[2:9]
    np.testing.assert_array_equal(part, wanted[3:11, ::-1].T[2:9].astype(np.float32))
    with pytest.raises(UserError, match="is of dtype F8_E4M3"):
        read(read_config(GOLDEN / "hf_llama"), {"lm_head.weight": weight})


def test_mxfp4_is_each_number_times_two_to_its_exponent():
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (2, 3, 2, 16), np.uint8)
    scales = rng.integers(0, 255, (2, 3, 2), np.uint8)
    found = plain(MXFP4, {"up_blocks": blocks, "up_scales": scales, "up_bias": np.ones(3)})
    assert set(found) == {"up", "up_bias"}
    wanted = np.empty((2, 64, 3))
    for e, row, group, byte in np.ndindex(*blocks.shape):
        for half in range(2):
            code = int(blocks[e, row, group, byte]) >> 4 * half & 15
            place = 32 * group + 2 * byte + half
            wanted[e, place, row] = e2m1(code) * 2.0 ** (int(scales[e, row, group]) - 127)
    with np.errstate(over="ignore"):
        wanted = wanted.astype(np.float32)
    np.testing.assert_array_equal(found["up"], wanted)
    np.testing.assert_array_equal(found["up"][1, 30:37, 1:], wanted[1, 30:37, 1:])


def test_an_exponent_of_mxfp4_may_be_no_number():
    arrays = {"up_blocks": np.ones((1, 1, 16), np.uint8), "up_scales": np.full((1, 1), 255)}
    arrays["up_scales"] = arrays["up_scales"].astype(np.uint8)
    assert np.isnan(plain(MXFP4, arrays)["up"]).all()


def test_both_are_bit_for_bit_what_transformers_makes_of_them():
    golden = np.load(GOLDEN / "quantized.npz")
    arrays = {"up_blocks": golden["mxfp4_blocks"], "up_scales": golden["mxfp4_scales"]}
    found = np.asarray(plain(MXFP4, arrays)["up"])
    np.testing.assert_array_equal(found.view(np.uint32), golden["mxfp4"].view(np.uint32))
    weight = golden["fp8_codes"].view(ml_dtypes.float8_e4m3fn)
    arrays = {"a.weight": weight, "a.weight_scale_inv": golden["fp8_scales"]}
    found = np.asarray(plain({**FP8, "weight_block_size": [8, 8]}, arrays)["a.weight"])
    np.testing.assert_array_equal(found.view(np.uint32), golden["fp8"].view(np.uint32))


@pytest.fixture
def folder(tmp_path):
    """A golden Qwen3 whose projections of blocks are fp8, as its makers publish them."""
    path = shutil.copytree(GOLDEN / "hf_qwen3", tmp_path / "fp8")
    tensors, small = read_tensors(path), {}
    for name, array in tensors.items():
        small[name] = array.astype(ml_dtypes.bfloat16)
        if "_proj." in name and array.ndim == 2:
            blocks = [-(-n // 4) for n in array.shape]
            small[name] = array.astype(ml_dtypes.float8_e4m3fn)
            small[f"{name}_scale_inv"] = np.linspace(0.5, 2, blocks[0] * blocks[1]).reshape(blocks)
            small[f"{name}_scale_inv"] = small[f"{name}_scale_inv"].astype(np.float32)
    safetensors.numpy.save_file(small, path / "model.safetensors")
    says(
        path,
        {
            **FP8,
            "weight_block_size": [4, 4],
            "modules_to_not_convert": ["lm_head", "mlp.up", "*.nor?"],
        },
    )
    return path


def says(path, quantization):
    config = {**read_config(GOLDEN / "hf_qwen3"), "quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))


def test_a_family_reads_a_quantized_folder_as_the_plain_one(folder, command):
    config = read_config(folder)
    stored = open_arrays(folder)
    arrays = {name: np.asarray(one.array) for name, one in stored.items()}
    plain_arrays = {}
    for name, array in arrays.items():
        scale = arrays.get(f"{name}_scale_inv")
        if scale is not None:
            spread = scale.repeat(4, axis=0).repeat(4, axis=1)
            array = array * spread[: array.shape[0], : array.shape[1]]
        if not name.endswith("_scale_inv"):
            plain_arrays[name] = array
    config.pop("quantization_config")
    model, wanted = read(config, plain_arrays)
    found = from_hf(folder)
    assert found[0] == model
    for name, leaf in names.flat(found[1]).items():
        np.testing.assert_array_equal(leaf, names.flat(wanted)[name], err_msg=name)
    source = {"config.json": (folder / "config.json").read_bytes()}
    to_hf(*found, folder.parent / "plain", source=source)
    assert "quantization_config" not in read_config(folder.parent / "plain")
    assert from_hf(folder.parent / "plain")[0] == model
    told = command("convert", f"--check={folder}")
    assert told.code == 0, told.err
    assert "fp8 e4m3, a scale for each block of 4 x 4" in told.out
    back = command("convert", f"--check={folder}", "--json")
    assert json.loads(back.out)["format"]["F8_E4M3"] > 0


def test_gpt_oss_is_read_from_blocks_as_from_plain_experts():
    config = {**read_config(GOLDEN / "hf_gpt_oss"), "hidden_size": 32, "intermediate_size": 64}
    model = model_of_config(config)
    _, tensors = write(model, random_like(model.table()), "GptOssForCausalLM")
    rng, small, wide = np.random.default_rng(2), {}, {}
    for name, array in tensors.items():
        small[name] = wide[name] = np.asarray(array)
        if ".experts." in name and name.endswith("_proj"):
            experts, inputs, outputs = array.shape
            shape = (experts, outputs, inputs // 32)
            blocks = rng.integers(0, 256, (*shape, 16), np.uint8)
            scales = rng.integers(120, 128, shape, np.uint8)
            del small[name]
            small |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            pairs = {"x_blocks": blocks, "x_scales": scales}
            wide[name] = np.asarray(plain(MXFP4, pairs)["x"])
    said = {**MXFP4, "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    found, params = read({**config, "quantization_config": said}, small)
    assert found == model
    wanted = names.flat(read(config, wide)[1])
    for name, leaf in names.flat(params).items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)


def test_transformers_reads_the_same_numbers(folder):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    to_hf(*from_hf(folder), folder.parent / "plain")
    opened = transformers.AutoModelForCausalLM.from_pretrained
    theirs = opened(folder, dtype="float32").state_dict()
    ours = opened(folder.parent / "plain").state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], array) for name, array in ours.items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"weight_block_size": [4, 5]},
            ") where blocks of (4, 5) ask for",
        ),
        ({"weight_block_size": None}, "weight_block_size=None is not known here"),
        ({"weight_block_size": [8]}, "weight_block_size=[8] is not known here"),
        ({"activation_scheme": "static"}, "activation_scheme='static' is not known here"),
        ({"fmt": "e5m2"}, "fmt='e5m2'"),
        ({"modules_to_not_convert": ["model.layers.*.mlp"]}, "is quantized, and config.json says"),
        ({"modules_to_not_convert": ["model.layers.1"]}, "is quantized, and config.json says"),
        ({"ignored_layers": ["up_proj"]}, "mlp.up_proj.weight' is quantized, and config.json says"),
        ({"modules_to_not_convert": "lm_head"}, "is no list of names"),
        ({"new_field": 1}, "quantization_config.new_field=1 is a field that is not known"),
        ({"quant_method": "mxfp4", "weight_block_size": None}, "no array of the folder is"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(folder, changes, told):
    config = read_config(folder)["quantization_config"] | changes
    if changes.get("quant_method") == "mxfp4":
        config = {"quant_method": "mxfp4"}
    says(folder, config)
    with pytest.raises(UserError) as raised:
        from_hf(folder)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "kind", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "torchao", "fbgemm_fp8", "quanto"]
)
def test_other_methods_are_refused_by_name(kind):
    config = read_config(GOLDEN / "hf_llama")
    with pytest.raises(UserError, match=f"weights are quantized .'{kind}'.") as raised:
        model_of_config({**config, "quantization_config": {"quant_method": kind, "bits": 4}})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"up_blocks": (1, 1, 16)}, "no 'up_scales'"),
        ({"up_blocks": (1, 1, 8), "up_scales": (1, 1)}, "have the shapes"),
        ({"up_blocks": (1, 2, 16), "up_scales": (1, 1)}, "have the shapes"),
        ({"up": (1, 16)}, "no array of the folder is"),
    ],
)
def test_blocks_and_scales_of_mxfp4_must_fit(arrays, told):
    with pytest.raises(UserError, match=told):
        plain(MXFP4, {name: np.zeros(shape, np.uint8) for name, shape in arrays.items()})
