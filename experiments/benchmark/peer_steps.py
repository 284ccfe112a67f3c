"""Training steps of nanoGPT's small setting and of the GAM paper's, beside plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.benchmark import step
from experiments.benchmark.peer_layers import Pair
from gam_jax.layers import MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from sharding.layout import Layout
from sharding.mesh import make_mesh

ROWS, TOKENS, VOCAB, WIDTH, DEPTH, HEADS = 12, 64, 65, 128, 4, 4
"""nanoGPT's setting for a laptop: config/train_shakespeare_char.py with the README's flags."""
RATE = 1e-3


def pairs() -> Iterator[Pair]:
    """A whole step each: forward, backward, clipping by norm, and the optimizer; float32."""
    gpt = LanguageModel(
        Block(
            Attention(heads=HEADS, rotary=0.0, context=TOKENS), MLP(activation="gelu", bias=False)
        ),
        width=WIDTH,
        depth=DEPTH,
        vocab=VOCAB,
        context=TOKENS,
        unroll=DEPTH,
    )
    for kind in ("adamw", "muon"):
        optimizer = OptimizerConfig(kind=kind, learning_rate=RATE)
        ours = _ours(gpt, optimizer, ROWS, TOKENS, VOCAB)
        theirs = _theirs(_nano_gpt(), ROWS, TOKENS, VOCAB, kind)
        yield f"nanoGPT's step, {ROWS} x {TOKENS}, {kind}", ours, theirs
    sizes = step.BATCH, step.TOKENS, 10_000
    ours = _ours(step.MODEL, step.OPTIMIZER, *sizes)
    yield (
        f"the GAM paper's step, {sizes[0]} x {sizes[1]}, adamw",
        ours,
        _theirs(_gam(), *sizes, "adamw"),
    )


def _batch(rows: int, tokens: int, vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (rows, tokens + 1)).astype(np.int32)


def _ours(
    model: LanguageModel, config: OptimizerConfig, rows: int, tokens: int, vocab: int
) -> Callable[[], Any]:
    layout = Layout(make_mesh())
    optimizer = make_optimizer(config, 10_000, model.table())
    run = make_train_step(model, optimizer, layout)
    holder = [init_state(model, optimizer, layout, seed=0)]
    ids = _batch(rows, tokens, vocab)
    weights = np.ones((rows, tokens), np.float32)
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}

    def call() -> Any:
        holder[0], metrics = run(holder[0], batch)
        return holder[0], metrics

    return call


def _theirs(model: Any, rows: int, tokens: int, vocab: int, kind: str) -> Callable[[], Any]:
    import torch  # type: ignore[import-not-found]
    from torch.nn import functional  # type: ignore[import-not-found]

    ids = torch.tensor(_batch(rows, tokens, vocab)).long()
    given, wanted = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    named = dict(model.named_parameters()) if kind == "muon" else {}
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    means = [torch.zeros_like(p) for p in matrices]

    def call() -> float:
        model.zero_grad()
        loss = functional.cross_entropy(model(given).flatten(0, 1), wanted.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        _muon_step(matrices, means)
        return loss.item()

    return call


def _muon_step(matrices: list[Any], means: list[Any]) -> None:
    """Muon's published step (Jordan et al. 2024), matrix by matrix, in float32."""
    import torch  # type: ignore[import-not-found]

    with torch.no_grad():
        for p, mean in zip(matrices, means, strict=True):
            mean.lerp_(p.grad, 0.05)
            x = p.grad.lerp(mean, 0.95)
            wide = x.shape[0] > x.shape[1]
            x = x.T if wide else x
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            p.mul_(1 - RATE * 0.1)
            p.add_(x.T if wide else x, alpha=-RATE * 0.2 * max(p.shape) ** 0.5)


def _nano_gpt() -> Any:
    """nanoGPT's architecture: learned positions, LayerNorm, GELU, no biases in maps, tied head."""
    import torch  # type: ignore[import-not-found]
    from torch import nn  # type: ignore[import-not-found]

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
            linear = functools.partial(nn.Linear, bias=False)
            self.qkv, self.out = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
            self.up, self.down = linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            parts = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
            heads = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in parts)
            y = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(y.transpose(1, 2).flatten(2))
            return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.embed_place = nn.Embedding(VOCAB, WIDTH), nn.Embedding(TOKENS, WIDTH)
            self.layers = nn.ModuleList([Layer() for _ in range(DEPTH)])
            self.norm = nn.LayerNorm(WIDTH)
            for p in self.parameters():
                if p.ndim == 2:
                    nn.init.normal_(p, std=0.02)

        def forward(self, ids: Any) -> Any:
            x = self.embed(ids) + self.embed_place(torch.arange(ids.shape[1]))
            for layer in self.layers:
                x = layer(x)
            return self.norm(x) @ self.embed.weight.T

    torch.manual_seed(0)
    return Model().train()


def _gam() -> Any:
    """The model of the GAM paper (arXiv 2509.00605, section 3), with its sizes and dropout."""
    import torch  # type: ignore[import-not-found]
    from torch import nn  # type: ignore[import-not-found]

    model = step.MODEL
    width, vocab, slots = model.width, 10_000, 512

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
            self.conv = nn.Conv1d(width, width, 3, padding=2, groups=width)
            self.bank = nn.Parameter(torch.randn(slots, width) * width**-0.5)
            self.gate = nn.Linear(width, 2 * width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.drop = nn.Dropout(model.dropout)

        def forward(self, x: Any) -> Any:
            y = self.norms[0](x)
            local = self.conv(y.transpose(1, 2))[..., : y.shape[1]].transpose(1, 2)
            read = torch.softmax(y @ self.bank.T, dim=-1) @ self.bank
            one, other = torch.sigmoid(self.gate(y)).chunk(2, dim=-1)
            x = x + self.drop(one * local + other * read)
            return x + self.drop(self.down(nn.functional.gelu(self.up(self.norms[1](x)))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.embed_place = nn.Embedding(vocab, width), nn.Embedding(256, width)
            self.drop = nn.Dropout(model.dropout)
            self.layers = nn.ModuleList([Layer() for _ in range(model.depth)])
            self.norm = nn.LayerNorm(width)
            nn.init.normal_(self.embed.weight, std=0.02)

        def forward(self, ids: Any) -> Any:
            x = self.drop(self.embed(ids) + self.embed_place(torch.arange(ids.shape[1])))
            for layer in self.layers:
                x = layer(x)
            return self.norm(x) @ self.embed.weight.T

    torch.manual_seed(0)
    return Model().train()
