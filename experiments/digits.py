"""Classifies scikit-learn's 8 x 8 digits, beside a linear model.

python -m experiments.digits                      MHS of four heads, under two minutes on 2 cores
python -m experiments.digits --mixer=raster,mhs,gru   several, one after another

The data are inside scikit-learn: pip install 'gam_jax[digits]'.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import cli
from gam_jax.layers import GAM, GRU, MHS, MLP, Bidirectional, Block, Layer
from gam_jax.models.classifier import ImageClassifier
from gam_jax.params import Params, count_params, decay_mask, init_params
from sharding.errors import UserError

SIDE, PATCH, CLASSES, WIDTH, DEPTH, BATCH = 8, 2, 10, 32, 2, 64
ROWS = SIDE // PATCH
TEST = 360
"""Of the 1,797 images; the rest is for training."""
MIXERS: dict[str, Layer] = {
    "mhs": MHS(rows=ROWS, patterns="CXSZ", state=4),
    "raster": MHS(rows=ROWS, patterns="Z", state=4),
    "gru": Bidirectional(GRU()),
    "gam": GAM(slots=32, kernel=4, dilation=ROWS),
}


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_list("mixer", ["mhs"], f"Of {', '.join(MIXERS)}, joined by commas.")
    flags.DEFINE_integer("steps", 300, "Of AdamW, 64 images each.", 1)
    flags.DEFINE_integer("seed", 0, "Of the split, the start and the order.")


def load(seed: int) -> dict[str, np.ndarray]:
    """Images in [0, 1] and labels, shuffled and split.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("digits needs scikit-learn: pip install 'gam_jax[digits]'") from error
    found: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    images = (found.images[order] / 16).astype(np.float32)
    labels = found.target[order].astype(np.int32)
    return {
        "images": images[TEST:],
        "labels": labels[TEST:],
        "test_images": images[:TEST],
        "test_labels": labels[:TEST],
    }


def linear_accuracy(data: dict[str, np.ndarray]) -> float:
    """Logistic regression on the pixels."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000)
    model.fit(data["images"].reshape(-1, SIDE**2), data["labels"])
    return float(model.score(data["test_images"].reshape(-1, SIDE**2), data["test_labels"]))


def train(mixer: Layer, data: dict[str, np.ndarray], steps: int, seed: int) -> dict[str, float]:
    """Trains two blocks of width 32 on 4 x 4 patches: accuracy on test images, and its cost."""
    model = ImageClassifier(Block(mixer, MLP(expansion=2)), WIDTH, DEPTH, SIDE, CLASSES, PATCH)
    table = model.table()
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, max(1, steps // 10), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05, mask=decay_mask(table))
    )
    params = init_params(table, jax.random.key(seed))
    state, step = optimizer.init(params), _step(model, optimizer)
    order, start = np.random.default_rng(seed), time.perf_counter()
    for _ in range(steps):
        chosen = order.integers(0, len(data["labels"]), BATCH)
        params, state = step(params, state, data["images"][chosen], data["labels"][chosen])
    logits = jax.jit(model)(params, jnp.asarray(data["test_images"]))
    right = jnp.mean(jnp.argmax(logits, axis=-1) == data["test_labels"])
    accuracy, seconds = float(right), time.perf_counter() - start
    return {"parameters": count_params(table), "accuracy": accuracy, "seconds": seconds}


def _step(model: ImageClassifier, optimizer: Any) -> Callable[..., tuple[Params, Any]]:
    def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model(params, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def step(params: Params, state: Any, images: Any, labels: Any) -> tuple[Params, Any]:
        gradient = jax.grad(loss)(params, images, labels)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state  # type: ignore[return-value]

    return jax.jit(step)


def main() -> None:
    """Trains each mixer and prints its accuracy beside the linear model's."""
    args = flags.FLAGS
    for name in args.mixer:
        if name not in MIXERS:
            raise UserError(f"--mixer={name}: choose from {', '.join(MIXERS)}")
    data = load(args.seed)
    print(f"{len(data['labels'])} images to train on, {TEST} to test")
    print(f"{'linear':8} accuracy {linear_accuracy(data):.4f}", flush=True)
    for name in args.mixer:
        found = train(MIXERS[name], data, args.steps, args.seed)
        print(
            f"{name:8} accuracy {found['accuracy']:.4f}  parameters {found['parameters']:,}"
            f"  {found['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main, define_flags)
