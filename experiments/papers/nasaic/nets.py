"""Two models of six nets each, and how accurate a net is: it is trained now."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax

from experiments.study import Setting
from experiments.study.declare import CPU, SHORT
from gam_jax.data import Digits, Text
from gam_jax.layers import GAM, MLP, Attention, Block, Layer
from gam_jax.models import ImageClassifier, LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.state import init_state
from gam_jax.training.step import make_eval_step, make_train_step
from sharding.layout import Layout
from sharding.mesh import make_mesh

TASKS = ("bytes", "digits")
STEPS = {SHORT: 2, CPU: 120}
"""Updates of a net."""
ROWS, TOKENS = {"bytes": 16, "digits": 64}, 64
KINDS: dict[str, Callable[[], Layer]] = {
    "attention": lambda: Attention(heads=8),
    "GAM": lambda: GAM(slots=32),
}
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    SHORT: ((16, 1), (32, 1)),
    CPU: ((32, 1), (64, 1), (32, 2)),
}
"""Width and depth."""


@functools.cache
def nets(scale: str) -> dict[str, dict[str, Experiment]]:
    """For each task, its nets by name."""
    found: dict[str, dict[str, Experiment]] = {task: {} for task in TASKS}
    for (kind, make), (width, depth) in itertools.product(KINDS.items(), SIZES[scale]):
        name = f"{kind} {width} x {depth}"
        block = Block(make(), MLP(expansion=2))
        models = {
            "bytes": LanguageModel(block, width, depth, vocab=256),
            "digits": ImageClassifier(block, width, depth, side=8, classes=10, patch=2),
        }
        data = {
            "bytes": Text("python_stdlib", tokenizer="bytes", window=TOKENS),
            "digits": Digits(),
        }
        for task in TASKS:
            train = TrainConfig(steps=STEPS[scale], batch=ROWS[task])
            found[task][name] = Experiment(models[task], data[task], train=train)
    return found


@functools.cache
def _program(task: str, name: str, scale: str) -> tuple[Any, ...]:
    """Model, optimizer and steps of a net; all seeds share them."""
    one = nets(scale)[task][name]
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    config = OptimizerConfig(3e-3, warmup=0.1)
    optimizer = make_optimizer(config, one.train.steps, one.model.table())
    step, scored = make_train_step(one.model, optimizer, layout), make_eval_step(one.model, layout)
    return one, optimizer, layout, step, scored


@functools.cache
def _data(task: str, name: str, folder: str, scale: str) -> Any:
    data: Any = next(iter(nets(scale)[task].values())).data
    if task == "bytes":
        data = dataclasses.replace(data, name=name or data.name, dir=folder or data.dir)
    return data.open()


@functools.cache
def accuracy(net: tuple[str, str], setting: Setting, seed: int) -> float:
    """The validation accuracy of a net that is trained now."""
    one, optimizer, layout, step, scored = _program(*net, setting.scale)
    data = _data(net[0], setting.data, setting.data_dir, setting.scale)
    stream = data.train_stream(one.train.batch, seed)
    state = init_state(one.model, optimizer, layout, seed)
    for _ in range(min(setting.steps or one.train.steps, one.train.steps)):
        state, _ = step(state, next(stream))
    stream.close()
    batches = itertools.islice(data.validation_stream("", 64), 8)
    sums = [scored(state.params, batch)["accuracy"] for batch in batches]
    return sum(float(right) for right, _ in sums) / sum(float(count) for _, count in sums)
