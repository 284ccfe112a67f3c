"""The protocol of the GAM paper in three sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.configs.gam_paper import experiment
from gam_jax.data.base import Dataset
from gam_jax.data.windows import windows
from gam_jax.layers import GAM, Block, LayerNorm
from gam_jax.training.experiment import Experiment
from sharding.checkpoint import CheckpointConfig

EPOCHS = 5
"""Passes over the training text."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large models and training are.

    Attributes:
      width, slots, depth, heads: of the models; heads are the Transformer's.
      window: tokens of a block of text, and learned positions.
      batch: windows in an update.
      vocab: of the BPE.
      tokens, validation_tokens: of the text, at most; 0 for all.
      train_rows, validation_rows: records of TinyStories, at most; 0 for all.
      data: what is read if nothing is named.
      lengths, rows: Table 2's tokens and sequences in a batch.
    """

    width: int
    slots: int
    depth: int
    heads: int
    window: int
    batch: int
    vocab: int
    tokens: int
    validation_tokens: int
    train_rows: int
    validation_rows: int
    data: str
    lengths: tuple[int, ...]
    rows: int

    @property
    def block(self) -> Block:
        """The full GAM's."""
        return Block(GAM(slots=self.slots, kernel=3))

    def protocol(self, data: str = "") -> Experiment:
        """The full GAM as published, at this size; `steps` waits for the text, see `fitted`."""
        paper: Any = experiment()
        data = data or self.data
        model = dataclasses.replace(
            paper.model,
            block=self.block,
            norm=LayerNorm(),
            width=self.width,
            depth=self.depth,
            context=self.window,
            unroll=self.depth,
        )
        stories = data == "tinystories"
        return dataclasses.replace(
            paper,
            model=model,
            data=dataclasses.replace(
                paper.data,
                name=data,
                tokenizer=f"bpe:{self.vocab}",
                window=self.window,
                stride=self.window + 1,
                train_rows=self.train_rows if stories else 0,
                validation_rows=self.validation_rows if stories else 0,
            ),
            train=dataclasses.replace(
                paper.train,
                batch=self.batch,
                tokens=self.tokens,
                validation_tokens=self.validation_tokens,
            ),
        )


def fitted(one: Experiment, data: Dataset) -> Experiment:
    """With as many steps as five epochs over this text have; scored after each epoch."""
    text: Any = data
    tokens = text.train[: one.train.tokens + 1] if one.train.tokens else text.train
    blocks = len(windows(tokens, text.config.window, text.config.step))
    epoch = -(-blocks // one.train.batch)
    steps = EPOCHS * epoch
    train = dataclasses.replace(
        one.train, steps=steps, validate_every=epoch, log_every=max(1, min(20, steps // 4))
    )
    warmup = min(one.optimizer.warmup_steps(one.train.steps), steps // 5)
    return dataclasses.replace(
        one,
        train=train,
        optimizer=dataclasses.replace(one.optimizer, warmup=warmup),
        checkpoint=CheckpointConfig(every=epoch, keep=1, keep_best=0),
    )


SCALES = {
    "short": Scale(
        width=8,
        slots=8,
        depth=1,
        heads=1,
        window=16,
        batch=8,
        vocab=200,
        tokens=1024,
        validation_tokens=256,
        train_rows=200,
        validation_rows=20,
        data="domain:english",
        lengths=(16, 32),
        rows=1,
    ),
    "cpu": Scale(
        width=64,
        slots=64,
        depth=4,
        heads=4,
        window=128,
        batch=8,
        vocab=2000,
        tokens=262_144,
        validation_tokens=32_768,
        train_rows=2000,
        validation_rows=200,
        data="python_stdlib",
        lengths=(256, 512, 1024, 2048, 4096),
        rows=1,
    ),
    "paper": Scale(
        width=512,
        slots=512,
        depth=6,
        heads=8,
        window=256,
        batch=32,
        vocab=10_000,
        tokens=0,
        validation_tokens=0,
        train_rows=50_000,
        validation_rows=5000,
        data="wikitext2",
        lengths=(256, 512, 1024, 2048, 4096, 8192),
        rows=16,
    ),
}
