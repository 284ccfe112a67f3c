"""The flags --adapt, --rank, --alpha and --rooted: low-rank adapters, which alone are trained."""

from __future__ import annotations

from absl import flags

from gam_jax.training.adapt import with_adapters
from gam_jax.training.experiment import Experiment
from sharding.errors import UserError

LARGEST_RANK = 2**31 - 1


def define_adapter_flags() -> None:
    """The command line."""
    flags.DEFINE_string(
        "adapt",
        "",
        "Train low-rank adapters alone, beside the matrices of these names in each block, as "
        "'mixer/*,ffn/*'; see docs/adapters.md.",
    )
    flags.DEFINE_integer("rank", 8, "With --adapt: the rank of what is added.", 1, LARGEST_RANK)
    flags.DEFINE_float("alpha", 16.0, "With --adapt: its scale, times the rank.", 0)
    flags.DEFINE_bool("rooted", False, "With --adapt: its scale is alpha / sqrt(rank) (rsLoRA).")


def adapt_from_flags(experiment: Experiment) -> Experiment:
    """The experiment with the adapters that the command line asks for; as it is for none.

    Raises:
      UserError: settings of adapters without --adapt; what `with_adapters` refuses.
    """
    args = flags.FLAGS
    if args.adapt:
        return with_adapters(experiment, args.adapt, args.rank, args.alpha, args.rooted)
    for name in ("rank", "alpha", "rooted"):
        if args[name].present:
            raise UserError(f"--{name} is for adapters: say which matrices, as --adapt='mixer/*'")
    return experiment
