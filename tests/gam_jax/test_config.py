"""Configurations become dicts and come back; what is wrong is named, with the nearest right."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gam_jax.config import flatten, from_dict, to_dict, unknown
from gam_jax.layers import GAM, MLP, Block, Layer
from gam_jax.models.language import LanguageModel
from sharding.errors import UserError

MODEL = LanguageModel(Block(GAM(slots=8)), width=16, depth=2, dropout=0.25)


def changed(path, value):
    """The model's dict with one field set."""
    values = json.loads(json.dumps(to_dict(MODEL)))
    *groups, name = path.split(".")
    inner = values
    for group in groups:
        inner = inner[group]
    inner[name] = value
    return values


def test_a_dict_is_json_and_brings_the_configuration_back():
    values = to_dict(MODEL)
    assert json.loads(json.dumps(values)) == values
    back = from_dict(LanguageModel, values)
    assert back == MODEL
    assert hash(back) == hash(MODEL)


def test_what_a_layer_inherits_is_written_once():
    flat = flatten(to_dict(MODEL))
    assert flat["width"] == 16
    assert flat["dropout"] == 0.25
    assert not [name for name in flat if name.endswith((".width", ".dropout"))]


def test_inherited_values_follow_the_model_they_are_inherited_from():
    values = to_dict(MODEL) | {"width": 32, "dropout": 0.5}
    model = from_dict(LanguageModel, values)
    block = model.block
    assert block.mixer.width == block.ffn.width == block.norm.width == 32
    assert block.ffn.dropout == 0.5
    assert model == LanguageModel(Block(GAM(slots=8)), width=32, depth=2, dropout=0.5)


def test_a_value_of_its_own_is_written_and_stays():
    model = dataclasses.replace(MODEL, block=Block(GAM(slots=8), ffn=MLP(dropout=0.5)))
    values = to_dict(model)
    assert values["block"]["ffn"]["dropout"] == 0.5
    back = from_dict(LanguageModel, values | {"dropout": 0.1})
    assert (back.block.ffn.dropout, back.dropout) == (0.5, 0.1)


def test_fields_that_are_left_out_take_their_defaults():
    model = from_dict(
        LanguageModel,
        {"block": {"layer": "Block", "mixer": {"layer": "GAM"}}, "width": 4, "depth": 1},
    )
    assert model == LanguageModel(Block(GAM()), width=4, depth=1)


def test_a_layer_is_made_by_its_name():
    assert from_dict(Layer, {"layer": "MLP", "expansion": 2}) == MLP(expansion=2)


def test_an_integer_is_a_float_where_a_float_is_meant():
    dropout = from_dict(LanguageModel, changed("dropout", 0)).dropout
    assert (dropout, type(dropout)) == (0.0, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (changed("depht", 3), ["config.depht", "'depth'"]),
        (changed("block.mixer.slot", 3), ["config.block.mixer.slot", "'slots'"]),
        (
            changed("block.ffn.zzz", 3),
            ["config.block.ffn.zzz", "activation, alpha, bias"],
        ),
        (changed("block.mixer.layer", "GAMM"), ["config.block.mixer.layer", "'GAM'"]),
        (changed("block.mixer", {}), ["config.block.mixer.layer", "unknown layer"]),
        (changed("block.mixer", 7), ["config.block.mixer", "expected fields", "7"]),
        (changed("depth", "two"), ["config.depth", "expected int", "'two'"]),
        (changed("depth", 2.0), ["config.depth", "expected int", "2.0"]),
        (changed("depth", True), ["config.depth", "expected int", "True"]),
        (changed("remat", 1), ["config.remat", "expected bool", "1"]),
        (changed("vocab", "many"), ["config.vocab", "expected int or none", "'many'"]),
        (changed("width", None), ["config.width", "expected int", "None"]),
        (changed("dropout", "0.1"), ["config.dropout", "expected float", "'0.1'"]),
        (changed("init", "loud"), ["config", "'loud'", "sound, published"]),
        (changed("block.mixer.variant", "fll"), ["config.block.mixer", "'fll'", "full"]),
        (changed("block.mixer.kernel", 0), ["config.block.mixer", "kernel", "at least 1"]),
        ({"width": 4}, ["config", "block", "depth"]),
        ("text", ["config", "expected fields of LanguageModel", "'text'"]),
    ],
)
def test_what_is_wrong_is_named_by_its_path(values, words):
    with pytest.raises(UserError) as caught:
        from_dict(LanguageModel, values)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_gets_the_nearest_or_all():
    assert unknown("depht", ["width", "depth"], "field").endswith("did you mean 'depth'?")
    assert unknown("xyz", ["width", "depth"], "field").endswith("choose one of: depth, width")


def test_flat_names_are_dotted():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": {}}) == {"a.b.c": 1, "a.d": None}
