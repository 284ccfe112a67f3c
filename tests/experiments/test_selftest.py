"""Legal configurations of each class are read, written and read again, and held against theirs."""

from __future__ import annotations

import importlib.util

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.selftest.families import CONFIGS
from experiments.selftest.legal import LEGAL, fields
from experiments.selftest.run import ENDING, chosen, drawn_cases
from gam_jax.convert.folder import read_config
from gam_jax.convert.hf import FAMILIES, read, write
from gam_jax.params import abstract_params
from sharding.errors import UserError
from tests.examples import random_like
from tests.gam_jax.convert.test_hf import GOLDEN

KINDS = sorted({kind for kind, _ in CONFIGS.values()})
FIRST = {kind: (name, values) for name, (kind, values) in reversed(CONFIGS.items())}


def test_every_class_that_is_read_has_a_folder_and_legal_fields():
    official = {kind + ENDING for kind in KINDS}
    elsewhere = FAMILIES.keys() - official
    library = {f"{name}{ENDING}" for name in ("GLA", "DeltaNet", "GatedDeltaNet", "RetNet")}
    assert elsewhere == {"MambaLMHeadModel", "Qwen2ParScaleForCausalLM", *library}, (
        "made by their official code"
    )
    assert LEGAL.keys() == set(KINDS)
    for kind, drawn in LEGAL.items():
        for name, values in drawn.items():
            assert isinstance(values, tuple), (kind, name)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(data=st.data())
def test_a_legal_config_is_written_as_what_gives_the_same_model_and_the_same_arrays(kind, data):
    name, values = FIRST[kind]
    drawn = {name: data.draw(st.sampled_from(x), name) for name, x in LEGAL[kind].items()}
    model_type = read_config(GOLDEN / name)["model_type"]
    official = {"architectures": [kind + ENDING], "model_type": model_type}
    model = FAMILIES[kind + ENDING].model({**values, **fields(drawn), **official})
    params = random_like(model.table())
    again, same = read(*write(model, jax.tree.map(np.asarray, params), kind + ENDING))
    assert abstract_params(again.table()) == abstract_params(model.table())
    assert FAMILIES[kind + ENDING].config(again) == FAMILIES[kind + ENDING].config(model)
    chex.assert_trees_all_equal(same, params)


def test_draws_are_the_same_each_time_and_lie_over_the_first_folder_of_a_class():
    cases = chosen(["Llama", "hf_mamba2"])
    assert [case.name for case in cases] == ["hf_llama", "hf_llama3", "hf_mamba2"]
    found = drawn_cases(cases, 3)
    assert found == drawn_cases(cases, 3)
    assert [case.kind for case in found] == ["Llama"] * 3 + ["Mamba2"] * 3
    assert all(case.values.items() >= case.drawn.items() for case in found)


def test_what_is_no_folder_and_no_class_is_refused():
    with pytest.raises(UserError, match="'Lama' is neither a folder nor a class; known are Llama"):
        chosen(["Llama", "Lama"])


def test_without_torch_it_says_what_is_needed(command):
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        pytest.skip("torch and transformers are here")
    result = command("convert", "--selftest")
    assert result.code == 2
    assert "pip install 'gam_jax[official]'" in result.err


def test_the_folders_of_a_class_hold(command):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    result = command("convert", "--selftest", "--only=hf_llama,hf_gemma2")
    assert result.code == 0, result.out
    assert result.out.endswith("2 of 2 folders hold\n")
