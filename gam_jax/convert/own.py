"""Model folders of gam_jax: any model, for others to read. JSON and arrays; no code is ever read.

config.json has four fields: `model_type`, "gam_jax"; `format`, the version of this format;
`gam_jax`, the version that wrote it; and `model`, the fields of the model's dataclasses, each with
the name of its class (`config.to_dict`). Arrays have the names of the parameters, as
`blocks/mixer/w_in`, and the dtypes in which they were stored. Other files are as in folders of
Hugging Face: tokenizer.json, templates, licences.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gam_jax import __version__
from gam_jax.config import from_dict, to_dict
from gam_jax.convert import folder as files
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder_writer import SHARD_BYTES, write_folder
from gam_jax.convert.placing import lazily, placed, where
from gam_jax.models.base import Model
from gam_jax.params import Params, abstract_params
from sharding.checkpoint import names
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.paths import local_path

KIND = "gam_jax"
FORMAT = 1
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
"""In which parameters are stored, and what safetensors calls it."""


def save_model(
    model: Model,
    params: Params,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] = {},
) -> None:
    """Writes any model and its parameters as a folder that `load_model` reads.

    Beyond the parameters, memory holds a piece of one array. Where several processes hold them,
    all call this, with a folder that the first can write.

    Args:
      model: what is written; its class is one of gam_jax, or registered wherever it is read.
      params: the model's parameters.
      folder: new or empty.
      shard_bytes: the most of a file.
      beside: what other files hold, by name.

    Raises:
      UserError: the folder holds something already, or cannot be written.
    """
    path = local_path(folder)
    said = {"model_type": KIND, "format": FORMAT, "gam_jax": __version__, "model": to_dict(model)}
    arrays: Mapping[str, Any] = names.flat(lazily(params))
    write_folder(path, said, arrays, shard_bytes, beside, as_stored=True)


def load_model(folder: str | Path, layout: Layout | None = None) -> tuple[Model, Params]:
    """A model and its parameters from a folder that `save_model` wrote.

    Args:
      folder: of a model.
      layout: where the parameters go; None for the usual device.

    Raises:
      UserError: a folder that cannot be read, or is of another program or of a later format; a
        class or a field that is not known here; an array that is missing, too many, or of another
        shape or dtype.
    """
    model, params = open_model(folder)
    return model, placed(params, where(model.stored_table(), layout))


def open_model(folder: str | Path) -> tuple[Model, Params]:
    """As `load_model`, with parameters that are not read yet, see `convert.lazy`."""
    path = local_path(folder)
    config = Fields(files.read_config(path))
    if config.get("model_type") != KIND:
        raise config.refused("model_type", f"is not {KIND!r}: it is no folder of save_model")
    if config.size("format") > FORMAT:
        raise config.refused("format", f"is of a later gam_jax, this one reads {FORMAT}: update it")
    config.get("gam_jax")
    if not isinstance(config.get("model"), dict):
        raise config.refused("model", "is no object: the folder has lost what its model is")
    model = from_dict(Model, config["model"], "config.json: model")
    config.check_all_used((), {})
    stored = files.open_arrays(path)
    reader, wanted = files.Reader(config, stored), abstract_params(model.stored_table())
    flat = []
    for name, leaf in names.flat(wanted).items():
        flat.append(reader.take(name, *leaf.shape))
        if stored[name].dtype != (own := DTYPES[str(leaf.dtype)]):
            raise UserError(
                f"'{name}' is of dtype {stored[name].dtype} where the model of config.json stores "
                f"{own}: they are not of one model"
            )
    reader.check_all_taken()
    return model, jax.tree.unflatten(jax.tree.structure(wanted), flat)


def is_own(folder: str | Path) -> bool:
    """Whether a folder says that it is of this format."""
    return files.read_config(local_path(folder)).get("model_type") == KIND
