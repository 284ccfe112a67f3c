"""One mixer trained on recall until it has it, or until its steps are over."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.contenders import Contender
from experiments.recall.task import Batch, Recall, draw, mixed
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import Params, count_params
from gam_jax.training.progress import Progress
from gam_jax.training.step import TrainState, init_state, make_train_step
from sharding.layout import Layout
from sharding.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the task and the models are.

    Attributes:
      tokens, vocab: of a sequence.
      pairs: numbers of pairs; a batch has equally many rows of each.
      width, depth: of the models; hidden, of their feed-forward layers.
      rows: sequences in an update.
      steps: updates at most.
      learning_rate: the highest; matrix_rate: that of matrices, by Muon, in units of it.
      check_every: steps between two looks at sequences of their own, four batches of them.
      asked: sequences of each number of pairs that the last score is of.
      enough: the share of right answers at which training ends.
    """

    tokens: int = 128
    vocab: int = 128
    pairs: tuple[int, ...] = (4, 8, 16)
    width: int = 64
    depth: int = 2
    hidden: int = 128
    rows: int = 15
    steps: int = 1500
    learning_rate: float = 5e-3
    matrix_rate: float = 2.0
    check_every: int = 50
    asked: int = 510
    enough: float = 0.999

    @property
    def tasks(self) -> tuple[Recall, ...]:
        """One for each number of pairs."""
        return tuple(Recall(self.tokens, n, self.vocab) for n in self.pairs)


SCALES = {
    "short": Scale(32, 64, (2, 4), width=32, hidden=64, rows=32, steps=300, asked=128),
    "default": Scale(),
    "long": Scale(512, 256, (4, 16, 64), width=128, hidden=256, steps=1200),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a trial found.

    Attributes:
      accuracy: pairs -> share of questions answered rightly, on sequences never trained on.
      steps: updates done.
      seconds: training took, compiling included.
      parameters: of the whole model.
      carry_bytes: that the model keeps of one sequence, at the length of the task.
    """

    accuracy: dict[int, float]
    steps: int
    seconds: float
    parameters: int
    carry_bytes: int


class Trial:
    """Trains one contender from a seed; the sequences depend on the seed alone."""

    def __init__(self, contender: Contender, scale: Scale, seed: int) -> None:
        block = contender.block(scale.width, scale.hidden)
        self.model = LanguageModel(
            block, scale.width, scale.depth, scale.vocab, streams=contender.streams
        )
        self.scale, self.seed = scale, seed
        config = OptimizerConfig(
            scale.learning_rate,
            min(100, scale.steps // 10),
            kind="muon",
            matrix_rate=scale.matrix_rate,
        )
        self.optimizer = make_optimizer(config, scale.steps, self.model.table())
        self.layout = Layout(make_mesh())
        keys = jax.random.split(jax.random.key(seed), 3)
        self.to_train, self.to_check, self.to_score = keys
        self.right = jax.jit(functools.partial(_right, self.model))

    def run(self, progress: Progress) -> Found:
        """Trains, looking now and then whether all is learned, and scores."""
        scale, began = self.scale, time.perf_counter()
        state = init_state(self.model, self.optimizer, self.layout, self.seed)
        train_step = make_train_step(self.model, self.optimizer, self.layout)
        step, checked = 0, 0.0
        with progress.training(0, scale.steps):
            while step < scale.steps and checked < scale.enough:
                batch = mixed(scale.tasks, jax.random.fold_in(self.to_train, step), scale.rows)
                state, values = train_step(state, batch)
                step += 1
                if step % scale.check_every == 0:
                    progress.step(step, float(values["loss"]))
                    shares = self.accuracy(state, self.to_check, 4 * scale.rows)
                    checked = min(shares.values())
                    if step % (4 * scale.check_every) == 0:
                        progress.say(f"step {step:>6}  {shown(shares)}")
        seconds = time.perf_counter() - began
        return Found(
            accuracy=self.accuracy(state, self.to_score, scale.asked),
            steps=step,
            seconds=round(seconds, 1),
            parameters=count_params(self.model.table()),
            carry_bytes=self.model.carry_bytes(1),
        )

    def accuracy(self, state: TrainState, key: Array, rows: int) -> dict[int, float]:
        """Number of pairs -> share of right answers on `rows` new sequences."""
        found, part = {}, min(rows, self.scale.rows)
        for task in self.scale.tasks:
            keys = jax.random.split(jax.random.fold_in(key, task.pairs), -(-rows // part))
            shares = [self.right(state.params, draw(task, own, part)) for own in keys]
            found[task.pairs] = float(jnp.mean(jnp.stack(shares)))
        return found


def shown(accuracy: dict[int, float]) -> str:
    """Shares of right answers by the number of pairs."""
    return ", ".join(f"{value:.1%} of {pairs} pairs" for pairs, value in accuracy.items())


def _right(model: LanguageModel, params: Params, batch: Batch) -> Array:
    """The share of questions whose likeliest answer is the right one."""
    logits, _ = model(params, batch["inputs"])
    hits = jnp.argmax(logits, axis=-1) == batch["targets"]
    return jnp.sum(hits * batch["weights"]) / jnp.sum(batch["weights"])
