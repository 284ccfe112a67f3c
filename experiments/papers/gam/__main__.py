"""The tables of the GAM paper (arXiv 2509.00605), ours beside the published.

  python -m experiments.papers.gam table1        GAM, Transformer, Mamba: loss and time
  python -m experiments.papers.gam table2        time and memory of a block by length
  python -m experiments.papers.gam table3        the ablations
  python -m experiments.papers.gam perplexity    why the perplexities are so high; a better recipe
  python -m experiments.papers.gam table1 --data=text:wikitext/ --seeds=0,1,2
  python -m experiments.papers.gam table1 --scale=paper     the published sizes, for an accelerator

The same code at two sizes: cpu takes minutes and reads what is on the machine; paper downloads
WikiText-2 and TinyStories. Each trial is a run folder below --out, shared by the tables: what is
trained is only read again, and a command that was stopped goes on. Prints the published figures
beside ours, and which relations hold.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from absl import flags

from experiments import cli
from experiments.devices import define_device_flags, layout_from_flags
from experiments.papers.gam import table2, tables
from experiments.papers.gam.arms import ARMS, TABLES
from experiments.papers.gam.scale import SCALES, Scale
from experiments.papers.gam.sheet import Sheet
from experiments.papers.gam.trials import open_text, run_trials
from gam_jax.config import unknown
from gam_jax.training.folder import write_atomically
from gam_jax.training.progress import Progress
from sharding.errors import UserError

SHEETS = {"table1": tables.table1, "table3": tables.table3, "perplexity": tables.perplexity}


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_enum("scale", "cpu", list(SCALES), "cpu: minutes; paper: the published sizes.")
    flags.DEFINE_list("data", None, "text:PATH, wikitext2, tinystories, ...; else the scale's own.")
    flags.DEFINE_string("data_dir", "", "Where data sets are kept; as data.dir of a config.")
    flags.DEFINE_list("seeds", ["0"], "Of parameters and data order; a run for each.")
    flags.DEFINE_list("arms", None, f"Some of {','.join(ARMS)}; else all of the table.")
    flags.DEFINE_integer("repeats", 20, "Timed steps of each, in tables 1 and 2; 0: not timed.", 0)
    flags.DEFINE_list("lengths", None, "table2: tokens; else the scale's own.")
    flags.DEFINE_string("out", "runs/papers/gam", "Folder of runs and tables.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()


def main(which: str) -> None:
    """Checks everything, then trains or times, and prints."""
    args = flags.FLAGS
    scale = SCALES[args.scale]
    folder = pathlib.Path(args.out) / args.scale
    if which == "table2":
        found, sheets = _table2(scale)
    else:
        found, sheets = _trained(which, scale, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{which}.json", json.dumps(found, indent=2) + "\n")
    write_atomically(folder / f"{which}.md", "\n".join(sheet.markdown() for sheet in sheets))
    if args.json:
        print(json.dumps(found))
        return
    for sheet in sheets:
        sheet.print()
    print(f"figures in {folder / which}.json, tables in {folder / which}.md")


def _table2(scale: Scale) -> tuple[dict[str, Any], list[Sheet]]:
    args = flags.FLAGS
    if args.lengths:
        if not all(number.isdigit() and int(number) for number in args.lengths):
            raise UserError(f"--lengths={','.join(args.lengths)}: give tokens, as 256,1024")
        scale = dataclasses.replace(scale, lengths=tuple(map(int, args.lengths)))
    rows = table2.run(scale, max(1, args.repeats))
    return {"rows": [table2.to_json(row) for row in rows]}, [table2.sheet(rows, scale)]


def _trained(which: str, scale: Scale, folder: pathlib.Path) -> tuple[dict[str, Any], list[Sheet]]:
    args = flags.FLAGS
    names = args.arms or TABLES[which]
    for name in names:
        if name not in ARMS:
            raise UserError(f"--arms: {unknown(name, ARMS, 'arm')}")
    seeds = cli.seeds_of(args.seeds)
    layout = layout_from_flags(one_device=True)
    progress = Progress(0)
    texts = []
    own = scale.data if which == "table1" else scale.data[:1]  # the others are of WikiText-2 alone
    for data in args.data or own:
        progress.say(f"reading {data}")
        texts.append(open_text(scale, data, args.data_dir))
    timed = args.repeats if which == "table1" else 0
    trials = [run_trials(scale, text, names, seeds, folder, layout, timed) for text in texts]
    return {"trials": [each.to_json() for each in trials]}, list(map(SHEETS[which], trials))


if __name__ == "__main__":
    cli.run(main, define_flags, choices=(*SHEETS, "table2"))
