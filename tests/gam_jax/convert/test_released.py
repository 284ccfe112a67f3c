"""Released models from their published sizes, without weights."""

import json
import pathlib

import pytest

from gam_jax.convert.hf import FAMILIES, architecture
from gam_jax.params import count_params

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
RELEASED = {
    name: found
    for file in ("released.json", "released_hybrids.json")
    for name, found in json.loads((GOLDEN / file).read_text()).items()
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_as_many_parameters_as_its_own_class_counts(name):
    config = RELEASED[name]["config"]
    model = FAMILIES[architecture(config)].model(config)
    assert count_params(model.table()) == RELEASED[name]["parameters"]
