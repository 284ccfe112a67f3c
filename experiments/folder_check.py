"""What a model folder is and takes, said before any of its numbers is read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import holds_arrays, open_arrays, read_config
from gam_jax.convert.formats import format_of
from gam_jax.convert.hf import architecture, model_of, model_of_config
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params
from gam_jax.traffic import state_bytes
from sharding.layout import Layout

LENGTHS = (128, 1024, 8192, 65_536)
"""Tokens of a text whose cache is told, up to the model's limit, which is told too."""
DTYPES = ("float32", "bfloat16")


def facts(folder: pathlib.Path, layout: Layout) -> dict[str, Any]:
    """Class, sizes and bytes of a folder.

    Args:
      folder: of config.json; its arrays are compared with it where there are any.
      layout: the mesh, and what its axes are used for.

    Returns:
      `architecture`; `parameters`, exact; `whole`, whether arrays are there; `format`, numbers that
      the files hold by dtype; `quantized`, how, or nothing; `limit`, tokens of a sequence, 0 for
      any; `bytes` of a device by dtype, for the parameters alone (`written`) and
      for training all of them (`trained`); `cache`, bytes of one text by its tokens, by dtype.

    Raises:
      UserError: what of the folder is not read here, and why.
    """
    whole = holds_arrays(folder)
    config = read_config(folder)
    name = architecture(config)
    model = model_of(folder) if whole else model_of_config(config)
    form = format_of(Fields(config))
    return {
        "architecture": name,
        "parameters": count_params(model.table()),
        "whole": whole,
        "format": _formats(folder) if whole else {},
        "quantized": form.shown if form else "",
        "limit": model.limit,
        "mesh": layout.shown,
        "bytes": {dtype: _bytes(_in(model, dtype), layout) for dtype in DTYPES},
        "cache": {dtype: dict(_caches(_in(model, dtype))) for dtype in DTYPES},
    }


def _formats(folder: pathlib.Path) -> dict[str, int]:
    """How many numbers of each dtype the files hold."""
    found: dict[str, int] = {}
    for dtype, array in open_arrays(folder).values():
        found[dtype] = found.get(dtype, 0) + array.size
    return found


def _in(model: LanguageModel, dtype: str) -> LanguageModel:
    return dataclasses.replace(model, dtype=dtype, param_dtype=dtype)


def _bytes(model: LanguageModel, layout: Layout) -> dict[str, int]:
    found = state_bytes(model, OptimizerConfig(), layout)
    return {"written": found.parameters, "trained": found.total}


def _caches(model: LanguageModel) -> Iterator[tuple[int, int]]:
    limit = model.limit or LENGTHS[-1]
    for tokens in (*(n for n in LENGTHS if n < limit), limit):
        yield tokens, model.for_length(tokens).carry_bytes(1)


def told(folder: pathlib.Path, found: dict[str, Any]) -> str:
    """The same for people."""
    limit = f"{found['limit']:,} tokens" if found["limit"] else "any number of tokens"
    lines = [
        f"{folder}: {found['architecture']}, {found['parameters']:,} parameters, {limit}",
        "arrays agree with config.json" if found["whole"] else "config.json alone, without arrays",
        *_stored(found),
        f"bytes of a device ({found['mesh']}): " + _line(found["bytes"]["float32"], "float32"),
        " " * 4 + _line(found["bytes"]["bfloat16"], "bfloat16, with a float32 master"),
    ]
    for dtype, sizes in found["cache"].items():
        by_tokens = ", ".join(f"{tokens:,} tokens {_size(size)}" for tokens, size in sizes.items())
        lines.append(f"cache of one text in {dtype}: {by_tokens}")
    return "\n".join(lines)


def _stored(found: dict[str, Any]) -> list[str]:
    """How the numbers are stored, where that is told."""
    kinds = ", ".join(f"{count:,} of {dtype}" for dtype, count in found["format"].items())
    shown = [found["quantized"]] if found["quantized"] else []
    told = [*shown, *([kinds] if kinds else [])]
    return [f"stored as {': '.join(told)}"] if told else []


def _line(found: dict[str, int], what: str) -> str:
    return f"{_size(found['written'])} to write, {_size(found['trained'])} to train, in {what}"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} GiB"
