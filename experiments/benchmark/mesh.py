"""A training step on meshes of 1 to 8 devices, and a sequence of 1 Mi tokens on eight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmark.timing import Quantity, Rows, medians, ratio
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import abstract_state, init_state, state_shardings
from gam_jax.training.step import make_train_step, put_batch
from sharding.layout import Layout, Parallel, bytes_held
from sharding.mesh import make_mesh
from sharding.products import product_flops

DEVICES = 8
MODEL = LanguageModel(Block(GAM(slots=128, kernel=8)), width=128, depth=4, vocab=256, unroll=4)
BATCH, TOKENS = 8, 256
MESHES = (
    ((1, 1, 1), "data"),
    ((2, 1, 1), "data"),
    ((4, 1, 1), "data"),
    ((8, 1, 1), "data"),
    ((8, 1, 1), "zero1"),
    ((8, 1, 1), "fully_sharded"),
    ((1, 2, 1), "sequence"),
    ((1, 8, 1), "sequence"),
    ((1, 1, 2), "tensor"),
    ((1, 1, 8), "tensor"),
    ((1, 1, 8), "tensor_tokens"),
    ((2, 2, 2), "data+sequence+tensor"),
)
LONG = LanguageModel(Block(GAM(slots=64, kernel=8)), width=64, depth=2, vocab=256, remat=True)
LONG_TOKENS, SHORT_TOKENS = 1 << 20, 1 << 14


def run(repeats: int, short: bool = False) -> Rows:
    """Whole steps of the default model, 8 x 256 tokens, on eight emulated devices.

    Emulated devices share this machine's cores, so a perfect mesh takes the time of one device;
    what is above that is overhead.

    Returns:
      A row a mesh: time, over that of one device, operations in matrix products and bytes
      of parameters and optimizer state per device.
    """
    calls: dict[str, Callable[[], Any]] = {}
    rows: Rows = {}
    for shape, preset in MESHES[:: len(MESHES) - 1] if short else MESHES:
        layout = Layout(make_mesh(*shape), Parallel(preset))
        name = f"{'x'.join(map(str, shape))} {preset}"
        calls[name], traced, _ = _step(MODEL, layout, BATCH, TOKENS)
        products = product_flops(traced.jaxpr.jaxpr).total() / 1e9
        rows[name] = {
            "products a device": Quantity.exactly(products, "GFLOP"),
            "state a device": Quantity.exactly(_state_bytes(MODEL, layout), "B"),
        }
    times = medians(calls, repeats, warmup=1)
    one = next(iter(times.values()))
    for name, found in times.items():
        rows[name] |= {"time": found, "over one device": ratio(found, one)}
    return rows


def run_long(repeats: int, short: bool = False) -> Rows:
    """Whole steps on one sequence: 128 Ki tokens on one device, 1 Mi on eight along `seq`.

    Returns:
      A row each: tokens per device, time, and the compiler's count of temporary bytes on a
      device.
    """
    calls: dict[str, Callable[[], Any]] = {}
    rows: Rows = {}
    for size in (1, DEVICES):
        layout = Layout(make_mesh(seq=size), Parallel("sequence"))
        tokens = (SHORT_TOKENS if short else LONG_TOKENS) // DEVICES * size
        name = f"{tokens:,} tokens, seq={size}"
        calls[name], _, compiled = _step(LONG, layout, 1, tokens)
        temporary = compiled.memory_analysis().temp_size_in_bytes
        rows[name] = {
            "tokens a device": Quantity.exactly(tokens // size),
            "temporary a device": Quantity.exactly(temporary, "B"),
        }
    for name, found in medians(calls, repeats, warmup=1).items():
        rows[name]["time"] = found
    return rows


def _state_bytes(model: LanguageModel, layout: Layout) -> int:
    """Bytes of parameters and optimizer state that one device holds."""
    optimizer = make_optimizer(OptimizerConfig(), 1000, model.table())
    state, placed = abstract_state(model, optimizer), state_shardings(model, optimizer, layout)
    return bytes_held(state, placed)


def _step(
    model: LanguageModel, layout: Layout, rows: int, length: int
) -> tuple[Callable[[], Any], Any, Any]:
    """A call that takes one step, and the step traced and compiled."""
    optimizer = make_optimizer(OptimizerConfig(), 1000, model.table())
    holder = [init_state(model, optimizer, layout, seed=0)]
    random = np.random.default_rng(0)
    tokens = random.integers(0, model.vocab or 0, (rows, length + 1)).astype(np.int32)
    weights = np.ones((rows, length), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    batch = put_batch(model, layout, batch)
    traced = make_train_step(model, optimizer, layout).trace(holder[0], batch)  # type: ignore[attr-defined]
    compiled = traced.lower().compile()

    def call() -> Any:
        holder[0], metrics = compiled(holder[0], batch)
        return metrics

    return call, traced, compiled
