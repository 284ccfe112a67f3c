"""Adapters from and to folders of PEFT, without torch.

The golden folders were written by `tests/golden/peft_adapters.py`, with what PEFT computes.
"""

import functools
import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from gam_jax.adapters import adapted, merged
from gam_jax.convert import from_hf, from_peft, to_peft
from gam_jax.convert.folder import read_config
from gam_jax.convert.hf import write as write_model
from gam_jax.convert.peft import PREFIX, write
from gam_jax.convert.peft_reader import read
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from sharding.errors import UserError
from tests.examples import random_like

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
base = functools.cache(lambda name: from_hf(GOLDEN / f"hf_{name}"))
NAMES = ("llama", "qwen2", "mamba2")


def golden(name):
    """What a PEFT folder holds."""
    folder = GOLDEN / f"peft_{name}"
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, safetensors.numpy.load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_peft(name):
    model, params = from_peft(*base(name), GOLDEN / f"peft_{name}")
    tokens = np.load(GOLDEN / f"hf_{name}" / "expected.npz")["tokens"]
    expected = np.load(GOLDEN / f"peft_{name}" / "expected.npz")["logits"]
    logits, _ = jax.jit(model)(params, tokens)
    np.testing.assert_allclose(logits, expected, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_identity(name, tmp_path):
    """One adapter of PEFT that is several here is one again, as long as they share a."""
    to_peft(*from_peft(*base(name), GOLDEN / f"peft_{name}"), tmp_path / "out", "a/base")
    config, arrays = golden(name)
    again = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    own = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "peft_type")
    assert {name: again[name] for name in own} == {name: config[name] for name in own}
    assert again["base_model_name_or_path"] == "a/base"
    same = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert same.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(same[key], array, err_msg=key)


ADAPTED = {
    "llama": "*",
    "qwen2": "mixer/*",
    "mamba2": "inner/w_zx,inner/w_bc,inner/w_dt",
    "mamba": "inner/w_in,inner/w_x",
    "falcon_h1": "mixer/attention/*,mixer/ssm/w_zx,mixer/ssm/w_bc,ffn/*",
    "mixtral": "mixer/*",
    "deepseek_v3": "mixer/*",
    "olmo3": "mixer/*",  # unlike blocks
    "phi3": "mixer/*,ffn/*",  # one array there holds several matrices; Llama could write it too
}
"""Of each family the matrices on which PEFT opens adapters."""
every_family = pytest.mark.parametrize("name", ADAPTED)


def official(name):
    """The architecture of a golden folder."""
    return read_config(GOLDEN / f"hf_{name}")["architectures"][0]


def random_adapters(name):
    """A golden model with adapters that are not zero, and its parameters."""
    model = adapted(base(name)[0], ADAPTED[name], rank=2, alpha=3.0, rooted=name == "mamba2")
    return model, random_like(model.table())


@every_family
def test_what_is_written_is_what_merging_adds(name):
    """W_merged = W + alpha / r B A of each module, by the arrays of both folders."""
    model, params = random_adapters(name)
    config, arrays = write(model, params, official=official(name))
    bare, whole = merged(model, params)
    _, wanted = write_model(bare, whole, official(name))
    _, found = write_model(bare, without_adapters(params), official(name))
    found = {key: np.asarray(x, np.float64) for key, x in found.items()}
    modules = {key.split(".lora_")[0].removeprefix(PREFIX) for key in arrays}
    for module in modules:
        a, b = (arrays[f"{PREFIX}{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        rank, alpha = (setting(config, kind, module) for kind in ("rank", "alpha"))
        assert len(a) == rank
        found[f"{module}.weight"] += alpha / (rank**0.5 if config["use_rslora"] else rank) * b @ a
    assert all(np.any(found[f"{m}.weight"] != np.asarray(wanted[f"{m}.weight"])) for m in modules)
    for key, array in wanted.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-5, err_msg=key)


def setting(config, kind, module):
    """The rank or the alpha of a module, as PEFT looks it up."""
    for name, value in config[f"{kind}_pattern"].items():
        if module == name or module.endswith(f".{name}"):
            return value
    return config[{"rank": "r", "alpha": "lora_alpha"}[kind]]


def without_adapters(tree):
    own = {name: x for name, x in tree.items() if name != "adapters"}
    return {n: without_adapters(x) if isinstance(x, dict) else x for n, x in own.items()}


@every_family
def test_what_is_written_is_read_back_bit_for_bit(name):
    """Several matrices that are one module there keep ranks of their own."""
    model, params = random_adapters(name)
    written = write(model, params, official=official(name))
    again, same = read(base(name)[0], without_adapters(params), *written, official(name))
    wanted, found = (dict(jax.tree_util.tree_leaves_with_path(x)) for x in (params, same))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=str(path))
    assert again.table().keys() == model.table().keys()


@pytest.mark.parametrize(
    ("name", "on", "message"),
    [
        ("mamba2", "inner/w_out", "'inner/w_out' are of .*mixer.out_proj.*--to-hf"),
        ("mixtral", "ffn/router", "block_sparse_moe.gate"),
        ("mixtral", "ffn/experts/w_in", "experts.0.w3, where PEFT opens none"),
        ("deepseek_v3", "ffn/shared/*", "shared_experts.down_proj"),
    ],
)
def test_what_peft_does_not_open_is_refused(name, on, message):
    model = adapted(base(name)[0], on)
    with pytest.raises(UserError, match=message):
        write(model, random_like(model.table()))


def test_a_model_without_adapters_or_of_no_family_is_refused(tmp_path):
    with pytest.raises(UserError, match="no adapters"):
        to_peft(*base("llama"), tmp_path / "out")
    model = adapted(LanguageModel(Block(GAM(slots=8)), 8, 1, 16), "*")
    with pytest.raises(UserError, match="where this model has a GAM"):
        to_peft(model, random_like(model.table()), tmp_path / "out")
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        to_peft(*random_adapters("llama"), tmp_path)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not known here, 'LORA' alone"),
        ({"use_dora": True}, "use_dora=True is a field"),
        ({"bias": "all"}, "bias='all' is not known"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' may change the model"),
        ({"rank_pattern": {"q_proj": 3}}, "adapter_config.json: r=2 is not the 2 of the arrays"),
        ({"alpha_pattern": {"q_proj": 7}}, "'model.layers.0.self_attn.q_proj' has the scale 3.5"),
        ({"alpha_pattern": {".*q": 7}}, "alpha_pattern=.*whole names"),
        ({"r": 0}, "r=0 is no whole number"),
        ({"r": 4}, "r=4 is not the 2 of the arrays of"),
        ({"later_field": 1}, "later_field=1 is a field that is not known here"),
    ],
)
def test_settings_that_are_not_known_are_refused(changes, message):
    config, arrays = golden("llama")
    with pytest.raises(UserError, match=message) as raised:
        read(*base("llama"), {**config, **changes}, arrays)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {**x, FIRST.replace("lora_A", "lora_magnitude"): x[FIRST]}, "DoRA"),
        (lambda x: {**x, "base_model.model.lm_head.weight": x[FIRST]}, "lm_head.*not known here"),
        (lambda x: {k: v for k, v in x.items() if k != FIRST}, "one of lora_A and lora_B"),
        (lambda x: {**x, FIRST: x[FIRST][:, :-1]}, "q_proj' has arrays .*not of one model"),
        (lambda x: {k.replace("q_proj", "c_proj"): v for k, v in x.items()}, "c_proj' has an ad"),
        (lambda x: {k: v for k, v in x.items() if ".0." not in k}, "in some blocks"),
        (lambda x: {}, "holds no adapters"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    config, arrays = golden("llama")
    with pytest.raises(UserError, match=message):
        read(*base("llama"), config, change(arrays))


def test_a_folder_that_is_damaged_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*adapter_config.json"):
        from_peft(*base("llama"), tmp_path)
    shutil.copy(GOLDEN / "peft_llama" / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"cannot read .*adapter_model.safetensors"):
        from_peft(*base("llama"), tmp_path)
    with pytest.raises(UserError, match="has adapters already"):
        read(*random_adapters("llama"), *golden("llama"))


@every_family
def test_peft_opens_what_is_written(name, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("golden", GOLDEN / "peft_adapters.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model, params = random_adapters(name)
    own = {**params, **{k: v for k, v in base(name)[1].items() if k != "blocks"}}
    to_peft(model, own, tmp_path / "out")
    source = GOLDEN / f"hf_{name}"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "out").eval()
    logits, _ = jax.jit(model)(own, np.load(source / "expected.npz")["tokens"])
    np.testing.assert_allclose(logits, script.logits(opened, source), atol=2e-4)
