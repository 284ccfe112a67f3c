"""Parallel scaling streams: what they bring, by law and by stage, and what they cost.

  python -m experiments.parscale law                      small models of 1, 2, 4, 8 streams
  python -m experiments.parscale law --mixer=transformer --seeds=0,1,2 --data=text:books/
  python -m experiments.parscale law --published          the paper's tables, fitted anew
  python -m experiments.parscale stages --seeds=0,1,2     trained models go on with more streams
  python -m experiments.parscale cost                     memory and time, by model and measured

Each run of law and stages has a folder below --out, which evaluate and sample open; a finished one
is only read, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.contenders import CONTENDERS, chosen
from experiments.devices import define_device_flags, layout_from_flags
from experiments.parscale import cost, law, measure, runs, stages
from experiments.tables import print_table
from gam_jax.data import TextDataset, load
from gam_jax.training.folder import write_atomically
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from sharding.layout import Layout


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_bool("published", False, "law: fit the tables that the paper published.")
    flags.DEFINE_string("mixer", "gam", f"One of {','.join(CONTENDERS)}.")
    flags.DEFINE_string("data", "python_stdlib", "python_stdlib, text:PATH, tfds:NAME, ...")
    flags.DEFINE_string("data_dir", "", "Where data sets are kept; as data.dir of a config.")
    flags.DEFINE_list("sizes", ["32", "48", "64"], "law: widths; stages: the first of them.")
    flags.DEFINE_list("streams", ["1", "2", "4", "8"], "Numbers of parallel streams.")
    flags.DEFINE_list("seeds", ["0", "1"], "Of parameters and data order; a run for each.")
    flags.DEFINE_integer("steps", 500, "Updates of a run.", 1)
    flags.DEFINE_integer("second", 250, "stages: updates of the second stage.", 1)
    flags.DEFINE_multi_enum("stage", list(stages.RATES), list(stages.RATES), "stages: what trains.")
    flags.DEFINE_integer("repeats", 3, "cost: timed runs of each.", 1)
    flags.DEFINE_string("out", "runs/parscale", "Folder of the runs, the table and the figure.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()


def main(which: str) -> None:
    """One of the three."""
    if which == "law" and flags.FLAGS.published:
        found = law.published_fits()
        if not _printed(found):
            for corpus, rows in found.items():
                law.print_fits(corpus, rows["fits"], rows["paper"])
    else:
        {"law": _law, "stages": _stages, "cost": _cost}[which]()


def _law() -> None:
    args = flags.FLAGS
    widths, streams, seeds = _numbers("sizes"), _numbers("streams"), cli.seeds_of(args.seeds)
    setting, data, layout = _ready()
    trials = runs.grid(setting, widths, streams, seeds, data, layout)
    found = {"mixer": args.mixer, "steps": args.steps, **law.of_runs(trials, setting.out)}
    if _printed(found):
        return
    _print_rows(found["rows"], ("width", "streams"))
    if found["fits"]:
        law.print_fits("laws of these runs", found["fits"])
    print(f"figure in {setting.out / 'law.png'}")


def _stages() -> None:
    args = flags.FLAGS
    width, streams, seeds = _numbers("sizes")[0], _numbers("streams"), cli.seeds_of(args.seeds)
    setting, data, layout = _ready()
    second = stages.Second(args.second, tuple(args.stage))
    trials = stages.stages(setting, width, streams, seeds, second, data, layout)
    rows = runs.summary(trials, ("stage", "streams"))
    found = {"mixer": args.mixer, "steps": args.steps, "second": args.second, "rows": rows}
    write_atomically(setting.out / "stages.json", json.dumps(found, indent=2) + "\n")
    if not _printed(found):
        _print_rows(rows, ("stage", "streams"))


def _cost() -> None:
    found = {
        "model": [row for batch in (1, 8) for row in cost.table(batch)],
        "measured": measure.table(flags.FLAGS.repeats),
    }
    if _printed(found):
        return
    for name, title in (
        ("model", "1.6 B parameters on an A100, by the paper's model"),
        ("measured", "a small transformer on this machine, measured"),
    ):
        table = TextTable(*(key.replace("_", " ") for key in found[name][0]), title=title)
        for row in found[name]:
            cells = (f"{x:,.4g}" if isinstance(x, float) else f"{x:,}" for x in row.values())
            table.add_row(*cells)
        print_table(table)


def _ready() -> tuple[runs.Setting, TextDataset, Layout]:
    args = flags.FLAGS
    mixers = list(chosen(args.mixer).items())
    if len(mixers) != 1:
        raise UserError(f"--mixer={args.mixer}: give one of {', '.join(CONTENDERS)}")
    ((name, contender),) = mixers
    out = pathlib.Path(args.out) / name
    setting = runs.Setting(contender, args.data, args.data_dir, args.steps, out)
    layout = layout_from_flags(one_device=True)
    Progress(0).say(f"reading {args.data}")
    return setting, load(setting.experiment(32, 1, 0).data), layout


def _numbers(flag: str) -> list[int]:
    try:
        found = sorted({int(value) for value in getattr(flags.FLAGS, flag)})
    except ValueError as error:
        raise UserError(f"--{flag}: {error}: give whole numbers, as 1,2") from error
    if not found or found[0] < 1:
        raise UserError(f"--{flag}: give at least one, none below 1, as 1,2")
    return found


def _print_rows(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> None:
    table = TextTable(*by, "N", "loss", "spread", "better than one stream by")
    for row in rows:
        gain = "-" if row["gain"] is None else f"{row['gain']:+.4f} ± {row['gain_spread']:.4f}"
        numbers = f"{row['counted']:,}", f"{row['loss']:.4f}", f"{row['spread']:.4f}"
        table.add_row(*(str(row[name]) for name in by), *numbers, gain)
    print_table(table)


def _printed(found: Any) -> bool:
    if flags.FLAGS.json:
        print(json.dumps(found))
    return flags.FLAGS.json


if __name__ == "__main__":
    cli.run(main, define_flags, choices=("law", "stages", "cost"))
