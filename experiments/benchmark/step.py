"""A whole training step of the paper's 22.6 M configuration, beside the official PyTorch code."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.timing import Quantity, Rows, medians, ratio
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from sharding.errors import UserError
from sharding.layout import Layout

BATCH, TOKENS = 4, 256
MODEL = LanguageModel(
    Block(GAM(slots=512, kernel=3)),
    width=512,
    depth=6,
    vocab=10_000,
    context=256,
    dropout=0.1,
    init="published",
    unroll=6,
)
OPTIMIZER = OptimizerConfig(learning_rate=3e-4, final=0.0, decay_all=True)


def run(repeats: int, against: str | None, layout: Layout) -> Rows:
    """Times forward, backward, clipping and AdamW, dropout on, float32.

    Args:
      repeats: timed steps of each.
      against: path of the official gam_model.py, timed in turn with ours.
      layout: the mesh that ours runs on.

    Returns:
      Time of ours and theirs, their ratio, the rate of one matrix product of the step on this
      machine, and the share of our time that all of them would take at that rate.
    """
    layout.check_batch(BATCH, TOKENS)
    calls = {"ours": _ours(layout)}
    if against is not None:
        calls["official"] = _official(pathlib.Path(against))
    rate_x, rate_w = jnp.ones((BATCH * TOKENS, 512)), jnp.ones((512, 2048))
    product = jax.jit(jnp.dot)
    calls["product"] = lambda: product(rate_x, rate_w)
    times = medians(calls, repeats, warmup=3)
    rate = times["product"].rate(2 * BATCH * TOKENS * 512 * 2048 / 1e9, "GFLOP/s")
    work = step_flops() / 1e9
    row = {
        "ours": times["ours"],
        "products": Quantity.exactly(work, "GFLOP"),
        "one product": rate,
        "share of products": Quantity.exactly(work / rate.median / times["ours"].median),
    }
    if against is not None:
        row["official"] = times["official"]
        row["ours over official"] = ratio(times["ours"], times["official"])
    return {f"a step of {BATCH} x {TOKENS} tokens": row}


def step_flops() -> int:
    """Operations in the matrix products of one step: forward once, backward twice."""
    width, slots, hidden = 512, 512, 2048
    block = 2 * slots * width + 2 * width * width + 2 * width * hidden
    macs = BATCH * TOKENS * (MODEL.depth * block + width * 10_000)
    return 3 * 2 * macs


def _ours(layout: Layout) -> Callable[[], Any]:
    optimizer = make_optimizer(OPTIMIZER, 10_000, MODEL.table())
    step = make_train_step(MODEL, optimizer, layout)
    holder = [init_state(MODEL, optimizer, layout, seed=0)]
    tokens = np.random.default_rng(0).integers(0, 10_000, (BATCH, TOKENS + 1)).astype(np.int32)
    weights = np.ones((BATCH, TOKENS), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}

    def call() -> Any:
        holder[0], metrics = step(holder[0], batch)
        return holder[0], metrics

    return call


def _official(path: pathlib.Path) -> Callable[[], Any]:
    try:
        import torch  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError("--against needs torch: pip install 'gam_jax[official]'") from error
    spec = importlib.util.spec_from_file_location("official_gam_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"--against={path}: no such file; give the official gam_model.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    torch.manual_seed(0)
    model = code.GAM_Model(code.ModelConfig()).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(0, 10_000, (BATCH, TOKENS + 1))

    def call() -> float:
        adamw.zero_grad()
        _, loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        return loss.item()

    return call
