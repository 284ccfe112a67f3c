"""The flags of `study run`, and what the command does; each study's own command calls it too."""

from __future__ import annotations

import json
import pathlib
import shlex
import sys
from collections.abc import Callable

from absl import flags

from experiments import cli
from experiments.devices import define_cache_flag, define_device_flags, layout_from_flags
from experiments.study.declare import SHORT, Setting, Study
from experiments.study.figure import draw
from experiments.study.found import Found, merge
from experiments.study.run import Request, chosen_arms, run_study
from experiments.study.sheets import sheet, write_markdown
from gam_jax.training.progress import Progress
from sharding import processes
from sharding.paths import made_folder
from sharding.whole_file import check_place, write_named


def define_study_flags(
    arms: str = "arms", out: str = "", scale: str = "", data: str = "", keeps: bool = False
) -> None:
    """The command line.

    Args:
      arms: what the flag that names arms is called.
      out: default folder; runs/study/NAME if empty.
      scale: default scale; the study's second one if empty.
      data: default name of the data; the study's own if empty.
      keeps: whether what is found goes into the committed file if nothing else is said.
    """
    flags.DEFINE_string("scale", scale, "How large and how long; the study's own if not given.")
    flags.DEFINE_list(arms, [], "Some of the study's arms; its own choice if not given.")
    flags.DEFINE_list("seeds", ["0"], "Of parameters and data order; a run for each.")
    flags.DEFINE_string(
        "data", data, "python_stdlib, text:PATH, ...; the study's own if not given."
    )
    cli.define_path("data_dir", "", "Where data sets are kept; as data.dir of a config.")
    flags.DEFINE_integer("steps", 0, "Updates of each run; the study's own if 0.", 0)
    flags.DEFINE_float("learning_rate", 0.0, "The highest rate; the study's own if 0.", 0.0)
    flags.DEFINE_integer("repeats", 5, "Turns of what is timed; 0: not timed.", 0)
    cli.define_path("out", out, "Folder of runs, table and picture.")
    flags.DEFINE_bool(
        "keep", keeps, "Write what is found into experiments/papers/found too, for docs/claims.md."
    )
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()
    define_cache_flag()


def run_command(
    study: Study,
    group: str = "",
    arms_flag: str = "arms",
    scales: Callable[[str], str] = lambda name: name,
) -> Found:
    """Runs a study as the flags ask, writes its files, and prints its table.

    Args:
      study: what is run.
      group: of its arms, where none are named.
      arms_flag: what the flag that names arms is called.
      scales: what a name of --scale stands for.

    Returns:
      What was found.
    """
    args = flags.FLAGS
    scale = scales(args.scale) or study.scales[min(1, len(study.scales) - 1)]
    out = pathlib.Path(args.out or f"runs/study/{study.name}")
    layout = layout_from_flags(one_device=True)
    request = Request(
        arms=chosen_arms(study, getattr(args, arms_flag), group),
        seeds=tuple(cli.seeds_of(args.seeds)),
        setting=Setting(scale, args.data, args.data_dir, args.steps, args.learning_rate),
        out=out,
        repeats=args.repeats,
        command=_typed(),
    )
    name = group or study.name
    with made_folder(out, "--out"):
        for ending in ("json", "md", "png"):
            check_place(out / f"{name}.{ending}")
        found = run_study(study, request, layout, Progress(processes.is_first()))
        if not processes.is_first():
            return found
        write_named(out / f"{name}.json", json.dumps(found.to_json(), indent=2) + "\n")
        write_markdown(study, found, out / f"{name}.md")
        draw(study, found, out / f"{name}.png")
    if args.keep and scale != SHORT:
        print(f"kept in {merge(study.name, found)}", file=sys.stderr)
    if args.json:
        print(json.dumps(found.to_json()))
        return found
    sheet(study, found).print()
    print(f"figures in {out / name}.json, table in {out / name}.md, picture in {out / name}.png")
    return found


def _typed() -> str:
    """The command as it was typed, without folders of this machine's own."""
    own = ("--out=", "--data_dir=", "--data-dir=", "--keep", "--json")
    words = [word for word in sys.argv[1:] if not word.startswith(own)]
    program = pathlib.Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    paper = program.parent.parent.name == "papers" and program.stem == "__main__"
    first = ["python", "-m", f"experiments.papers.{name}"] if paper else ["gam", name]
    return shlex.join([*first, *words])
