"""Multi-query associative recall: who remembers what was written, by mixer and number of pairs.

  python -m experiments.recall
  python -m experiments.recall --scale=short --mixers=gam,written_gam
  python -m experiments.recall --scale=long --mixers=wide_written_gam

Every mixer is trained from the same start on the same sequences, at equal width, in the same
block and with the same optimizer. Prints the share of questions answered rightly, and draws it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from absl import flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.contenders import CONTENDERS, EVERY, chosen
from experiments.recall.figure import draw_recall
from experiments.recall.trial import SCALES, Scale, Trial, shown
from experiments.tables import print_table
from gam_jax.training.folder import write_atomically
from gam_jax.training.progress import Progress
from sharding.errors import UserError


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_enum("scale", "default", list(SCALES), "How large and how long.")
    flags.DEFINE_string(
        "mixers", "", f"Some of {','.join(EVERY)}; if not given, {','.join(CONTENDERS)}."
    )
    flags.DEFINE_integer("seed", 0, "Of parameters and data.", 0)
    flags.DEFINE_integer("steps", 0, "At most that many updates; the scale's own if 0.", 0)
    flags.DEFINE_float("learning_rate", 0.0, "The highest rate; the scale's own if 0.", 0.0)
    flags.DEFINE_string("out", "runs/recall", "Folder for the figure and the figures.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    """Trains every mixer, and prints its row as soon as it is done."""
    args = flags.FLAGS
    scale, mixers = _scale(), chosen(args.mixers)
    out = pathlib.Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: cannot make the folder: {error}") from error
    progress = Progress(scale.rows * scale.tokens)
    progress.say(
        f"{scale.tokens} tokens of {scale.vocab}, width {scale.width}, {scale.depth} layers, at "
        f"most {scale.steps:,} steps of {scale.rows} sequences"
    )
    rows: list[dict[str, Any]] = []
    for name, contender in mixers.items():
        found = Trial(contender, scale, args.seed).run(progress)
        rows.append({"mixer": name, "title": contender.title, **dataclasses.asdict(found)})
        progress.say(f"{contender.title}: {shown(found.accuracy)} after {found.steps:,} steps")
    result = {"scale": args.scale, **dataclasses.asdict(scale), "seed": args.seed, "rows": rows}
    write_atomically(out / "recall.json", json.dumps(result, indent=2) + "\n")
    draw_recall(result, out / "recall.png")
    if args.json:
        print(json.dumps(result))
    else:
        _print(result)
        print(f"figure in {out / 'recall.png'}")


def _scale() -> Scale:
    args = flags.FLAGS
    changes = {name: getattr(args, name) for name in ("steps", "learning_rate")}
    return dataclasses.replace(SCALES[args.scale], **{k: v for k, v in changes.items() if v})


def _print(result: dict[str, Any]) -> None:
    pairs = result["pairs"]
    table = TextTable("mixer", *(f"{n} pairs" for n in pairs), "steps", "parameters", "carry bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result["rows"]:
        shares = [f"{row['accuracy'][n]:.1%}" for n in pairs]
        counts = [f"{row[name]:,}" for name in ("steps", "parameters", "carry_bytes")]
        table.add_row(row["title"], *shares, *counts)
    table.add_row("chance", *(f"{1 / n:.1%}" for n in pairs), "", "", "", style="dim")
    print_table(table)


if __name__ == "__main__":
    cli.run(main, define_flags)
