"""Writes text with a trained run.

  python -m experiments.sample --run=runs/gam_small --prompt="def " --tokens=200
  python -m experiments.sample --run=runs/gam_small --temperature=0.8 --top_p=0.95 --seed=1

The text streams to standard output as it is written; speed and the size of the carry go to
standard error. The same seed gives the same text.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from experiments.run import RunFolder, load_params
from gam_jax import decode
from sharding.errors import UserError
from sharding.mesh import make_mesh


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("run", "runs/gam_small", "Run folder.")
    flags.DEFINE_string("prompt", "def ", "What the text starts with.")
    flags.DEFINE_integer("tokens", 200, "How many tokens to write.", 1)
    flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token each time.", 0)
    flags.DEFINE_float("top_p", 0.95, "Draw from the likeliest tokens of this probability.", 0, 1)
    flags.DEFINE_alias("top-p", "top_p")
    flags.DEFINE_integer("seed", 0, "Random seed.")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (validation loss), or a step.")
    flags.DEFINE_bool("json", False, "Print one JSON object at the end instead of streaming.")


def main() -> None:
    """Reads the prompt, then writes a few tokens at a time."""
    args = flags.FLAGS
    folder = RunFolder(pathlib.Path(args.run))
    experiment, tokenizer = folder.experiment(), folder.load_tokenizer()
    prompt = np.asarray(tokenizer.encode(args.prompt), np.int32)
    if not len(prompt):
        raise UserError("--prompt holds no token: give at least one character")
    try:
        decode.check_length(experiment.model, len(prompt) + args.tokens)
    except ValueError as error:
        raise UserError(str(error)) from error
    step, params = load_params(folder, experiment, make_mesh(), args.checkpoint)

    text, stream = [args.prompt], tokenizer.stream()
    if not args.json:
        print(args.prompt, end="", flush=True)
    key, start = jax.random.key(args.seed), time.perf_counter()
    first = 0.0
    settings = {"temperature": args.temperature, "top_p": args.top_p}
    pieces = decode.generate(
        experiment.model, params, jnp.asarray(prompt[None]), args.tokens, key, **settings
    )
    counted = 0
    for piece in pieces:
        if not first:
            first = time.perf_counter()  # what compiles, compiles before the first piece
        else:
            counted += piece.shape[1]
        new = "".join(stream.push(int(token)) for token in piece[0])
        text.append(new)
        if not args.json:
            print(new, end="", flush=True)
    text.append(stream.flush())
    if not args.json:
        print(text[-1])
    end = time.perf_counter()
    speed = counted / (end - first) if counted else args.tokens / (end - start)
    carry = decode.carry_bytes(experiment.model.carry(1))
    if args.json:
        facts = {"tokens_per_second": round(speed, 1), "carry_bytes": carry, "step": step}
        print(json.dumps({"text": "".join(text), **facts}))
    else:
        print(f"{speed:,.0f} tokens/s, carry of {carry:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, define_flags)
