"""Which parameters in shards the backward pass does not gather again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from gam_jax.layers import (
    GAM,
    MLP,
    Adapted,
    Attention,
    Block,
    Chunked,
    FalconH1,
    InOrder,
    LatentAttention,
    Layer,
    LayerNorm,
    Mamba,
    Mamba2,
    Mixed,
    MoE,
    MoFME,
    Nested,
    Pattern,
    Residual,
    Shallow,
    SoftMixture,
    Stack,
    WrittenGAM,
)
from gam_jax.layers.block import NORMED_OUT
from gam_jax.traffic.sizes import Sizes


@functools.singledispatch
def added_last(layer: Layer, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    """Paths of parameters that the backward pass has no use for.

    They are added where no product, norm or gate follows that would look at the sum; or to what
    is sent to other devices, if what these received is kept.

    Args:
      layer: whose table the paths are in.
      sizes: of what a device works on.
      followed: whether something looks at what the layer gives.
    """
    yield from ()


def _inside(prefix: str, layer: Layer, sizes: Sizes, followed: bool) -> Iterator[str]:
    for path in added_last(layer, sizes, followed):
        yield f"{prefix}/{path}"


@added_last.register
def _(layer: GAM, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    kept = sizes.tensor > 1 and not sizes.again
    if layer.variant in ("sum", "local") and (kept or not followed):
        yield "conv_bias"


@added_last.register(Mamba)
@added_last.register(Mamba2)
@added_last.register
def _(layer: MLP, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    if not followed:
        yield "b_out"


@added_last.register
def _(layer: LayerNorm, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    if not followed:
        yield "bias"


@added_last.register
def _(layer: Attention, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    if not followed:
        yield "out_bias"
    if sizes.seq > 1 and not layer.window and not sizes.again:  # what goes round is kept
        yield "value_bias"
        if not layer.qk_norm:
            yield from ("query_bias", "key_bias")


@added_last.register
def _(layer: LatentAttention, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    if not followed:
        yield "out_bias"
    if (sizes.seq > 1 or sizes.split) and not sizes.again:  # all turned keys are kept
        yield "shared_key_bias"


@added_last.register
def _(layer: MoE, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    if not followed:
        yield "shared/b_out"
    if sizes.split and not sizes.again:  # all scores are kept
        yield "router_bias"


@added_last.register
def _(layer: MoFME, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from _inside("adaptor", layer.adaptor, sizes, followed)


@added_last.register
def _(layer: WrittenGAM, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from _inside("memory", layer.memory, sizes, followed=True)


@added_last.register
def _(layer: SoftMixture, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    for path in added_last(layer.inner, sizes, followed=True):
        yield f"shared/{path}" if layer.is_shared(path) else f"experts/{path}"


@added_last.register
def _(layer: Mixed, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    if not layer.drawn:  # of one that is drawn all is run again
        for name, option in layer.named.items():
            yield from _inside(f"options/{name}", option, sizes, followed=True)


@added_last.register
def _(layer: FalconH1, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from _inside("attention", layer.attention, sizes, followed)
    yield from _inside("ssm", layer.ssm, sizes, followed)


@added_last.register
def _(layer: Block, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    *_, last = layer.steps
    for prefix, names in layer.steps.items():
        goes_on = followed or (prefix != last and not sizes.early)
        for name in names:
            inner = getattr(layer, name)
            yield from _inside(name, inner, sizes, goes_on or layer.norms != "pre")
        if layer.norms != "pre":
            norm = f"{prefix}out_norm" if layer.norms in NORMED_OUT else f"{prefix}norm"
            yield from _inside(norm, layer.norm, sizes, goes_on)


@added_last.register
def _(layer: Residual, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from _inside("inner", layer.inner, sizes, followed)


@added_last.register
def _(layer: InOrder, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    *_, last = layer.named
    for name, inner in layer.named.items():
        yield from _inside(name, inner, sizes, followed or name != last)  # but for a stack


@added_last.register
def _(layer: Pattern, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from added_last(layer.runs, sizes, followed)


@added_last.register
def _(layer: Shallow, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from added_last(layer.block, sizes, followed)


@added_last.register
def _(layer: Adapted, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from added_last(layer.inner, sizes, followed)


@added_last.register
def _(layer: Nested, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from added_last(layer.inner, sizes, followed)


@added_last.register
def _(layer: Chunked, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    yield from added_last(layer.inner, sizes, followed)


@added_last.register
def _(layer: Stack, sizes: Sizes, followed: bool = False) -> Iterator[str]:
    own = dataclasses.replace(sizes, again=layer.remat, early=layer.ladder == layer.depth)
    yield from added_last(layer.block, own)


def loops_of(layer: Stack) -> list[Stack]:
    """The loops in which its blocks run: those that read the stream early have one of their own."""
    plain = layer.depth - layer.ladder
    depths = {plain: 0, layer.ladder: layer.ladder}
    return [dataclasses.replace(layer, depth=n, ladder=m) for n, m in depths.items() if n]
