"""Writes the plain model that a run of mixed layers has chosen: in each place its likeliest option.

  gam extract --run=runs/a --out=runs/b
  gam train --run=runs/b --resume

The new run stands at the step of the old one, with the optimizer's averages of what is kept, on the
same data; it opens on any mesh. Its logits are those that the old one gives without a key, where
one option is drawn.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from experiments import cli, remake
from gam_jax.bilevel import Bilevel
from gam_jax.extract import extracted_state, extraction
from gam_jax.training.experiment import run_optimizer
from sharding.errors import UserError


def define_flags() -> None:
    """The command line."""
    remake.define_flags("Run folder of a model with mixed layers")


def main() -> None:
    """Reads one run and writes the other."""
    args = flags.FLAGS
    source, target = remake.folders(args.run, args.out)
    old = source.experiment()
    model = remake.language_model(old, "are extracted")
    if old.train.local.on or old.optimizer.only:
        raise UserError(f"{source.path} trains with workers or a part alone: take --init instead")
    target.check_new()
    read = remake.restored(source, old, args.checkpoint)
    found = extraction(model, read.state.params)
    train = dataclasses.replace(old.train, bilevel=Bilevel())
    new = dataclasses.replace(old, model=found.model, train=train)
    optimizer = run_optimizer(new)
    state = remake.remade(
        read.state, new, found.pick, lambda old: extracted_state(found, old, optimizer)
    )
    remake.write_run(source, target, new, read, state)
    sizes = remake.sizes(old, new)
    if args.json:
        facts = {"run": str(target.path), "step": read.step, "parameters": sizes}
        print(json.dumps({**facts, "options": found.options}))
        return
    for name, options in found.options.items():
        print(f"{name}: {', '.join(map(str, options))}")
    print(remake.size_line(sizes, read.step, target))
    print(f"next: gam train --run={target.path} --resume")


if __name__ == "__main__":
    cli.run(main, define_flags)
