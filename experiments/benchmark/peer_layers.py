"""Attention, experts and the scan of Mamba-2, beside PyTorch and transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax.layers import MLP, MoE
from gam_jax.ops.cached_attention import attend
from gam_jax.ops.scan import memory_scan
from gam_jax.params import init_params

HEADS, SIZE = 4, 64
ATTENTION = ((1, 1024), (1, 4096), (1, 8192), (8, 1024))
"""Rows and tokens."""
WIDTH, HIDDEN, EXPERTS, CHOSEN = 256, 688, 8, 2
EXPERT_TOKENS = (512, 2048)
SCANNED, STATE, CHUNK = 8192, 64, 64

Pair = tuple[str, Callable[[], Any], Callable[[], Any]]
"""What is done, by this library, and by the other."""


def pairs(short: bool = False) -> Iterator[Pair]:
    """Each pair has arrays of the same sizes, float32; `short` gives the smallest attention."""
    for rows, tokens in ATTENTION[: 1 if short else None]:
        yield _attention(rows, tokens)
    if short:
        return
    for tokens in EXPERT_TOKENS:
        yield from _experts(tokens)
    yield _scan()


def _normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def _compiled(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    call = jax.jit(function).lower(*args).compile()
    return lambda: call(*args)


def _gradients(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Of the sum of squares, by all arguments."""
    loss = lambda *args: jnp.sum(jnp.square(function(*args)))  # noqa: E731
    return _compiled(jax.grad(loss, argnums=tuple(range(len(args)))), *args)


def _backward(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """The same in PyTorch."""

    def call() -> Any:
        for x in args:
            x.grad = None
        function(*args).square().sum().backward()
        return args[0].grad[(0,) * args[0].dim()].item()

    return call


def _tensors(*arrays: np.ndarray) -> list[Any]:
    import torch  # type: ignore[import-not-found]

    return [torch.tensor(x, requires_grad=True) for x in arrays]


def _attention(rows: int, tokens: int) -> Pair:
    from torch.nn import functional  # type: ignore[import-not-found]

    arrays = _normal(*[(rows, tokens, HEADS, SIZE)] * 3)
    ours = _gradients(lambda *a: attend(*a)[0], *map(jnp.asarray, arrays))
    heads_first = _tensors(*(np.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays))
    theirs = _backward(
        lambda *a: functional.scaled_dot_product_attention(*a, is_causal=True), *heads_first
    )
    return f"attention, {rows} rows of {tokens:,}, forward and backward", ours, theirs


def _experts(tokens: int) -> Iterator[Pair]:
    import torch  # type: ignore[import-not-found]
    import transformers  # type: ignore[import-not-found]
    from transformers.models.mixtral import modeling_mixtral  # type: ignore[import-not-found]

    config: Any = transformers.MixtralConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
    )
    config._experts_implementation = "grouped_mm"  # what its language models choose
    block = modeling_mixtral.MixtralSparseMoeBlock(config)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=WIDTH**-0.5)
    ffn = MLP(activation="swiglu", bias=False, hidden=HIDDEN)
    layer = MoE(EXPERTS, CHOSEN, ffn, width=WIDTH)
    params = init_params(layer.table(), jax.random.key(0))
    (x,) = _normal((1, tokens, WIDTH))
    (tensor,) = _tensors(x)

    def forward() -> Any:
        with torch.no_grad():
            return block(tensor)[0, 0, 0].item()

    def both() -> Any:
        block.zero_grad()
        return _backward(block, tensor)()

    given = params, jnp.asarray(x)
    run = lambda params, x: layer(params, x)[0]  # noqa: E731
    yield f"experts, {tokens:,} tokens", _compiled(run, *given), forward
    yield f"experts, {tokens:,} tokens, forward and backward", _gradients(run, *given), both


def _scan() -> Pair:
    """One row, 8 heads of 64 that share keys and queries of 64."""
    heads = 8
    c, b, x = _normal((1, SCANNED, 1, STATE), (1, SCANNED, 1, STATE), (1, SCANNED, heads, SIZE))
    decay = -np.abs(_normal((1, SCANNED, heads))[0]) / 8
    arrays = c / STATE, b, x, decay
    ours = _gradients(
        lambda c, b, x, decay: memory_scan(c, b, x, log_decay=decay)[0], *map(jnp.asarray, arrays)
    )
    return (
        f"Mamba-2's scan, {SCANNED:,} tokens, forward and backward",
        ours,
        _backward(scan_in_chunks, *_tensors(*arrays)),
    )


def scan_in_chunks(c: Any, b: Any, x: Any, decay: Any) -> Any:
    """S_t = exp(decay_t) S_{t-1} + b_t x_t^T, read as S_t^T c_t, in PyTorch, 64 tokens a chunk.

    Source: the chunks of Mamba-2 (arXiv 2405.21060, section 6): within a chunk as attention
    weighted by decays, between chunks by their last states.

    Args:
      c: [B, T, 1, N].
      b: likewise.
      x: [B, T, H, P].
      decay: logarithms [B, T, H], at most 0.
    """
    import torch  # type: ignore[import-not-found]

    rows, tokens, heads, size = x.shape
    c, b = (y.reshape(rows, -1, CHUNK, y.shape[-1]) for y in (c, b))
    x = x.reshape(rows, -1, CHUNK, heads, size).permute(0, 1, 3, 2, 4)
    total = decay.reshape(rows, -1, CHUNK, heads).permute(0, 1, 3, 2).cumsum(-1)
    apart = total[..., :, None] - total[..., None, :]
    earlier = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    weights = torch.exp(apart.masked_fill(~earlier, -torch.inf))
    within = ((c @ b.transpose(-1, -2))[:, :, None] * weights) @ x
    left = torch.exp(total[..., -1:] - total)
    made = b.transpose(-1, -2)[:, :, None] @ (left[..., None] * x)
    state, before = torch.zeros_like(made[:, 0]), []
    for chunk in range(made.shape[1]):
        before.append(state)
        state = torch.exp(total[:, chunk, :, -1])[..., None, None] * state + made[:, chunk]
    found = torch.exp(total)[..., None] * (c[:, :, None] @ torch.stack(before, 1))
    return (within + found).permute(0, 1, 3, 2, 4).reshape(rows, tokens, heads, size)
