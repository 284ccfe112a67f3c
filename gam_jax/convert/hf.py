"""Models of Hugging Face transformers from and to their folders, without torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax.config import unknown
from gam_jax.convert import (
    bamba,
    deepseek,
    dense,
    experts,
    falcon_h1,
    fla,
    gpt_oss,
    granite4,
    jamba,
    kimi,
    mamba,
    mamba_ssm,
    nemotron_h,
    olmo_hybrid,
    parscale,
    qwen_next,
)
from gam_jax.convert import folder as files
from gam_jax.convert.family import UNLIKE, Config, Family
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader, Stored
from gam_jax.convert.harmless import EVERYWHERE, NEUTRAL, OF, kept_fields
from gam_jax.convert.unsupported import UNSUPPORTED
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params, abstract_params, path_name
from sharding.errors import UserError
from sharding.json_file import parse_json
from sharding.paths import local_path

HEAD = "lm_head.weight"

FAMILIES: Mapping[str, Family] = {
    **dense.FAMILIES,
    **mamba.FAMILIES,
    **falcon_h1.FAMILIES,
    **parscale.FAMILIES,
    **experts.FAMILIES,
    **gpt_oss.FAMILIES,
    **deepseek.FAMILIES,
    **qwen_next.FAMILIES,
    **kimi.FAMILIES,
    **olmo_hybrid.FAMILIES,
    **fla.FAMILIES,
    **bamba.FAMILIES,
    **granite4.FAMILIES,
    **nemotron_h.FAMILIES,
    **jamba.FAMILIES,
    **mamba_ssm.FAMILIES,
}
"""Every architecture that config.json may name; a model is written as the first that fits."""


def from_hf(folder: str | Path) -> tuple[LanguageModel, Params]:
    """A model and its float32 parameters from a folder of config.json and safetensors.

    Raises:
      UserError: a folder that cannot be read, an architecture or a field of it that is not known
        here, an array that is missing, of another shape or dtype, or that the model does not read.
    """
    model, params = read_folder(folder)
    return model, jax.tree.map(jnp.asarray, params)


def read_folder(folder: str | Path) -> tuple[LanguageModel, Params]:
    """As `from_hf`, with parameters in the memory of the host: NumPy arrays on no device."""
    path = local_path(folder)
    return _read(files.read_config(path), files.open_arrays(path))


def model_of(folder: str | Path) -> LanguageModel:
    """The model of a folder that has each of its arrays, in its shape; none of them is read.

    Raises:
      UserError: as `from_hf`, but for what only the numbers tell.
    """
    path = local_path(folder)
    reader = Reader(Fields(files.read_config(path)), _unread(files.open_arrays(path)))
    model, family = _opened(reader)
    _take(model, family, reader)
    return model


def model_of_config(values: Config) -> LanguageModel:
    """The model that a config.json alone tells.

    Raises:
      UserError: an architecture or a field that is not known here.
    """
    config = Fields(values)
    config.refuse_quantized()
    name = architecture(config)
    return _model(name, FAMILIES[name], config)


def _unread(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Arrays of which each is zeros that take no memory."""

    def zeros(shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(np.float32(0), shape)

    return {
        name: found._replace(load=functools.partial(zeros, found.shape))
        for name, found in stored.items()
    }


def to_hf(
    model: LanguageModel,
    params: Params,
    folder: str | Path,
    shard_bytes: int = files.SHARD_BYTES,
    name: str | None = None,
    source: Mapping[str, bytes] = {},
) -> None:
    """Writes a folder that transformers opens with `AutoModelForCausalLM.from_pretrained`.

    What `from_hf` read comes out bit for bit, in float32.

    Args:
      model: what is written.
      params: the model's parameters.
      folder: new or empty.
      shard_bytes: the most of a file.
      name: an architecture; None for that of the folder that the model came from, or the first that
        expresses the model.
      source: files of the folder that the model came from, see `convert.source`. They are written
        beside the weights; of its config.json, the fields that change nothing are.

    Raises:
      UserError: a model that no architecture known here expresses; a folder that cannot be
        written.
    """
    path = local_path(folder)
    config, tensors = write(model, params, name or written_as(model, source))
    own = architecture(config)
    if "architectures" in config:  # the pad token of the class may be beyond the ids
        config = {"pad_token_id": None, **kept_fields(own, _config_in(source)), **config}
    beside = {name: content for name, content in source.items() if name != files.CONFIG}
    files.write_folder(path, config, tensors, shard_bytes, beside)


def written_as(model: LanguageModel, source: Mapping[str, bytes]) -> str | None:
    """The architecture of the folder that a model came from, if that still expresses it.

    Several classes may: Llama's arrays can hold what a Phi-3 folder has under other names.

    Args:
      model: without adapters.
      source: files of that folder, see `convert.source`.
    """
    try:
        name = architecture(_config_in(source))
        FAMILIES[name].config(model)
    except UserError:
        return None
    return name


def _config_in(source: Mapping[str, bytes]) -> Config:
    said = source.get(files.CONFIG)
    return {} if said is None else parse_json(said, files.CONFIG, finite=False)


def read(config: Config, tensors: Mapping[str, np.ndarray]) -> tuple[LanguageModel, Params]:
    """`from_hf` of what a folder holds."""
    stored = {name: files.in_memory(array) for name, array in tensors.items()}
    model, params = _read(config, stored)
    return model, jax.tree.map(jnp.asarray, params)


def _read(values: Config, stored: Mapping[str, Stored]) -> tuple[LanguageModel, Params]:
    reader = Reader(Fields(values), stored)
    model, family = _opened(reader)
    params, blocks = _take(model, family, reader)
    return model, _checked(model, {**params, "blocks": family.join(model, blocks)})


def _opened(reader: Reader) -> tuple[LanguageModel, Family]:
    """The model of a folder whose arrays are of dtypes that are read, and its family."""
    reader.config.refuse_quantized()
    name = architecture(reader.config)
    family = FAMILIES[name]
    model = _model(name, family, reader.config)
    reader.check_dtypes()
    return model, family


def _take(
    model: LanguageModel, family: Family, reader: Reader
) -> tuple[dict[str, Any], list[Params]]:
    """The parameters outside of the blocks, and those of each block."""
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
    if family.apart is not None:
        params |= family.apart[0](model, reader)
    reader.check_all_taken(family.spare(reader))
    return params, blocks


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
    family, config = family_of(model, name)
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


def family_of(model: LanguageModel, name: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The first family that expresses a model, and its config.json.

    Args:
      model: what is written.
      name: an architecture, to look at that one alone.

    Raises:
      UserError: none does.
    """
    reasons = []
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        try:
            return family, family.config(model)
        except UserError as error:
            reasons.append(str(error))
    raise UserError(_told(reasons))


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
      UserError: none, several, one that is not known here, or one that is known not to be read.
    """
    if mamba_ssm.is_own(config):
        return mamba_ssm.OFFICIAL
    names = config.get("architectures")
    if isinstance(names, list | tuple) and len(names) > 1:
        raise Fields.of(config).refused("architectures", "is more than one: name the one it is")
    name = names[0] if isinstance(names, list | tuple) and names else None
    if isinstance(name, str) and name in UNSUPPORTED:
        raise UserError(f"config.json: {name} is not read here: {UNSUPPORTED[name]}")
    if not isinstance(name, str) or name not in FAMILIES:
        shown = name if isinstance(name, str) and name.isprintable() else None
        raise UserError(f"config.json: {unknown(shown, FAMILIES, 'architecture')}")
    return name


def _checked(model: LanguageModel, params: Params) -> Params:
    def check(path: Any, want: jax.ShapeDtypeStruct, array: np.ndarray) -> np.ndarray:
        if array.shape != want.shape:
            raise UserError(
                f"{path_name(path)}: the folder's array gives {array.shape} where its "
                f"config.json asks for {want.shape}"
            )
        return np.asarray(array, np.float32)

    return jax.tree_util.tree_map_with_path(check, abstract_params(model.table()), params)
