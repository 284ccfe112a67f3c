"""State-space mixers in folders of Hugging Face transformers: Mamba's and Mamba-2's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.convert.family import one
from gam_jax.convert.fields import Fields, is_number
from gam_jax.convert.folder import Reader
from gam_jax.convert.parts import read_attention, write_attention
from gam_jax.layers import Attention, Layer, Mamba, Mamba2
from gam_jax.params import Params

SELECTIVE_NORMS = {"r_norm": "dt_layernorm", "b_norm": "b_layernorm", "c_norm": "c_layernorm"}
"""Norms inside of a Mamba mixer by our names and Jamba's."""


@dataclasses.dataclass(frozen=True)
class Names:
    """What config.json calls the fields of a Mamba-2 mixer.

    Attributes:
      heads, head, state, groups, kernel: those of `Mamba2`.
      conv_bias, in_bias, out_bias: likewise; two of them may have one name.
      inner: the field that may tell the inner width; "" for none.
      expand: the field that tells it as a multiple of the width; "" where heads alone tell it.
      limits: whether time_step_limit bounds steps.
    """

    heads: str = "mamba_n_heads"
    head: str = "mamba_d_head"
    state: str = "mamba_d_state"
    groups: str = "mamba_n_groups"
    kernel: str = "mamba_d_conv"
    conv_bias: str = "mamba_conv_bias"
    in_bias: str = "mamba_proj_bias"
    out_bias: str = "mamba_proj_bias"
    inner: str = ""
    expand: str = "mamba_expand"
    limits: bool = True

    def read(self, config: Fields, width: int, **fields: Any) -> Mamba2:
        """The mixer of a config.json.

        Args:
          config: of the folder.
          width: D.
          **fields: of `Mamba2`, those that config.json does not tell by these names.

        Raises:
          UserError: a field that makes no sense, or an inner width that is not whole heads.
        """
        heads = config.size(self.heads)
        if self.expand:
            inner = config.number(self.expand, 2.0, above=0) * width
            inner = config.size(self.inner, inner) if self.inner else inner
            if inner % heads:
                raise config.refused(self.heads, f"does not divide the inner width, {inner:g}")
            head = int(inner // heads)
            if config.get(self.head) != "auto":
                self._check_head(config, head)
        else:
            head = config.size(self.head)
        if self.limits:
            fields["dt_min"], fields["dt_max"] = step_limits(config)
        return Mamba2(
            inner=heads * head,
            head=head,
            state=config.size(self.state),
            groups=config.size(self.groups),
            kernel=config.size(self.kernel, 4),
            conv_bias=config.flag(self.conv_bias, True),
            in_bias=config.flag(self.in_bias, False),
            out_bias=config.flag(self.out_bias, False),
            **fields,
        )

    def _check_head(self, config: Fields, head: int) -> None:
        """A UserError for a head that is not what the inner width makes it."""
        if self.inner or config.get(self.expand) is None:
            config.only(self.head, head)
        elif config.size(self.head, head) != head:
            raise config.refused(self.expand, f"is not what {self.heads} and {self.head} make")

    def written(self, mixer: Mamba2, width: int) -> dict[str, Any]:
        """The inverse of `read`; an inner width that is no multiple of D is written as the next."""
        inner = mixer.heads * mixer.head
        config: dict[str, Any] = {
            self.heads: mixer.heads,
            self.head: mixer.head,
            self.state: mixer.state,
            self.groups: mixer.groups,
            self.kernel: mixer.kernel,
            self.conv_bias: mixer.conv_bias,
            self.in_bias: mixer.in_bias,
            self.out_bias: mixer.out_bias,
        }
        if self.inner:
            config[self.inner] = inner
        elif self.expand:
            config[self.expand] = max(inner // width, 1)
        if self.limits:
            config["time_step_limit"] = write_limits(mixer)
        return config


def step_limits(config: Fields, name: str = "time_step_limit") -> tuple[float, float]:
    """(dt_min, dt_max) of a field, in which infinity is written in several ways."""
    found = config.get(name)
    if found is None:
        return 0.0, 0.0
    bounds = [_bound(x) for x in found] if isinstance(found, list | tuple) else []
    if len(bounds) != 2 or None in bounds or not 0 <= bounds[0] < bounds[1]:
        raise config.refused(name, "is no list of two numbers, the smaller one first")
    return bounds[0], 0.0 if math.isinf(bounds[1]) else bounds[1]


def _bound(value: Any) -> Any:
    """A number or infinity; None for what is neither."""
    word: Any = value.get("__float__") if isinstance(value, Mapping) else value
    if word in ("Infinity", math.inf):
        return math.inf
    return float(word) if word is value and is_number(word) else None


def write_limits(mixer: Mamba2) -> list[Any]:
    """The inverse of `step_limits`; infinity as transformers itself writes it in JSON."""
    return [mixer.dt_min, mixer.dt_max or {"__float__": "Infinity"}]


def read_ssm(mixer: Mamba2, name: str, reader: Reader, width: int) -> dict[str, np.ndarray]:
    """A Mamba-2 mixer: in_proj holds z, x, B, C, dt one after another, conv1d x, B, C.

    Args:
      mixer: the layer.
      name: what its arrays' names begin with.
      reader: of its block.
      width: D.
    """
    heads, size = (mixer.heads, mixer.head), mixer.heads * mixer.head
    shared = (2, mixer.groups, mixer.state)
    mixed = size + math.prod(shared)
    rows, ends = size + mixed + mixer.heads, (2 * size, size + mixed)
    into = reader.take(f"{name}.in_proj.weight", rows, width).T
    zx, bc, dt = np.split(into, ends, axis=1)
    convolution = reader.take(f"{name}.conv1d.weight", mixed, 1, mixer.kernel)
    x, shared_x = np.split(convolution[:, 0].T, (size,), axis=1)
    params = {
        "w_zx": zx.reshape(width, 2, *heads),
        "w_bc": bc.reshape(width, *shared),
        "w_dt": dt,
        "conv_x": x.reshape(-1, *heads),
        "conv_bc": shared_x.reshape(-1, *shared),
        "dt_bias": reader.take(f"{name}.dt_bias", mixer.heads),
        "a_log": reader.take(f"{name}.A_log", mixer.heads),
        "skip": reader.take(f"{name}.D", mixer.heads),
        "w_out": reader.take(f"{name}.out_proj.weight", width, size).reshape(width, *heads),
    }
    if mixer.norm != "none":
        params["norm"] = reader.take(f"{name}.norm.weight", size).reshape(heads)
    if mixer.conv_bias:
        x, bc = np.split(reader.take(f"{name}.conv1d.bias", mixed), (size,))
        params |= {"conv_x_bias": x.reshape(heads), "conv_bc_bias": bc.reshape(shared)}
    if mixer.in_bias:
        zx, bc, dt = np.split(reader.take(f"{name}.in_proj.bias", rows), ends)
        params |= {"b_zx": zx.reshape(2, *heads), "b_bc": bc.reshape(shared), "b_dt": dt}
    if mixer.out_bias:
        params["b_out"] = reader.take(f"{name}.out_proj.bias", width)
    return params


def write_ssm(name: str, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_ssm`."""
    width, taps = len(params["w_dt"]), len(params["conv_x"])
    into = [params[part].reshape(width, -1) for part in ("w_zx", "w_bc", "w_dt")]
    convolution = [params[part].reshape(taps, -1) for part in ("conv_x", "conv_bc")]
    tensors = {
        "in_proj.weight": np.concatenate(into, axis=1).T,
        "conv1d.weight": np.concatenate(convolution, axis=1).T[:, None],
        "dt_bias": params["dt_bias"],
        "A_log": params["a_log"],
        "D": params["skip"],
        "out_proj.weight": params["w_out"].reshape(width, -1),
    }
    for theirs, ours in (
        ("norm.weight", ("norm",)),
        ("conv1d.bias", ("conv_x_bias", "conv_bc_bias")),
        ("in_proj.bias", ("b_zx", "b_bc", "b_dt")),
        ("out_proj.bias", ("b_out",)),
    ):
        if ours[0] in params:
            tensors[theirs] = np.concatenate([params[part].reshape(-1) for part in ours])
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


def read_selective(mixer: Mamba, name: str, reader: Reader, width: int) -> dict[str, np.ndarray]:
    """A Mamba mixer, see `read_ssm`."""
    size, state, rank = mixer.inner, mixer.state, mixer.steps
    convolution = reader.take(f"{name}.conv1d.weight", size, 1, mixer.kernel)
    params = {
        "w_in": reader.take(f"{name}.in_proj.weight", 2 * size, width).T.reshape(width, 2, size),
        "conv": convolution[:, 0].T,
        "w_x": reader.take(f"{name}.x_proj.weight", rank + 2 * state, size).T,
        "w_dt": reader.take(f"{name}.dt_proj.weight", size, rank).T,
        "dt_bias": reader.take(f"{name}.dt_proj.bias", size),
        "a_log": reader.take(f"{name}.A_log", size, state).T,
        "skip": reader.take(f"{name}.D", size),
        "w_out": reader.take(f"{name}.out_proj.weight", width, size),
    }
    if mixer.conv_bias:
        params["conv_bias"] = reader.take(f"{name}.conv1d.bias", size)
    if mixer.in_bias:
        params["b_in"] = reader.take(f"{name}.in_proj.bias", 2 * size).reshape(2, size)
    if mixer.out_bias:
        params["b_out"] = reader.take(f"{name}.out_proj.bias", width)
    if mixer.normed:
        for (ours, theirs), count in zip(
            SELECTIVE_NORMS.items(), (rank, state, state), strict=True
        ):
            params[ours] = reader.take(f"{name}.{theirs}.weight", count)
    return params


def write_selective(name: str, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_selective`."""
    width = len(params["w_in"])
    tensors = {
        "in_proj.weight": params["w_in"].reshape(width, -1).T,
        "conv1d.weight": params["conv"].T[:, None],
        "x_proj.weight": params["w_x"].T,
        "dt_proj.weight": params["w_dt"].T,
        "dt_proj.bias": params["dt_bias"],
        "A_log": params["a_log"].T,
        "D": params["skip"],
        "out_proj.weight": params["w_out"],
    }
    vectors = {"b_in": "in_proj.bias", "conv_bias": "conv1d.bias", "b_out": "out_proj.bias"}
    vectors |= {ours: f"{theirs}.weight" for ours, theirs in SELECTIVE_NORMS.items()}
    for ours, theirs in vectors.items():
        if ours in params:
            tensors[theirs] = params[ours].reshape(-1)
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


def read_mixer(
    mixer: Layer, reader: Reader, width: int, official: str, inside: Mapping[type, str]
) -> dict[str, np.ndarray]:
    """The mixer of one block of a hybrid.

    Args:
      mixer: the layer.
      reader: of its block.
      width: D.
      official: the class, for messages.
      inside: what names of arrays begin with, for each class of mixers.
    """
    if isinstance(mixer, Attention):
        return read_attention(mixer, width, reader, inside=inside[Attention])
    if isinstance(mixer, Mamba):
        return read_selective(mixer, inside[Mamba], reader, width)
    return read_ssm(one(mixer, Mamba2, official), inside[Mamba2], reader, width)


def write_mixer(params: Params, width: int, inside: Mapping[type, str]) -> dict[str, np.ndarray]:
    """The inverse of `read_mixer`."""
    if "query" in params:
        return write_attention(params, width, inside=inside[Attention])
    if "w_x" in params:
        return write_selective(inside[Mamba], params)
    return write_ssm(inside[Mamba2], params)
