"""Every model and every change of the protocol: one line each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.papers.gam.protocol import Scale
from gam_jax.layers import Attention, Block, Layer, Mamba, Residual
from gam_jax.training.experiment import Experiment

Change = Callable[[Experiment, Scale], Experiment]
"""The protocol and its scale -> the experiment."""


def _block(block: Callable[[Scale], Layer]) -> Change:
    """Another block in the same model."""

    def change(one: Experiment, scale: Scale) -> Experiment:
        model: Any = one.model
        return dataclasses.replace(one, model=dataclasses.replace(model, block=block(scale)))

    return change


def _with(**fields: dict[str, Any]) -> Change:
    """Other values of fields, by part of the experiment."""

    def change(one: Experiment, scale: Scale) -> Experiment:
        parts = {
            part: dataclasses.replace(getattr(one, part), **values)
            for part, values in fields.items()
        }
        return dataclasses.replace(one, **parts)

    return change


def _together(*changes: Change) -> Change:
    """One change after another."""

    def change(one: Experiment, scale: Scale) -> Experiment:
        for each in changes:
            one = each(one, scale)
        return one

    return change


def _variant(name: str) -> Change:
    """An ablation of GAM's mixer."""

    def change(one: Experiment, scale: Scale) -> Experiment:
        model: Any = one.model
        mixer = dataclasses.replace(model.block.mixer, variant=name)
        block = dataclasses.replace(model.block, mixer=mixer)
        return dataclasses.replace(one, model=dataclasses.replace(model, block=block))

    return change


def _quarter_batch(one: Experiment, scale: Scale) -> Experiment:
    train = dataclasses.replace(one.train, batch=max(1, one.train.batch // 4))
    return dataclasses.replace(one, train=train)


def _no_dropout(one: Experiment, scale: Scale) -> Experiment:
    model: Any = one.model
    model = dataclasses.replace(model, block=scale.block, dropout=0.0)
    return dataclasses.replace(one, model=model)


def transformer(scale: Scale) -> Layer:
    """The baseline's block: biased projections, no rotary positions (the model has learned ones).

    The official one has dropout on its attention's weights, too; this one on their outcome.
    """
    attention = Attention(
        heads=scale.heads, rotary=0.0, context=scale.window, bias=True, out_bias=True
    )
    return Block(attention)


def _as_published(one: Experiment, scale: Scale) -> Experiment:
    return one


SOUND = _with(model={"init": "sound"})
RATE = _with(optimizer={"learning_rate": 3e-3})
DECAY = _with(optimizer={"decay_all": False})
RECIPE = _together(SOUND, RATE, _quarter_batch, DECAY)
TRANSFORMER = _block(transformer)

CHANGES: dict[str, tuple[str, Change]] = {
    "gam": ("GAM", _as_published),
    "transformer": ("Transformer", TRANSFORMER),
    "mamba": ("Mamba, no residual, no norm (the paper's)", _block(lambda s: Mamba(expansion=3))),
    "mamba_block": (
        "Mamba, residual and norm (ours)",
        _block(lambda s: Residual(Mamba(expansion=3))),
    ),
    "sum": ("sum of both, no gates", _variant("sum")),
    "global": ("global (bank) alone, no gates", _variant("global")),
    "local": ("local (convolution) alone, no gates", _variant("local")),
    "positions": ("positions of std 0.02, not 1", SOUND),
    "rate": ("learning rate 3e-3, not 3e-4", RATE),
    "batch": ("a quarter of the batch: four times the steps", _quarter_batch),
    "decay": ("no decay of biases and norms", DECAY),
    "dropout": ("no dropout", _no_dropout),
    "transformer_positions": ("Transformer, positions of std 0.02", _together(TRANSFORMER, SOUND)),
    "recipe": ("recipe: positions, rate, batch and decay together", RECIPE),
    "recipe_old_positions": (
        "recipe, but positions of std 1",
        _together(RECIPE, _with(model={"init": "published"})),
    ),
    "transformer_recipe": ("Transformer, the same recipe", _together(TRANSFORMER, RECIPE)),
}
"""Arm -> its title, and what makes its experiment of the published one."""
