"""Models of Hugging Face transformers from and to their folders, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax.config import unknown
from gam_jax.convert import deepseek, experts, falcon_h1, llama, mamba, parscale
from gam_jax.convert import folder as files
from gam_jax.convert.family import Config, Family, Tensors
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params, abstract_params, path_name
from sharding.errors import UserError

HEAD = "lm_head.weight"

FAMILIES: Mapping[str, Family] = {
    **llama.FAMILIES,
    **mamba.FAMILIES,
    **falcon_h1.FAMILIES,
    **parscale.FAMILIES,
    **experts.FAMILIES,
    **deepseek.FAMILIES,
}
"""Every architecture that config.json may name; a model is written as the first that fits."""


def from_hf(folder: str | Path) -> tuple[LanguageModel, Params]:
    """A model and its float32 parameters from a folder of config.json and safetensors.

    Raises:
      UserError: a folder that cannot be read, an architecture or a field of it that is not known
        here, a missing array, or one of another shape.
    """
    path = Path(folder).expanduser()
    return read(files.read_config(path), files.read_tensors(path))


def to_hf(
    model: LanguageModel,
    params: Params,
    folder: str | Path,
    shard_bytes: int = files.SHARD_BYTES,
) -> None:
    """Writes a folder that transformers opens with `AutoModelForCausalLM.from_pretrained`.

    What `from_hf` read comes out bit for bit, in float32.

    Raises:
      UserError: a model that no architecture known here expresses; a folder that cannot be
        written.
    """
    files.write_folder(Path(folder).expanduser(), *write(model, params), shard_bytes)


def read(config: Config, tensors: Tensors) -> tuple[LanguageModel, Params]:
    """`from_hf` of what a folder holds."""
    family = FAMILIES[architecture(config)]
    try:
        model = family.model(config)
        blocks = [
            family.read(model, _within(tensors, f"{family.blocks}{i}."))
            for i in range(family.layers(model))
        ]
        params: dict[str, Any] = {
            "embedding": tensors[family.embedding],
            "final_norm": {"scale": tensors[family.norm]},
            "blocks": family.join(model, blocks),
        }
        if not model.tied:
            params["head"] = tensors[HEAD]
        if family.apart is not None:
            params |= family.apart[0](model, tensors)
    except KeyError as error:
        raise UserError(f"the folder's config or arrays have no {error}: is it whole?") from error
    except ValueError as error:  # a layer refuses its sizes, or an array cannot be reshaped
        raise UserError(f"the folder's arrays do not fit its config.json: {error}") from error
    return model, _checked(model, params)


def write(
    model: LanguageModel, params: Params, name: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and arrays: the inverse of `read`.

    Args:
      model, params: what is written.
      name: an architecture; None for the first that expresses the model.
    """
    reasons = []
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        try:
            config = family.config(model)
            break
        except UserError as error:
            reasons.append(str(error))
    else:
        raise UserError("; ".join(dict.fromkeys(reasons)))
    arrays: Any = jax.tree.map(np.asarray, params)
    tensors = {
        family.embedding: arrays["embedding"],
        family.norm: arrays["final_norm"]["scale"],
    }
    for i, own in enumerate(family.split(model, arrays["blocks"])):
        block = family.write(model, own)
        tensors.update({f"{family.blocks}{i}.{part}": x for part, x in block.items()})
    if not model.tied:
        tensors[HEAD] = arrays["head"]
    if family.apart is not None:
        tensors |= family.apart[1](model, arrays)
    return config, tensors


def architecture(config: Config) -> str:
    """The architecture that config.json names.

    Raises:
      UserError: none, or one that is not known here.
    """
    name = next(iter(config.get("architectures") or []), None)
    if name is None or name not in FAMILIES:
        message = unknown(name, FAMILIES, "architecture")
        raise UserError(f"config.json: {message} (known are {', '.join(FAMILIES)})")
    return name


def _within(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def _checked(model: LanguageModel, params: Params) -> Params:
    def check(path: Any, want: jax.ShapeDtypeStruct, array: np.ndarray) -> jax.Array:
        if array.shape != want.shape:
            raise UserError(
                f"{path_name(path)}: the folder's array gives {array.shape} where its "
                f"config.json asks for {want.shape}"
            )
        return jnp.asarray(array, jnp.float32)

    return jax.tree_util.tree_map_with_path(check, abstract_params(model.table()), params)
