"""Classes of one's own join configurations by one line, and nothing else brings them in."""

from __future__ import annotations

import dataclasses
import sys
from typing import ClassVar

import pytest

from gam_jax.config import from_dict, to_dict
from gam_jax.data import DATA, Data, Digits, Recall, Text, TextMixture
from gam_jax.layers import LAYERS, MLP, Block, Layer
from gam_jax.models import MODELS, ImageClassifier, LanguageModel, Model
from gam_jax.registry import register
from gam_jax.training import Experiment
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mine(Layer):
    width: int | None = None
    dropout: float | None = None


@dataclasses.dataclass(frozen=True)
class MyModel(Model):
    sizes: tuple[int, ...] = (1, 2)
    layer: Layer = Mine(width=3)


@dataclasses.dataclass(frozen=True)
class MyData(Data):
    NAMES: ClassVar[tuple[str, ...]] = ("mine",)
    name: str = "mine:a"


@pytest.fixture
def registered(monkeypatch):
    """All three are known while a test runs."""
    for table in (LAYERS, MODELS, DATA):
        for name in ("Mine", "MyModel", "mine"):
            monkeypatch.delitem(table, name, raising=False)
    for kind in (Mine, MyModel, MyData):
        register(kind)
    yield
    for table in (LAYERS, MODELS, DATA):
        for name in ("Mine", "MyModel", "mine"):
            table.pop(name, None)


def test_a_registered_class_goes_to_its_dict_and_back(registered):
    experiment = Experiment(MyModel((3, 4)), MyData("mine:b"))
    values = to_dict(experiment)
    assert values["model"]["class"] == "MyModel"
    assert values["model"]["layer"]["layer"] == "Mine"
    assert from_dict(Experiment, values) == experiment


def test_defining_it_again_is_allowed_and_another_of_its_name_is_not(registered):
    assert register(Mine) is Mine
    again = dataclasses.make_dataclass("Mine", [], bases=(Layer,), frozen=True)
    again.__module__ = "elsewhere"
    with pytest.raises(UserError, match="'Mine' is the name of another class"):
        register(again)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "give a class of Layer, Model or Data"),
        (dataclasses.make_dataclass("Loose", [], bases=(Layer,)), "make it a frozen dataclass"),
        (dataclasses.make_dataclass("Bare", [], bases=(Data,), frozen=True), "give it NAMES"),
    ],
    ids=["no kind", "not frozen", "no names"],
)
def test_what_cannot_be_registered_is_refused(kind, words):
    with pytest.raises((UserError, TypeError), match=words):
        register(kind)


def test_a_class_that_is_not_registered_is_named_with_what_to_do():
    with pytest.raises(UserError, match=r"MyModel is not registered: put register\(MyModel\)"):
        to_dict(Experiment(MyModel()))
    with pytest.raises(UserError, match=r"unknown model 'MyModel'.*--config=FILE.py"):
        from_dict(Experiment, {"model": {"class": "MyModel"}})
    with pytest.raises(UserError, match=r"unknown data set 'mine'.*--config=FILE.py"):
        from_dict(Data, {"name": "mine:a"})


def test_nothing_is_imported_by_a_name_that_stands_in_json(tmp_path, monkeypatch):
    (tmp_path / "bait.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("bait", "bait.Model", "bait:Model"):
        for values in (
            {"model": {"class": name}},
            {"model": {"block": {"layer": name}}},
            {"model": {}, "data": {"name": name}},
        ):
            with pytest.raises(UserError):
                from_dict(Experiment, values)
    assert "bait" not in sys.modules


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({}, Text),
        ({"name": "text:a"}, Text),
        ({"name": "mix:1*text:a,2*python_stdlib"}, TextMixture),
        ({"name": "recall", "pairs": [2, 4]}, Recall),
        ({"name": "digits"}, Digits),
    ],
)
def test_what_stands_before_the_colon_picks_the_class_of_data(data, kind):
    values = {"model": to_dict(LanguageModel(Block(MLP()), 8, 1)), "data": data}
    assert type(from_dict(Experiment, values).data) is kind


def test_a_model_s_class_may_be_left_out_for_language_models_alone():
    model = LanguageModel(Block(MLP()), 8, 1)
    values = {k: v for k, v in to_dict(model).items() if k != "class"}
    assert from_dict(Model, values) == model
    image = to_dict(ImageClassifier(Block(MLP()), 8, 1))
    assert from_dict(Model, image) == ImageClassifier(Block(MLP()), 8, 1)
