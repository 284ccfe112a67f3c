"""Models of Hugging Face transformers from and to their folders, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax.config import unknown
from gam_jax.convert import deepseek, experts, falcon_h1, llama, mamba, parscale
from gam_jax.convert import folder as files
from gam_jax.convert.family import UNLIKE, Config, Family
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader, Stored
from gam_jax.convert.harmless import EVERYWHERE, NEUTRAL, OF
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params, abstract_params, path_name
from sharding.errors import UserError
from sharding.paths import local_path

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
        here, an array that is missing, of another shape or dtype, or that the model does not read.
    """
    path = local_path(folder)
    return _read(files.read_config(path), files.open_arrays(path))


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
    files.write_folder(local_path(folder), *write(model, params), shard_bytes)


def read(config: Config, tensors: Mapping[str, np.ndarray]) -> tuple[LanguageModel, Params]:
    """`from_hf` of what a folder holds."""
    return _read(config, {name: files.in_memory(array) for name, array in tensors.items()})


def _read(values: Config, stored: Mapping[str, Stored]) -> tuple[LanguageModel, Params]:
    reader = Reader(Fields(values), stored)
    reader.config.refuse_quantized()
    name = architecture(reader.config)
    family = FAMILIES[name]
    model = _model(name, family, reader.config)
    reader.check_dtypes()
    params: dict[str, Any] = {
        "embedding": reader.take(family.embedding, model.vocab or 0, model.width),
        "final_norm": {"scale": reader.take(family.norm, model.width)},
    }
    if not model.tied:
        params["head"] = reader.take(HEAD, model.vocab or 0, model.width)
    elif HEAD in reader:
        _check_tied(reader, params["embedding"])
    blocks = [
        family.read(model, reader.block(family.blocks, i)) for i in range(family.layers(model))
    ]
    params["blocks"] = family.join(model, blocks)
    if family.apart is not None:
        params |= family.apart[0](model, reader)
    reader.check_all_taken(family.spare(reader))
    return model, _checked(model, params)


def _model(name: str, family: Family, config: Fields) -> LanguageModel:
    """The model of a config.json, every field of which is used or changes nothing."""
    if config.get("model_type") not in (None, family.kind):
        raise config.refused("model_type", f"is not that of its architecture {name}, {family.kind}")
    try:
        model = family.model(config)
    except UserError:
        raise
    except ValueError as error:  # a layer refuses its sizes
        raise UserError(f"config.json: its sizes do not make a model: {error}") from error
    config.check_all_used({*EVERYWHERE, *OF.get(name, {})}, NEUTRAL)
    return model


def _check_tied(reader: Reader, embedding: np.ndarray) -> None:
    if not np.array_equal(reader.take(HEAD, *embedding.shape), embedding, equal_nan=True):
        raise UserError(
            f"'{HEAD}' is not the embedding, which config.json says with tie_word_embeddings: set "
            f"it to false there, or remove the array"
        )


def write(
    model: LanguageModel, params: Params, name: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and arrays: the inverse of `read`.

    Args:
      model: what is written.
      params: the model's parameters; arrays are float32, in whatever dtype these are stored.
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
        raise UserError(_told(reasons))
    arrays: Any = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
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


def _told(reasons: Sequence[str]) -> str:
    """Why no family expresses a model: one sentence a reason; first those that come near it."""
    families: dict[str, list[str]] = {}
    for reason in reasons:
        name, _, why = reason.partition(" ")
        families.setdefault(why, []).append(name)
    ordered = sorted(families.items(), key=lambda found: found[0].endswith(UNLIKE))
    return "; ".join(f"{', '.join(names)} {why}" for why, names in ordered)


def architecture(config: Config) -> str:
    """The architecture that config.json names.

    Raises:
      UserError: none, several, or one that is not known here.
    """
    names = config.get("architectures")
    if isinstance(names, list | tuple) and len(names) > 1:
        raise Fields.of(config).refused("architectures", "is more than one: name the one it is")
    name = names[0] if isinstance(names, list | tuple) and names else None
    if not isinstance(name, str) or name not in FAMILIES:
        shown = name if isinstance(name, str) and name.isprintable() else None
        message = unknown(shown, FAMILIES, "architecture")
        raise UserError(f"config.json: {message} (known are {', '.join(FAMILIES)})")
    return name


def _checked(model: LanguageModel, params: Params) -> Params:
    def check(path: Any, want: jax.ShapeDtypeStruct, array: np.ndarray) -> jax.Array:
        if array.shape != want.shape:
            raise UserError(
                f"{path_name(path)}: the folder's array gives {array.shape} where its "
                f"config.json asks for {want.shape}"
            )
        return jnp.asarray(array, jnp.float32)

    return jax.tree_util.tree_map_with_path(check, abstract_params(model.table()), params)
