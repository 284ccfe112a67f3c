"""Models of Hugging Face transformers from and to their folders, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
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
from gam_jax.convert.folder import Reader
from gam_jax.convert.folder_writer import SHARD_BYTES, write_folder
from gam_jax.convert.formats import dequantized, format_of
from gam_jax.convert.harmless import EVERYWHERE, NEUTRAL, OF, kept_fields
from gam_jax.convert.indices import PIECE
from gam_jax.convert.placing import lazily, placed, where
from gam_jax.convert.tensor_file import Stored
from gam_jax.convert.unsupported import UNSUPPORTED
from gam_jax.models.language import LanguageModel
from gam_jax.params import FLOAT32, Params, abstract_params, path_name
from sharding.errors import UserError
from sharding.json_file import parse_json
from sharding.layout import Layout
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


def from_hf(
    folder: str | Path, layout: Layout | None = None, param_dtype: str = FLOAT32
) -> tuple[LanguageModel, Params]:
    """A model and its parameters from a folder of config.json and safetensors.

    Each process reads what its own devices hold, and no more. Beyond what is kept, memory holds a
    shard of one parameter.

    Args:
      folder: of a model.
      layout: where the parameters go; None for the usual device.
      param_dtype: in which the model stores them, see `Model`; those that stay precise are float32.

    Raises:
      UserError: a folder that cannot be read, an architecture or a field of it that is not known
        here, an array that is missing, of another shape or dtype, or that the model does not read.
    """
    model, params = open_hf(folder)
    model = dataclasses.replace(model, param_dtype=param_dtype)
    return model, placed(params, where(model.stored_table(), layout))


def open_hf(folder: str | Path) -> tuple[LanguageModel, Params]:
    """As `from_hf`, with parameters that are not read yet, see `convert.lazy`."""
    path = local_path(folder)
    return _open(files.read_config(path), files.open_arrays(path))


def model_of(folder: str | Path) -> LanguageModel:
    """The model of a folder that has each of its arrays, in its shape; none of them is read.

    Raises:
      UserError: as `from_hf`, but for what only the numbers tell.
    """
    path = local_path(folder)
    return _take(files.read_config(path), files.open_arrays(path))[0]


def model_of_config(values: Config) -> LanguageModel:
    """The model that a config.json alone tells.

    Raises:
      UserError: an architecture or a field that is not known here.
    """
    config = Fields(values)
    format_of(config)
    name = architecture(config)
    return _model(name, FAMILIES[name], config)


def to_hf(
    model: LanguageModel,
    params: Params,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    name: str | None = None,
    source: Mapping[str, bytes] = {},
    as_stored: bool = False,
) -> None:
    """Writes a folder that transformers opens with `AutoModelForCausalLM.from_pretrained`.

    What `from_hf` read comes out bit for bit. Beyond the parameters, memory holds a piece of one
    array. Where several processes hold them, all call this, with a folder that the first can write.

    Args:
      model: what is written.
      params: the model's parameters.
      folder: new or empty.
      shard_bytes: the most of a file.
      name: an architecture; None for that of the folder that the model came from, or the first that
        expresses the model.
      source: files of the folder that the model came from, see `convert.source`. They are written
        beside the weights; of its config.json, the fields that change nothing are.
      as_stored: writes arrays in the dtypes in which the parameters are stored, not in float32.

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
    if as_stored:
        config["dtype"] = model.param_dtype
    write_folder(path, config, tensors, shard_bytes, beside, as_stored)


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


def read(config: Config, tensors: Mapping[str, Any]) -> tuple[LanguageModel, Params]:
    """`from_hf` of what a folder holds."""
    stored = {name: files.in_memory(name, array) for name, array in tensors.items()}
    model, params = _open(config, stored)
    return model, placed(params, where(model.table(), None))


def _open(values: Config, stored: Mapping[str, Stored]) -> tuple[LanguageModel, Params]:
    model, params, reader = _take(values, stored)
    if model.tied and HEAD in reader:
        _check_tied(reader, params["embedding"])
    return model, params


def _take(
    values: Config, stored: Mapping[str, Stored]
) -> tuple[LanguageModel, dict[str, Any], Reader]:
    """The model of a folder, its parameters, and what has handed them out."""
    config = Fields(values)
    form = format_of(config)
    name = architecture(config)
    family = FAMILIES[name]
    model = _model(name, family, config)
    reader = Reader(config, dequantized(form, stored))
    reader.check_dtypes()
    params: dict[str, Any] = {
        "embedding": reader.take(family.embedding, model.vocab or 0, model.width),
        "final_norm": {"scale": reader.take(family.norm, model.width)},
    }
    if not model.tied or HEAD in reader:  # a tied one is looked at later
        head = reader.take(HEAD, model.vocab or 0, model.width)
        params |= {} if model.tied else {"head": head}
    blocks = [
        family.read(model, reader.block(family.blocks, i)) for i in range(family.layers(model))
    ]
    if family.apart is not None:
        params |= family.apart[0](model, reader)
    reader.check_all_taken(family.spare(reader))
    return model, _checked(model, {**params, "blocks": family.join(model, blocks)}), reader


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


def _check_tied(reader: Reader, embedding: Any) -> None:
    head, step = reader.take(HEAD, *embedding.shape), max(1, PIECE // embedding.shape[1])
    for start in range(0, len(embedding), step):
        pair = (np.asarray(array[start : start + step]) for array in (head, embedding))
        if not np.array_equal(*pair, equal_nan=True):
            raise UserError(
                f"'{HEAD}' is not the embedding, which config.json says with tie_word_embeddings: "
                f"set it to false there, or remove the array"
            )


def write(
    model: LanguageModel, params: Params, name: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and arrays: the inverse of `read`. The arrays are not read from devices yet.

    Args:
      model: what is written.
      params: the model's parameters.
      name: an architecture; None for the first that expresses the model.
    """
    family, config = family_of(model, name)
    arrays: Any = lazily(params)
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


def _checked(model: LanguageModel, params: Params) -> dict[str, Any]:
    def check(path: Any, want: jax.ShapeDtypeStruct, array: Any) -> Any:
        if array.shape != want.shape:
            raise UserError(
                f"{path_name(path)}: the folder's array gives {array.shape} where its "
                f"config.json asks for {want.shape}"
            )
        return array

    return jax.tree_util.tree_map_with_path(check, abstract_params(model.table()), params)
