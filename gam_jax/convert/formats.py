"""Quantized weights that are read: fp8 with a scale for each block, and mxfp4.

A family never sees them: each array stands under its plain name, as the numbers that it means.

fp8 (DeepSeek-V3, arXiv 2412.19437, section 3.3; Qwen3's fp8 releases): `X` in float8 e4m3 and
`X_scale_inv`, one number for each block of rows and columns, by which the block is multiplied.

mxfp4 (OCP Microscaling Formats v1.0, sections 5.3.3 and 5.4.1; gpt-oss): `X_blocks`, two e2m1
numbers a byte, the lower half first, in groups of 32, and `X_scales`, the exponent of two of each
group plus 127. The groups run along the inputs of a matrix; the array is given as inputs x outputs,
as transformers gives it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from gam_jax.convert.fields import Fields
from gam_jax.convert.indices import Index, picked
from gam_jax.convert.lazy import FLOAT32, Lazy, Source
from gam_jax.convert.tensor_file import Stored
from sharding.errors import UserError

FP8, MXFP4 = "fp8", "mxfp4"
SCALE, BLOCKS, SCALES = "_scale_inv", "_blocks", "_scales"
GROUP = 32
"""Numbers of mxfp4 that share an exponent; half as many bytes."""
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the sixteen codes mean: a sign, two bits of exponent, one of mantissa."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How a folder says that its weights are quantized.

    Attributes:
      kind: `FP8` or `MXFP4`.
      block: rows and columns that share a scale, of fp8.
      plain: names of modules that are not quantized, `*` standing for anything.
    """

    kind: str
    block: tuple[int, int] = (1, GROUP)
    plain: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """For people."""
        if self.kind == MXFP4:
            return f"mxfp4, an exponent for each {GROUP} numbers"
        rows, columns = self.block
        return f"fp8 e4m3, a scale for each block of {rows} x {columns}"


def format_of(config: Fields) -> Format | None:
    """What config.json says of quantized weights; None where they are plain.

    Raises:
      UserError: a method that is not read here, or a field of it that is not known.
    """
    config.refuse_quantized(known=(FP8, MXFP4))
    said = config.part("quantization_config")
    kind = said.get("quant_method")
    if kind is None:
        return None
    said.get("modules_to_convert")  # the arrays themselves say which are quantized
    said.get("dequantize")  # whether transformers computes with the plain numbers, as is done here
    plain = _names(said, "modules_to_not_convert")
    if kind == MXFP4:
        return Format(kind, plain=plain)
    said.only("activation_scheme", "dynamic")
    said.only("fmt", "e4m3")
    said.only("expert_dtype", "fp8")
    if said.get("scale_fmt") != "ue8m0":  # powers of two: scales all the same
        said.only("scale_fmt", "float")
    block = said.get("weight_block_size", [128, 128])
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(map(_is_count, block)):
        raise said.refused("weight_block_size", "is not known here, two whole numbers alone")
    return Format(kind, (block[0], block[1]), plain + _names(said, "ignored_layers"))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _names(said: Fields, field: str) -> tuple[str, ...]:
    found = said.get(field) or ()
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise said.refused(field, "is no list of names of modules")
    return tuple(found)


def dequantized(form: Format | None, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The arrays of a folder under their plain names, each as the numbers that it means.

    Args:
      form: what its config.json says, see `format_of`.
      stored: the arrays that its files hold.

    Raises:
      UserError: scales that do not fit, a module that config.json says is plain, or no quantized
        array at all.
    """
    if form is None:
        return dict(stored)
    pairs = _fp8_pairs(form, stored) if form.kind == FP8 else _mxfp4_pairs(stored)
    if not pairs:
        raise UserError(
            f"config.json: quantization_config says that the weights are quantized ({form.kind!a}),"
            f" and no array of the folder is: take it out, or save the model plain"
        )
    is_plain = _matcher(form.plain)
    for name in pairs:
        if is_plain(name.removesuffix(".weight")):
            raise UserError(
                f"{name!a} is quantized, and config.json says that its module is not "
                f"(modules_to_not_convert): they are not of one model"
            )
    gone = {part for _, parts in pairs.values() for part in parts}
    rest = {name: one for name, one in stored.items() if name not in gone}
    return rest | {name: Stored("F32", array) for name, (array, _) in pairs.items()}


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether one of modules_to_not_convert means a module, one around it, or the end of its name.

    There may be hundreds of each: whole names are looked up.
    """
    ends = tuple(patterns)
    whole = {pattern for pattern in patterns if "*" not in pattern}
    others = [p for pattern in patterns if "*" in pattern for p in (pattern, f"{pattern}.*")]

    def means(module: str) -> bool:
        around = itertools.accumulate(module.split("."), lambda path, name: f"{path}.{name}")
        found = module.endswith(ends) or any(path in whole for path in around)
        return found or any(fnmatch.fnmatchcase(module, pattern) for pattern in others)

    return means


Pairs = dict[str, tuple[Lazy, tuple[str, str]]]
"""Plain name -> the array, and the two that it is made of."""


def _fp8_pairs(form: Format, stored: Mapping[str, Stored]) -> Pairs:
    pairs: Pairs = {}
    for scale, found in stored.items():
        name = scale.removesuffix(SCALE)
        if name == scale or name not in stored:
            continue
        weight = stored[name]
        shape = weight.array.shape
        if weight.dtype != "F8_E4M3" or len(shape) < 2:
            raise UserError(f"{name!a} has scales and is of dtype {weight.dtype}, not F8_E4M3")
        blocks = tuple(-(-n // b) for n, b in zip(shape[-2:], form.block, strict=True))
        if found.array.shape != (*shape[:-2], *blocks):
            raise UserError(
                f"{scale!a} has the shape {found.array.shape} where blocks of {form.block} ask for "
                f"{(*shape[:-2], *blocks)}"
            )
        if found.dtype not in ("F32", "BF16", "F8_E8M0"):
            raise UserError(f"{scale!a} is of dtype {found.dtype}, which no scale is")
        array = Scaled(name, shape, _source(weight), found.array, form.block)
        pairs[name] = array, (name, scale)
    return pairs


def _mxfp4_pairs(stored: Mapping[str, Stored]) -> Pairs:
    pairs: Pairs = {}
    for blocks, found in stored.items():
        name = blocks.removesuffix(BLOCKS)
        if name == blocks:
            continue
        scales = name + SCALES
        if scales not in stored:
            raise UserError(f"the folder has {blocks!a} and no {scales!a}: is it whole?")
        shape, groups = found.array.shape, stored[scales].array.shape
        if (found.dtype, stored[scales].dtype) != ("U8", "U8"):
            raise UserError(f"{blocks!a} and {scales!a} are not both of dtype U8")
        if len(shape) < 3 or shape[-1] != GROUP // 2 or groups != shape[:-1]:
            raise UserError(
                f"{blocks!a} and {scales!a} have the shapes {shape} and {groups}: not "
                f"(..., groups, {GROUP // 2}) and (..., groups)"
            )
        whole = (*shape[:-2], shape[-2] * GROUP)
        array = Grouped(name, whole, _source(found), _source(stored[scales]))
        pairs[name] = array.swapaxes(-1, -2), (blocks, scales)
    return pairs


def _source(found: Stored) -> Source:
    assert isinstance(found.array, Source)
    return found.array


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled(Source):
    """Numbers in few bits, each block of the last two axes times its scale.

    Attributes:
      name, shape: of the array.
      weight: the numbers.
      scales: [..., blocks of rows, blocks of columns].
      block: rows and columns of a block; the last ones may have fewer.
    """

    name: str
    shape: tuple[int, ...]
    weight: Source
    scales: Lazy
    block: tuple[int, int]
    dtype: np.dtype = FLOAT32

    def piece(self, index: Index) -> np.ndarray:
        """A part, float32: one product, which rounds once."""
        inner = [own // b for own, b in zip(index[-2:], self.block, strict=True)]
        blocks = [np.unique(own, return_inverse=True) for own in inner]
        scales = self.scales.part((*index[:-2], *(places for places, _ in blocks)))
        whole = [np.arange(len(own)) for own in index[:-2]]
        scales = picked(scales, (*whole, *(back for _, back in blocks)))
        return self.weight.piece(index).astype(FLOAT32) * scales


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped(Source):
    """Numbers of e2m1, in groups of `GROUP` along the last axis that share an exponent.

    Attributes:
      name, shape: of the array.
      blocks: bytes [..., groups, GROUP / 2].
      scales: bytes [..., groups].
    """

    name: str
    shape: tuple[int, ...]
    blocks: Source
    scales: Source
    dtype: np.dtype = FLOAT32

    def piece(self, index: Index) -> np.ndarray:
        """A part, float32, in which each number is exact; NaN where the exponent's code is 255."""
        groups, back = np.unique(index[-1] // GROUP, return_inverse=True)
        packed = self.blocks.piece((*index[:-1], groups, np.arange(GROUP // 2)))
        codes = np.stack([packed & 15, packed >> 4], axis=-1)
        exponents = self.scales.piece((*index[:-1], groups)).view(ml_dtypes.float8_e8m0fnu)
        values = E2M1[codes.reshape(*packed.shape[:-1], GROUP)]
        values *= exponents.astype(FLOAT32)[..., None]
        places = back * GROUP + index[-1] % GROUP
        values = values.reshape(*packed.shape[:-2], math.prod(packed.shape[-2:-1]) * GROUP)
        return picked(values, (*(np.arange(n) for n in values.shape[:-1]), places))
