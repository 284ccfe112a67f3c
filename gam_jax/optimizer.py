"""AdamW or Muon with warm-up, cosine decay and clipping, from a config."""

from __future__ import annotations

import dataclasses

import optax

from gam_jax.config import unknown
from gam_jax.muon import scale_by_muon, scale_matrices
from gam_jax.params import Table, decay_mask
from sharding.errors import UserError

KINDS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101), or Muon for matrices, after clipping by global norm.

    Attributes:
      learning_rate: the highest rate.
      warmup: steps of linear warm-up from 0.
      final: the rate at the last step, as a fraction of the highest (half-cosine in between).
      beta1, beta2, eps: Adam's.
      weight_decay: decoupled, on the parameters that the tables mark.
      decay_all: on every parameter, norms and biases too, as the GAM paper's code does.
      clip: largest global gradient norm; 0 for none.
      kind: "adamw"; or "muon", which differs in the updates of matrices, see `gam_jax.muon`.
      matrix_rate: Muon's rate for matrices, and that of their decay, in units of learning_rate.
    """

    learning_rate: float = 3e-3
    warmup: int = 100
    final: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_all: bool = False
    clip: float = 1.0
    kind: str = "adamw"
    matrix_rate: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"optimizer.kind: {unknown(self.kind, KINDS, 'kind')}")


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate of step i (from 0): linear warm-up from 0, then half a cosine down to `final`.

    Raises:
      UserError: warm-up as long as the run or longer.
    """
    if config.warmup >= steps:
        raise UserError(
            f"optimizer.warmup={config.warmup} does not end before train.steps={steps}: "
            f"lower the one or raise the other"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup,
        decay_steps=steps,
        end_value=config.learning_rate * config.final,
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, table: Table
) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps over the parameters of `table`."""
    mask = None if config.decay_all else decay_mask(table)
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, steps))
    betas = config.beta1, config.beta2, config.eps
    if config.kind == "muon":
        matrices = scale_matrices(table, config.matrix_rate)
        return optax.chain(clip, scale_by_muon(table, *betas), decay, matrices, rate)
    return optax.chain(clip, optax.chain(optax.scale_by_adam(*betas), decay, rate))
