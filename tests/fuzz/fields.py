"""Fields of configurations: every one of every registered class, found in their tables."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from experiments.config_flags import config_names
from experiments.show_config import shown
from gam_jax.config import from_dict, to_dict
from gam_jax.data import DATA, Data
from gam_jax.layers import Layer
from gam_jax.models import MODELS, Model
from gam_jax.params import abstract_params, count_params
from gam_jax.training.experiment import Experiment
from tests.examples import EXAMPLES
from tests.fuzz import strange
from tests.fuzz.case import Case
from tests.fuzz.shop import Shop


@functools.cache
def configs() -> dict[str, tuple[type, Any]]:
    """One of each registered class, and each config file: name -> (read as, itself)."""
    found: dict[str, tuple[type, Any]] = {name: (Layer, one) for name, one in EXAMPLES.items()}
    for name in config_names():
        values = importlib.import_module(f"experiments.configs.{name}").get_config().to_dict()
        found[f"config {name}"] = Experiment, from_dict(Experiment, values)
    model = found["config gam_small"][1].model
    for name, kind in MODELS.items():
        needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        found[f"model {name}"] = (
            Model,
            kind(**{field: getattr(model, field, model) for field in needed}),
        )
    for name in DATA:
        text = "mix:0.5*text:a,0.5*text:b" if name == "mix" else f"{name}:x"
        found[f"data {name}"] = Data, from_dict(Data, {"name": text})
    return found


def used(config: Any, base: type) -> None:
    """What a command asks of a configuration before it compiles."""
    assert from_dict(base, json.loads(json.dumps(to_dict(config)))) == config
    _ = shown(config)
    if isinstance(config, Experiment):
        used(config.data, Data)
        config = config.model
    if isinstance(config, Data):
        _ = config.sizes(), config.batch(2)
        return
    with contextlib.suppress(ValueError):  # a model that is not fitted to its data yet
        table = config.table()
        _ = abstract_params(table), count_params(table)
    with contextlib.suppress(ValueError):
        _ = config.carry_table(2) if isinstance(config, Layer) else config.carry_bytes(2)


@st.composite
def config_fields(draw: st.DrawFn, shop: Shop) -> Case:
    """Any field of any class holds anything, as in a config.json."""
    base, config = configs()[draw(st.sampled_from(sorted(configs())))]
    values = json.loads(json.dumps(to_dict(config)))
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        inside = list(parts(values, config))
        if not inside:  # a class without any field
            break
        holder, part = inside[draw(st.integers(0, len(inside) - 1))]
        name = draw(st.sampled_from([field.name for field in dataclasses.fields(part)]))
        holder[name] = draw(strange.like(getattr(part, name)))
    if draw(st.integers(0, 9)) == 0:
        values = draw(strange.mutated(values))

    def call() -> None:
        used(from_dict(base, values), base)

    return Case(f"{base.__name__} {json.dumps(values)}", {}, call)


def parts(values: Any, config: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each dataclass within one that has fields, beside its dict."""
    if dataclasses.fields(config):
        yield values, config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = values.get(field.name)
        if dataclasses.is_dataclass(value) and isinstance(inner, dict):
            yield from parts(inner, value)
