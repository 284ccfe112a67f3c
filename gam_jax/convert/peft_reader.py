"""Adapters read from folders of PEFT, without torch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gam_jax.adapters import adapted, blocks, is_adapted
from gam_jax.convert import folder as files
from gam_jax.convert.fields import Fields, is_number
from gam_jax.convert.peft import ARRAYS, CONFIG, SUFFIX, Pair
from gam_jax.convert.places import Part, places, sizes_of
from gam_jax.layers.adapted import matrices, pairs
from gam_jax.models.language import LanguageModel
from gam_jax.params import Param, Params
from sharding.errors import UserError
from sharding.paths import local_path

_NAME = re.compile(r"base_model\.model\.([\w.]{1,300})\.lora_(A|B)\.weight", re.ASCII)

HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
)
"""Fields of adapter_config.json that change nothing of what saved adapters compute.

Which modules have adapters is told by their arrays. Dropout is of training alone.
"""


def from_peft(
    model: LanguageModel, params: Params, folder: str | Path, official: str | None = None
) -> tuple[LanguageModel, Params]:
    """The model with the adapters of a PEFT folder, and its parameters.

    Args:
      model: the one that they were trained on, without adapters.
      params: its parameters.
      folder: adapter_config.json and adapter_model.safetensors.
      official: the architecture of the model's folder; None for the first that expresses it, see
        `convert.hf.written_as`.

    Raises:
      UserError: a folder that cannot be read; a field or an array of it that is not known here;
        modules that are no matrices of the model, or have adapters in some blocks alone, or of
        several ranks or scales.
    """
    path = local_path(folder)
    config = files.read_object(path, CONFIG)
    stored = {
        name: files.as_float32(name, array) for name, array in files.open_file(path, ARRAYS).items()
    }
    return read(model, params, config, stored, official)


def read(
    model: LanguageModel,
    params: Params,
    config: Mapping[str, Any],
    arrays: Mapping[str, Any],
    official: str | None = None,
) -> tuple[LanguageModel, Params]:
    """`from_peft` of what a folder holds."""
    if is_adapted(model):
        raise UserError("the model has adapters already: give the one that they were trained on")
    fields = Fields(config, file=CONFIG)
    settings = _settings(fields)
    empty = {name: x for name, x in config.items() if x is False or x in ([], {}, "")}
    fields.check_all_used(HARMLESS, empty)
    known = matrices(model.stack.table())
    where = places(model, known, official)
    filled: dict[str, _Filled] = {}
    for module, pair in _pairs(fields, settings, arrays).items():
        if module + SUFFIX not in where:
            raise UserError(f"'{module}' has an adapter and is no matrix of this model's blocks")
        rows, parts = where[module + SUFFIX]
        _check_shapes(module, pair, rows, len(parts[0].inputs))
        for part, a, b in _split(module, pair, parts, settings):
            if part.name not in filled:
                filled[part.name] = _Filled(part.name, known[part.name], settings.rank)
            filled[part.name].put(module, part, a, b)
    return _with(model, params, filled, settings)


class Settings(NamedTuple):
    """What adapter_config.json says of all modules.

    Attributes:
      rank, alpha, rooted: as `layers.Adapted` has them.
      ranks, alphas: of modules that have others, by name or by its end.
    """

    rank: int
    alpha: float
    rooted: bool
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]

    def scale(self, alpha: float, rank: int) -> float:
        """What is multiplied with b a."""
        return alpha / (math.sqrt(rank) if self.rooted else rank)


def _settings(fields: Fields) -> Settings:
    """What the fields say; a UserError for one that is not known."""
    if fields.get("peft_type") != "LORA":
        raise fields.refused("peft_type", "is not known here, 'LORA' alone")
    if fields.get("bias") not in (None, "none"):
        raise fields.refused("bias", "is not known here, 'none' alone")
    if fields.get("init_lora_weights") not in (None, True, False, "gaussian"):
        raise fields.refused("init_lora_weights", "may change the model itself: merge it in PEFT")
    patterns = []
    for name in ("rank_pattern", "alpha_pattern"):
        found = fields.get(name) or {}
        if not isinstance(found, Mapping) or not all(
            re.fullmatch(r"[\w.]+", key, re.ASCII) and is_number(x) for key, x in found.items()
        ):
            raise fields.refused(name, "is not known here, whole names and their numbers alone")
        patterns.append(found)
    return Settings(
        fields.size("r"),
        fields.number("lora_alpha", above=0),
        fields.flag("use_rslora", False),
        *patterns,
    )


def _pairs(fields: Fields, settings: Settings, arrays: Mapping[str, np.ndarray]) -> dict[str, Pair]:
    """The adapter of each module; a UserError for an array that is none of these."""
    sides: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        if match is None or array.ndim != 2:
            raise UserError(
                f"{ARRAYS}: {name!a} is not known here: weights of lora_A and lora_B alone, not "
                f"those of embeddings, magnitudes (DoRA), biases or modules_to_save"
            )
        sides[match[1]][match[2]] = array
    found = {}
    for module, both in sides.items():
        if len(both) != 2:
            raise UserError(f"{ARRAYS}: '{module}' has one of lora_A and lora_B, not both")
        rank = _of(settings.ranks, module, settings.rank)
        if len(both["A"]) != rank:
            raise fields.refused("r", f"is not the {len(both['A'])} of the arrays of '{module}'")
        alpha = _of(settings.alphas, module, settings.alpha)
        found[module] = Pair(both["A"], both["B"], settings.scale(alpha, rank))
    if not found:
        raise UserError(f"{ARRAYS} holds no adapters")
    return found


def _of(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT finds it: the first name that is the module's, or its end."""
    ends = (name for name in pattern if f".{module}".endswith(f".{name}"))
    name = next(ends, None)
    return default if name is None else pattern[name]


def _check_shapes(module: str, pair: Pair, rows: int, columns: int) -> None:
    rank = len(pair.a)
    if pair.a.shape != (rank, columns) or pair.b.shape != (rows, rank):
        raise UserError(
            f"the adapter of '{module}' has arrays {pair.a.shape} and {pair.b.shape}, and its "
            f"matrix is ({rows}, {columns}): they are not of one model"
        )


def _split(
    module: str, pair: Pair, parts: list[Part], settings: Settings
) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
    """For each matrix in a module its a [rank, inputs] and b [its outputs, rank].

    They share a; or each has ranks of its own, as `to_peft` writes them. To what is not adapted
    there it adds zeros.
    """
    rank, wanted = settings.rank, settings.scale(settings.alpha, settings.rank)
    if not math.isclose(pair.scale, wanted, rel_tol=1e-6):
        raise UserError(
            f"{CONFIG}: the adapter of '{module}' has the scale {pair.scale:g} and others "
            f"{wanted:g}: one for all is known here (alpha_pattern, rank_pattern)"
        )
    left = pair.b.copy()
    parts = [part for part in parts if pair.b[part.rows].any()] or parts
    for place, part in enumerate(parts):
        own = slice(None) if len(pair.a) == rank else slice(place * rank, (place + 1) * rank)
        yield part, pair.a[own], pair.b[part.rows][:, own]
        left[part.rows, own] = 0
    if len(pair.a) not in (rank, len(parts) * rank) or left.any():
        raise UserError(
            f"{CONFIG}: the adapter of '{module}' has the rank {len(pair.a)} and others {rank}: "
            f"one for all is known here (rank_pattern)"
        )


class _Filled:
    """The adapters of all matrices of a name, as they come.

    Args:
      name: of the matrices.
      param: the parameter that they are.
      rank: of each.
    """

    def __init__(self, name: str, param: Param, rank: int) -> None:
        count, inputs, outputs = sizes_of(param)
        self.name, self.there = name, np.zeros((count, outputs), bool)
        self.a = np.zeros((count, inputs, rank), np.float32)
        self.b = np.zeros((count, rank, outputs), np.float32)

    def put(self, module: str, part: Part, a: np.ndarray, b: np.ndarray) -> None:
        """A part's; a UserError where another module of the same matrix has another a."""
        layer, first = part.layer, not self.there[part.layer].any()
        if not first and not np.array_equal(self.a[layer][part.inputs], a.T):
            raise UserError(f"'{module}' and others are one matrix here, '{self.name}', and differ")
        self.a[layer][part.inputs] = a.T
        self.b[layer][:, part.outputs] = b.T
        self.there[layer][part.outputs] = True


def _with(
    model: LanguageModel, params: Params, filled: Mapping[str, _Filled], settings: Settings
) -> tuple[LanguageModel, Params]:
    """The adapted model and its parameters; a UserError where some matrices have no adapters."""
    names = [prefix for prefix, _ in blocks(model.block) if prefix]
    on = {next((n.removeprefix(p) for p in names if n.startswith(p)), n) for n in filled}
    own = adapted(model, ",".join(sorted(on)), settings.rank, settings.alpha, settings.rooted)
    wanted = {name: (path, entry) for name, path, entry in pairs(own.stack.table())}
    missing = [name for name in wanted if name not in filled or not filled[name].there.all()]
    if missing:
        raise UserError(f"{ARRAYS}: '{missing[0]}' has adapters in some blocks and not in others")
    changed: Any = dict(params)
    for name, (path, entry) in wanted.items():
        place = changed
        for step in ("blocks", *path):
            place[step] = dict(place.get(step, {}))
            place = place[step]
        for part in "ab":
            place[part] = jnp.asarray(getattr(filled[name], part).reshape(entry[part].shape))
    return own, changed
