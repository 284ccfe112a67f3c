"""Writes text with a trained run.

  gam sample --run=runs/gam_small --prompt="def " --tokens=200
  gam sample --run=runs/gam_small --temperature=0.8 --top_p=0.95 --seed=1
  gam sample --run=runs/gam_small --prompts=prompts.txt --stop="def " --json
  gam sample --run=runs/tuned --chat

The text of one prompt streams to standard output as it is written; speed and the size of the carry
go to standard error. The same seed gives the same text. A text ends with the run's end-of-text ids,
before a --stop, or after --tokens. --prompts reads many, one a line ("-" is standard input). --chat
answers each line of standard input, until Ctrl-D.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments import chat, cli
from experiments.cli import MAX_SEED
from experiments.config_flags import define_classes_flag, register_classes
from experiments.devices import define_cache_flag, define_device_flags
from experiments.prompts import STANDARD_INPUT, Prompt, read_prompts
from experiments.writer import Asked, TextRun, Timed, Writer, asked, define_writing_flags
from gam_jax import decode
from gam_jax.continuations import Continuation, follow
from sharding import processes
from sharding.errors import UserError, at


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    cli.define_path("run", "runs/gam_small", "Run folder.")
    flags.DEFINE_string("prompt", "def ", "What the text starts with.")
    cli.define_path("prompts", None, 'Prompts, one a line, or lines of JSON; "-": standard input.')
    flags.DEFINE_integer("batch", 32, "Prompts of --prompts that are written side by side.", 1)
    flags.DEFINE_bool("special", False, "Names of special tokens in a prompt are those tokens.")
    flags.DEFINE_bool("chat", False, "Answer lines of standard input by the run's chat template.")
    flags.DEFINE_string("system", "", "With --chat: what the system says first.")
    define_writing_flags()
    flags.DEFINE_integer("seed", 0, "Random seed.", 0, MAX_SEED)
    flags.DEFINE_string(
        "checkpoint", "latest", "latest, latest-good, best (validation loss), or a step."
    )
    flags.DEFINE_integer("streams", 0, "Of parallel streams, the first ones alone; 0 for all.", 0)
    flags.DEFINE_bool("json", False, "Print a line of JSON for each text instead of streaming.")
    define_device_flags()
    define_cache_flag()


def main() -> None:
    """Reads the prompts, then writes a few tokens at a time."""
    args = flags.FLAGS
    register_classes()
    _check_together()
    run = TextRun.open(args.run)
    wanted = asked(run)
    if args.chat:
        template = chat.template_of(run)
        wanted = chat.with_end_of_turn(wanted, run.tokenizer, template)
        writer = _loaded(run)
        with at(writer.where):
            key = jax.random.key(args.seed)
            conversation = chat.Conversation(writer, template, wanted, key)
            chat.converse(conversation, args.system, args.json)
        return
    prompts = read_prompts(args.prompts) if args.prompts else [Prompt(args.prompt, "--prompt")]
    ids = [_encoded(run, prompt) for prompt in prompts]
    writer, key = _loaded(run), jax.random.key(args.seed)  # the first use of any device
    for start in range(0, len(prompts), args.batch):
        own = slice(start, start + args.batch)
        _write(writer, wanted, prompts[own], ids[own], key, start)


def _check_together() -> None:
    args = flags.FLAGS
    if args.chat and (args.prompts or args["prompt"].present or args.special):
        raise UserError("--chat reads what is said from standard input: leave out the prompts")
    if args.system and not args.chat:
        raise UserError("--system is of --chat, which is not given")
    if args.prompts and args["prompt"].present:
        raise UserError("--prompt and --prompts are both given: leave one out")


def _encoded(run: TextRun, prompt: Prompt) -> np.ndarray:
    """The ids of a prompt, that leave room for what is written."""
    args = flags.FLAGS
    with at(prompt.where):
        if args.special and not run.tokenizer.special_tokens:
            raise UserError("the run's tokenizer has no special tokens: leave out --special")
        ids = run.encode(prompt.text, args.special)
        if not len(ids):
            raise UserError("it holds no token: give at least one character")
        try:
            run.model.check_length(len(ids) + args.tokens)
        except ValueError as error:
            raise UserError(str(error)) from error
    return ids


def _loaded(run: TextRun) -> Writer:
    args = flags.FLAGS
    writer = run.load(args.checkpoint, args.streams)
    if jax.process_count() > 1 and (args.chat or args.prompts == STANDARD_INPUT):
        raise UserError("standard input is one process's: give --prompts a file that all can read")
    return writer


def _write(
    writer: Writer,
    wanted: Asked,
    prompts: Sequence[Prompt],
    ids: Sequence[np.ndarray],
    key: jax.Array,
    start: int,
) -> None:
    """Writes what follows some prompts and prints it, that of one prompt as it comes."""
    args = flags.FLAGS
    # The last ones are filled up to a whole batch, so that nothing more is compiled.
    more = (args.batch if start else len(ids)) - len(ids)
    rows = [wanted.row(writer.run.tokenizer) for _ in prompts]
    numbers = np.arange(start, start + len(ids) + more)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    streams = processes.is_first() and not args.json and not args.prompts
    with at(writer.where):
        pieces = Timed(
            decode.generate(
                writer.model,
                writer.params,
                [*ids, *[ids[-1]] * more],
                wanted.tokens,
                keys,
                stop=wanted.ends,
                layout=writer.layout,
                **wanted.drawn,
            )
        )
        if streams:
            print(prompts[0].text, end="", flush=True)
        try:
            for _, new in follow(pieces, rows):
                if streams:
                    print(new, end="", flush=True)
        finally:
            if streams:
                print()
    if processes.is_first():
        _tell(writer, prompts, rows, pieces.speed, start)


def _tell(
    writer: Writer,
    prompts: Sequence[Prompt],
    rows: Sequence[Continuation],
    speed: float,
    start: int,
) -> None:
    """Prints the texts, where they did not stream, and the facts."""
    args = flags.FLAGS
    carry = decode.carry_bytes(writer.model.carry(1))
    facts = {"tokens_per_second": round(speed, 1), "carry_bytes": carry, "step": writer.step}
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True), start + 1):
        if args.json:
            ended = {"tokens": row.tokens, "ended": row.ended}
            print(json.dumps({"text": prompt.text + row.text, **ended, **facts}), flush=True)
        elif args.prompts:
            print(f"--- prompt {number}\n{prompt.text}{row.text}", flush=True)
    if not args.json:
        print(f"{speed:,.0f} tokens/s, carry of {carry:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, define_flags)
