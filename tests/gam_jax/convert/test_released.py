"""Released models from their published sizes, without weights."""

import json
import pathlib

import pytest

from gam_jax.convert.hf import FAMILIES
from gam_jax.params import count_params

RELEASED = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "released.json").read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_as_many_parameters_as_transformers_counts(name):
    config = RELEASED[name]["config"]
    model = FAMILIES[config["architectures"][0]].model(config)
    assert count_params(model.table()) == RELEASED[name]["parameters"]
