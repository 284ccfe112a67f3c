"""What the studies of drafts share: a small model of bytes, and the texts that it writes."""

from __future__ import annotations

import numpy as np

from experiments.study import Setting
from gam_jax import decode
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Block
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder
from sharding.checkpoint import CheckpointConfig

AHEAD = 4
"""k."""
STEPS = {"short": (8, 8), "cpu": (800, 600)}
"""Of the model, and of what is trained to guess for it."""
TEXTS, PROMPT, WRITTEN = 16, 64, 64


def base(setting: Setting) -> Experiment:
    """Two blocks of width 64 on the bytes of Python's standard library."""
    steps, _ = STEPS[setting.scale]
    block = Block(GAM(slots=64, kernel=8), MLP(expansion=2))
    return Experiment(
        model=LanguageModel(block, width=64, depth=2, vocab=256, unroll=2),
        data=Text(name="python_stdlib", tokenizer="bytes", window=PROMPT),
        train=TrainConfig(
            steps=steps, batch=16, log_every=steps // 4, validate_every=steps,
            validation_tokens=16_384,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )  # fmt: skip


def prompts_of(run: RunFolder, experiment: Experiment) -> np.ndarray:
    """Beginnings from the validation split, [TEXTS, PROMPT]."""
    data = experiment.data.open(run.kept(experiment.data))
    return np.asarray(next(data.validation_stream("", TEXTS))["inputs"])[:, :PROMPT]


def greedy(model: LanguageModel, params: Params, prompts: np.ndarray) -> np.ndarray:
    """Prompts and what the model writes, always its likeliest token; [TEXTS, PROMPT + WRITTEN]."""
    import jax

    pieces = decode.generate(model, params, prompts, WRITTEN, jax.random.key(0), temperature=0.0)
    return np.concatenate([prompts, np.stack(decode.written(pieces))], axis=1)
