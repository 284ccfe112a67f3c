"""Adapters written as folders of PEFT, without torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gam_jax.adapters import adapters_of, is_adapted, plain
from gam_jax.convert.folder_writer import check_empty
from gam_jax.convert.hf import family_of
from gam_jax.convert.places import Part, array_names, places
from gam_jax.layers.adapted import Adapted, pairs
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError
from sharding.paths import local_path

CONFIG, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, SUFFIX = "base_model.model.", ".weight"

BYPASSED = {
    "mamba": ("out_proj", "dt_proj"),
    "mamba2": ("out_proj",),
    "falcon_h1": ("out_proj",),
}
"""Of a model_type, modules whose kernels read the matrix past an adapter; PEFT refuses out_proj."""


class Pair(NamedTuple):
    """An adapter of one module: what is added to its matrix is scale b a.

    Attributes:
      a: [rank, inputs].
      b: [outputs, rank].
      scale: alpha / rank, or alpha / sqrt(rank).
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


def to_peft(
    model: LanguageModel,
    params: Params,
    folder: str | Path,
    base: str = "",
    official: str | None = None,
) -> None:
    """Writes adapters as a folder that PEFT opens on the model without them.

    Where several matrices here are one module there, its adapter has the rank of all of them
    together, unless their a are the same.

    Args:
      model: with adapters.
      params: its parameters.
      folder: to write.
      base: a folder or name of the model without adapters, which is written down.
      official: the architecture of that model, whose arrays' names are used; None for the first
        that expresses it, see `convert.hf.written_as`.

    Raises:
      UserError: a model without adapters, or that no family writes; adapters of experts or
        routers, or of a module that PEFT opens none on; a folder that is not empty.
    """
    import safetensors.numpy

    config, arrays = write(model, params, base, official)
    path = local_path(folder)
    check_empty(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        safetensors.numpy.save_file(arrays, path / ARRAYS, metadata={"format": "pt"})
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def write(
    model: LanguageModel, params: Params, base: str = "", official: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """adapter_config.json and arrays, see `to_peft`."""
    if not is_adapted(model):
        raise UserError("the model has no adapters: train some with --adapt, or write --to-hf")
    bare = plain(model)
    _, config = family_of(bare, official)
    factors = {}
    for name, path, entry in pairs(model.stack.table()):
        own = _at(params["blocks"], path)
        factors[name] = entry["a"], np.asarray(own["a"]), np.asarray(own["b"])
    found: dict[str, Pair] = {}
    refused = {*BYPASSED.get(config["model_type"], ()), *_of_experts(array_names(bare, official))}
    for name, (rows, parts) in places(bare, factors, official).items():
        module = name.removesuffix(SUFFIX)
        if _word(module) in refused:
            raise UserError(
                f"adapters of '{parts[0].name}' are of {module}, where PEFT opens none in models "
                f"of the type {config['model_type']}: write the merged model with --to-hf"
            )
        found[module] = _joined(rows, [(part, *factors[part.name]) for part in parts])
    arrays = {
        f"{PREFIX}{module}.lora_{letter}{SUFFIX}": np.ascontiguousarray(x, np.float32)
        for module, pair in found.items()
        for letter, x in (("A", pair.a), ("B", pair.b))
    }
    return _config(array_names(bare, official), adapters_of(model)[0], found, base), arrays


def _of_experts(names: Iterable[str]) -> set[str]:
    """Modules of experts and routers, by their last words.

    transformers holds experts as one array each, which PEFT finds by these words, whatever stands
    before them: in shared experts and dense blocks too.
    """
    own = [name.removesuffix(SUFFIX) for name in names if ".experts." in name]
    return {*map(_word, own), *(["gate", "router"] if own else [])}


def _word(module: str) -> str:
    return module.rpartition(".")[2]


def _joined(rows: int, parts: list[tuple[Part, Any, np.ndarray, np.ndarray]]) -> Pair:
    """The adapter of a module that holds several matrices, or one."""
    scale = parts[0][1].scale
    cut = []
    for part, _, a, b in parts:
        rank, outputs = a.shape[-1], np.zeros((rows, a.shape[-1]), np.float32)
        every = a.reshape(-1, len(part.inputs), rank)
        own, other = every[part.layer], b.reshape(len(every), rank, -1)[part.layer]
        outputs[part.rows] = other[:, part.outputs].T
        cut.append((own[part.inputs].T, outputs))
    first = cut[0][0]
    if all(np.array_equal(a, first) for a, _ in cut):
        return Pair(first, np.sum([b for _, b in cut], axis=0), scale)
    return Pair(np.concatenate([a for a, _ in cut]), np.concatenate([b for _, b in cut], 1), scale)


def _config(
    names: Iterable[str], like: Adapted, found: Mapping[str, Pair], base: str
) -> dict[str, Any]:
    """adapter_config.json; a module is named by its last word where that means no other."""
    words: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if name.endswith(SUFFIX):
            words[_word(name.removesuffix(SUFFIX))].add(name.removesuffix(SUFFIX))
    ranks, alphas, targets = {}, {}, []
    for word in dict.fromkeys(map(_word, found)):
        own = [module for module in found if _word(module) == word]
        settings = {(len(found[module].a), found[module].scale) for module in own}
        short = set(own) == words[word] and len(settings) == 1
        for name, module in [(word, own[0])] if short else zip(own, own, strict=True):
            rank, alpha = len(found[module].a), _alpha(found[module], like.rooted)
            targets.append(name)
            if rank != like.rank:
                ranks[name] = rank
            if not math.isclose(alpha, like.alpha):
                alphas[name] = alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": like.rank,
        "lora_alpha": _whole(like.alpha),
        "use_rslora": like.rooted,
        "target_modules": targets,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _alpha(pair: Pair, rooted: bool) -> float:
    rank = len(pair.a)
    return _whole(pair.scale * (math.sqrt(rank) if rooted else rank))


def _whole(x: float) -> float:
    return round(x) if math.isclose(x, round(x)) else x


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
