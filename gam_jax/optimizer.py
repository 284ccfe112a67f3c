"""AdamW or Muon with warm-up, decay and clipping, from a config."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gam_jax.config import unknown
from gam_jax.muon import scale_by_muon, scale_matrices
from gam_jax.params import (
    Param,
    Table,
    any_counted,
    decay_mask,
    is_fixed,
    path_name,
    trained_mask,
    with_counted,
    without_counted,
)
from sharding.bounds import NotNegative, Positive, Rate, Share, Span, check_bounds
from sharding.errors import UserError

KINDS = ("adamw", "muon")
MOMENTS = ("float32", "bfloat16")
SLOWEST = 1 - 2**-8
"""The slowest average that bfloat16 can hold: a smaller change is rounded away, at worst always."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101), or Muon for matrices, after clipping by global norm.

    Attributes:
      learning_rate: the highest rate.
      warmup: linear warm-up from 0: below 1 a share of the steps, from 1 on so many steps.
      schedule: from the highest rate to the last: "cosine", half of one; "linear"; "constant",
        which stays at the highest; "wsd", which stays there until the cooldown begins.
      final: the rate at the last step, as a fraction of the highest.
      cooldown: of "wsd" (warmup-stable-decay, arXiv 2404.06395), the linear way down at the end:
        below 1 a share of the steps, from 1 on so many steps.
      beta1, beta2, eps: Adam's.
      weight_decay: decoupled, on the parameters that the tables mark.
      decay_all: on every parameter, norms and biases too, as the GAM paper's code does.
      clip: largest global gradient norm; 0 for none.
      kind: "adamw"; or "muon", which differs in the updates of matrices, see `gam_jax.muon`.
      momentum: Muon's, of matrices.
      matrix_rate: Muon's rate for matrices, and that of their decay, in units of learning_rate.
      only: patterns of names, joined by commas, as "starts/*,aggregator/*": other parameters stay
        as they are, bit for bit, and take no memory here. Empty for all.
      moments: in which dtype Adam's averages and Muon's momentum are stored, one of `MOMENTS`;
        they are computed in float32. bfloat16 takes averages no slower than `SLOWEST`.
    """

    learning_rate: NotNegative = 3e-3
    warmup: Span = 0.1
    schedule: str = "cosine"
    final: Share = 0.1
    cooldown: Span = 0.1
    beta1: Rate = 0.9
    beta2: Rate = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    decay_all: bool = False
    clip: NotNegative = 1.0
    kind: str = "adamw"
    momentum: Rate = 0.95
    matrix_rate: NotNegative = 3.0
    only: str = ""
    moments: str = "float32"

    def __post_init__(self) -> None:
        check_bounds(self, "optimizer")
        for name in ("warmup", "cooldown"):
            check_span(f"optimizer.{name}", getattr(self, name))
        for name, valid in (("kind", KINDS), ("schedule", SCHEDULES), ("moments", MOMENTS)):
            if getattr(self, name) not in valid:
                raise UserError(f"optimizer.{name}: {unknown(getattr(self, name), valid, name)}")
        averages = ("beta1", "beta2", *(("momentum",) if self.kind == "muon" else ()))
        for name in averages if self.moments != "float32" else ():
            if (value := getattr(self, name)) > SLOWEST:
                raise UserError(
                    f"optimizer.{name}={value:g} is too slow for optimizer.moments={self.moments}, "
                    f"which rounds changes below 1/256 away: give at most {SLOWEST:g}, or float32"
                )

    def warmup_steps(self, steps: int) -> int:
        """Steps of the warm-up in a run of `steps` steps."""
        return steps_of(self.warmup, steps)

    def cooldown_steps(self, steps: int) -> int:
        """Steps of the cooldown in a run of `steps` steps, where the schedule has one."""
        return steps_of(self.cooldown, steps) if self.schedule == "wsd" else 0


def check_span(name: str, span: float) -> None:
    """Raises a UserError for a number of steps that is not whole."""
    if span >= 1 and span != int(span):
        raise UserError(f"{name}={span}: give a share of the steps below 1, or whole steps")


def steps_of(span: float, steps: int) -> int:
    """Steps of a span of a run: below 1 a share, which never is all of them; else so many."""
    return min(round(span * steps), steps - 1) if span < 1 else int(span)


def _cosine(config: OptimizerConfig, left: int, _: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.learning_rate, left, config.final)


def _linear(config: OptimizerConfig, left: int, _: int) -> optax.Schedule:
    peak = config.learning_rate
    return optax.linear_schedule(peak, peak * config.final, left)


def _constant(config: OptimizerConfig, *_: int) -> optax.Schedule:
    return optax.constant_schedule(config.learning_rate)


def _wsd(config: OptimizerConfig, left: int, cooldown: int) -> optax.Schedule:
    return optax.join_schedules(
        [_constant(config), _linear(config, cooldown, 0)], [left - cooldown]
    )


SCHEDULES: Mapping[str, Callable[[OptimizerConfig, int, int], optax.Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}
"""What follows the warm-up, by name: (config, steps after the warm-up, steps of the cooldown)."""


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate of step i (from 0): linear warm-up from 0, then by the schedule.

    Raises:
      UserError: warm-up as long as the run or longer, or no room for the cooldown after it.
    """
    warmup, cooldown = config.warmup_steps(steps), config.cooldown_steps(steps)
    if warmup >= steps:
        raise UserError(
            f"optimizer.warmup={warmup} does not end before train.steps={steps}: "
            f"lower the one or raise the other, or give a share of the steps, below 1"
        )
    if warmup + cooldown > steps:
        raise UserError(
            f"optimizer.warmup={config.warmup:g} and optimizer.cooldown={config.cooldown:g} are "
            f"{warmup + cooldown} steps, more than train.steps={steps}: lower one of them"
        )
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    after = SCHEDULES[config.schedule](config, steps - warmup, cooldown)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, steps: int, table: Table
) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps over the parameters of `table`.

    Raises:
      UserError: `only` names no parameter, or the warm-up is too long.
    """
    if any(map(is_fixed, jax.tree.leaves(table, is_leaf=lambda leaf: isinstance(leaf, Param)))):
        own = _without_fixed(table)
        part = functools.partial(_like, own)
        return of_part(make_optimizer(config, steps, own), part)
    if not config.only:
        return _of_all(config, steps, table)
    part = functools.partial(_part, only=config.only)
    own = part(table)
    if not own:
        raise UserError(
            f"optimizer.only={config.only} names no parameter: they are "
            f"{', '.join(sorted(map(path_name, _paths(table)))[:6])}, ..."
        )
    return of_part(_of_all(config, steps, own), part)


def trained(optimizer: optax.GradientTransformation, tree: Any) -> Any:
    """The part of a tree over all parameters that is of those the optimizer changes."""
    return optimizer.part(tree) if isinstance(optimizer, _Partial) else tree


class _Partial(optax.GradientTransformation):
    """An optimizer of some parameters: it sees a tree in which there are no others."""

    part: Callable[[Any], Any]


def of_part(
    inner: optax.GradientTransformation, part: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """An optimizer of some parameters; all others stay as they are, bit for bit.

    Args:
      inner: that of these.
      part: of a tree over all parameters, what is of these; what is no dict stays.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changes, state = inner.update(part(updates), state, part(params))
        return _with_nothing(changes, updates), state

    made = _Partial(lambda params: inner.init(part(params)), update)
    made.part = part
    if isinstance(inner, _Partial):  # which leaves out some of these
        made.part = lambda tree: inner.part(part(tree))
    return made


def selects(only: str, path: str) -> bool:
    """Whether patterns as `OptimizerConfig.only` has them match the path of a parameter."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in only.split(",") if pattern)


def _part(tree: Any, only: str, name: str = "") -> Any:
    """A tree of dicts with the leaves that a pattern matches; what is no dict stays."""
    if not isinstance(tree, Mapping):
        return tree
    found: dict[str, Any] = {}
    for key, branch in tree.items():
        path = f"{name}/{key}" if name else key
        if isinstance(branch, Mapping):
            if inside := _part(branch, only, path):
                found[key] = inside
        elif selects(only, path):
            found[key] = branch
    return found


def _without_fixed(table: Table) -> dict[str, Any]:
    """The table without what is never trained."""
    found: dict[str, Any] = {}
    for name, entry in table.items():
        if isinstance(entry, Mapping):
            if inside := _without_fixed(entry):
                found[name] = inside
        elif not is_fixed(entry):
            found[name] = entry
    return found


def _like(table: Table, tree: Any) -> Any:
    """The part of a tree of dicts whose names the table has; what is no dict stays."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        name: _like(table[name], branch) if isinstance(branch, Mapping) else branch
        for name, branch in tree.items()
        if name in table
    }


def _with_nothing(changes: Any, whole: Any) -> Any:
    """`changes` in the structure of `whole`. x + (-0) is x for every x; x + 0 is not for -0."""
    if not isinstance(whole, Mapping):
        return jnp.full_like(whole, -0.0) if changes is None else changes
    changes = changes or {}
    return {key: _with_nothing(changes.get(key), branch) for key, branch in whole.items()}


def _paths(table: Table) -> list[Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(table, lambda leaf: isinstance(leaf, Param))
    return [path for path, _ in leaves]


def _of_all(config: OptimizerConfig, steps: int, table: Table) -> optax.GradientTransformation:
    mask = trained_mask(table) if config.decay_all else decay_mask(table)
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, steps))
    betas = config.beta1, config.beta2, config.eps
    if config.kind == "muon":
        matrices = scale_matrices(table, config.matrix_rate)
        muon = _stored_in(config.moments, scale_by_muon(table, config.momentum, *betas))
        chain = optax.chain(clip, muon, decay, matrices, rate)
    else:
        adam = _stored_in(config.moments, optax.scale_by_adam(*betas))
        chain = optax.chain(clip, optax.chain(adam, decay, rate))
    return _with_counted(chain, table)


def _stored_in(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer with Adam's state, whose moments are stored in `dtype` and used in float32."""
    if dtype == "float32":
        return inner

    def cast(state: Any, dtype: str) -> Any:
        mu, nu = jax.tree.map(lambda x: x.astype(dtype), (state.mu, state.nu))
        return state._replace(mu=mu, nu=nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(updates, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def _with_counted(
    optimizer: optax.GradientTransformation, table: Table
) -> optax.GradientTransformation:
    """The optimizer, but for parameters that follow what their layers count."""
    if not any_counted(table):
        return optimizer

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        ours, state = optimizer.update(without_counted(table, updates), state, params)
        return with_counted(table, ours, updates), state

    return optax.GradientTransformation(optimizer.init, update)
