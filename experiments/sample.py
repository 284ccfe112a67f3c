"""Writes text with a trained run.

  gam sample --run=runs/gam_small --prompt="def " --tokens=200
  gam sample --run=runs/gam_small --temperature=0.8 --top_p=0.95 --seed=1

The text streams to standard output as it is written; speed and the size of the carry go to
standard error. The same seed gives the same text.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags

from experiments import cli
from experiments.cli import MAX_SEED
from experiments.config_flags import define_classes_flag, register_classes
from experiments.devices import define_device_flags, layout_from_flags, say_where
from experiments.streams import check_tokenizer, language_model, of_streams, params_of_streams
from gam_jax import decode
from gam_jax.adapters import merged
from gam_jax.data.text import TOKENIZER
from gam_jax.data.tokenizer import Stream, tokenizer_from_text
from gam_jax.training.folder import RunFolder
from sharding import processes
from sharding.errors import UserError, at


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    cli.define_path("run", "runs/gam_small", "Run folder.")
    flags.DEFINE_string("prompt", "def ", "What the text starts with.")
    flags.DEFINE_integer("tokens", 200, "How many tokens to write.", 1)
    flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token each time.", 0)
    flags.DEFINE_float("top_p", 0.95, "Draw from the likeliest tokens of this probability.", 0, 1)
    flags.DEFINE_integer("seed", 0, "Random seed.", 0, MAX_SEED)
    flags.DEFINE_string(
        "checkpoint", "latest", "latest, latest-good, best (validation loss), or a step."
    )
    flags.DEFINE_integer("streams", 0, "Of parallel streams, the first ones alone; 0 for all.", 0)
    flags.DEFINE_bool("json", False, "Print one JSON object at the end instead of streaming.")
    define_device_flags()


def main() -> None:
    """Reads the prompt, then writes a few tokens at a time."""
    args = flags.FLAGS
    register_classes()
    folder = RunFolder(pathlib.Path(args.run))
    experiment = folder.experiment()
    language, kept = language_model(experiment), folder.kept(experiment.data)
    if TOKENIZER not in kept:
        raise UserError(f"{folder.path} was trained on {experiment.data.name}, which is no text")
    tokenizer = tokenizer_from_text(kept[TOKENIZER], str(folder.path / TOKENIZER))
    prompt = np.asarray(tokenizer.encode(args.prompt), np.int32)
    if not len(prompt):
        raise UserError("--prompt holds no token: give at least one character")
    try:
        language.check_length(len(prompt) + args.tokens)
    except ValueError as error:
        raise UserError(str(error)) from error
    layout = layout_from_flags(experiment.parallel).whole
    model = language_model(of_streams(experiment, args.streams))
    model.check_mesh(layout)
    step, params = params_of_streams(folder, experiment, layout, args.checkpoint, args.streams)
    check_tokenizer(folder, step, tokenizer)
    model, params = merged(model, params, layout)  # adapters cost nothing from here on
    say_where(layout.mesh.size)

    pieces = decode.generate(
        model,
        params,
        prompt[None],
        args.tokens,
        jax.random.key(args.seed),
        temperature=args.temperature,
        top_p=args.top_p,
        layout=layout,
    )
    shown = processes.is_first() and not args.json
    with at(f"{folder.path} at checkpoint {step}"):
        text, speed = _write(pieces, args.prompt, tokenizer.stream(), shown)
    carry = decode.carry_bytes(model.carry(1))
    if args.json and processes.is_first():
        facts = {"tokens_per_second": round(speed, 1), "carry_bytes": carry, "step": step}
        print(json.dumps({"text": text, **facts}))
    elif shown:
        print(f"{speed:,.0f} tokens/s, carry of {carry:,} bytes", file=sys.stderr)


def _write(
    pieces: Iterator[np.ndarray], prompt: str, stream: Stream, shown: bool
) -> tuple[str, float]:
    """Prints the text as it comes; all of it, and tokens/s after the first piece (it compiles)."""
    text: list[str] = []

    def put(new: str) -> None:
        text.append(new)
        if shown:
            print(new, end="", flush=True)

    put(prompt)
    start, first, counted, tokens = time.perf_counter(), 0.0, 0, 0
    try:
        for piece in pieces:
            if first:
                counted += piece.shape[1]
            else:
                first = time.perf_counter()
            tokens += piece.shape[1]
            put("".join(stream.push(int(token)) for token in piece[0]))
        end = time.perf_counter()
        put(stream.flush())
    finally:
        if shown:
            print()
    return "".join(text), counted / (end - first) if counted else tokens / (end - start)


if __name__ == "__main__":
    cli.run(main, define_flags)
