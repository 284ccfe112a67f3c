"""Classes of one's own beside those of the project: layers, models and data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from gam_jax.config import LAYER_KEY
from gam_jax.data import DATA, Data
from gam_jax.layers import LAYERS, Layer
from gam_jax.models import MODELS, Model
from sharding.errors import UserError

Kind = TypeVar("Kind", bound=type)


def register(kind: Kind) -> Kind:
    """Makes a class of one's own known to configurations: a `Layer`, a `Model` or `Data`.

    One line below the class, or a decorator above it, in the file or notebook that defines it.
    Commands reach it by --config=FILE.py. Nothing is ever imported by a name that stands in a
    run folder: the file must be given.

    Args:
      kind: a frozen dataclass.

    Returns:
      The same class.

    Raises:
      UserError: it is none of these, no frozen dataclass, or its name is taken.
    """
    for base, table in ((Layer, LAYERS), (Model, MODELS), (Data, DATA)):
        if isinstance(kind, type) and issubclass(kind, base):
            _check_frozen(kind)
            names = kind.NAMES if base is Data else (kind.__name__,)  # type: ignore[attr-defined]
            if not names:
                raise UserError(f"register({kind.__name__}): give it NAMES, as ('my_data',)")
            fields = {field.name for field in dataclasses.fields(cast(Any, kind))}
            if base is Layer and LAYER_KEY in fields:
                raise UserError(
                    f"register({kind.__name__}): a layer's field cannot be called '{LAYER_KEY}', "
                    f"which names its class in configurations"
                )
            for name in names:
                _check_free(kind, name, table)
            table.update(dict.fromkeys(names, kind))  # type: ignore[arg-type]
            return cast(Kind, kind)
    raise UserError(f"register({kind!r}): give a class of Layer, Model or Data")


def _check_frozen(kind: type[Any]) -> None:
    settings = getattr(kind, "__dataclass_params__", None)
    if not dataclasses.is_dataclass(kind) or settings is None or not settings.frozen:
        raise UserError(
            f"register({kind.__name__}): make it a frozen dataclass, by "
            f"@dataclasses.dataclass(frozen=True)"
        )


def _check_free(kind: type, name: str, table: Mapping[str, type]) -> None:
    """A class may be defined again, as when a notebook's cell runs twice."""
    other = table.get(name)
    if other is not None and _place(other) != _place(kind):
        raise UserError(
            f"register({kind.__name__}): '{name}' is the name of another class, of {other}: "
            f"choose another name"
        )


def _place(kind: type) -> tuple[str, str]:
    """Where a class is defined: the file, or the notebook's module; and its name there."""
    module = sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None) or kind.__module__, kind.__qualname__
