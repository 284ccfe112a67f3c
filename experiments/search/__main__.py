"""Searches for a better configuration: many are asked for, few are trained to the end.

  gam search --space=hybrid --strategy=evolve --trials=40 --out=runs/search
  gam search --space=mine.py --strategy=optuna:TPESampler --trials=100
  gam search extract --out=runs/search    writes best.py, for gam train --config

A space is a base run and values for some of its fields; a file of one's own has get_space(). A
candidate must build, fit the mesh, cost about what the base does and be causal before it is
trained; then the better half of each round goes on. One whose loss is too far below the base's is
looked at again. Results are lines of results.jsonl; the same command goes on. See docs/search.md.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import flags

from experiments import cli
from experiments.config_flags import config, define_config_flag, experiment_from_flags
from experiments.devices import define_cache_flag, define_device_flags, layout_from_flags
from experiments.search.results import Result, SearchFolder, best_of
from experiments.search.rules import Rules, check_paths, with_tokens_of
from experiments.search.shown import config_file, draw_results, in_words, print_results
from experiments.search.spaces import SPACES, space_of
from experiments.search.trials import Trials, about
from gam_jax.config import from_dict
from gam_jax.search import Space, search, strategy_of
from gam_jax.training.experiment import Experiment
from sharding import processes
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.whole_file import check_place, write_named

WORDS = ("run", "extract")
LIMITS = {"parameters": "Parameters", "flops": "Operations of a token", "held": "Bytes held"}
MOST = 10
"""Candidates that are printed."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_string(
        "space", "hybrid", f"What is searched: {', '.join(SPACES)}, or a file, as mine.py."
    )
    flags.DEFINE_string(
        "strategy",
        "evolve",
        "all, random, anneal, evolve, table, exact or optuna:SAMPLER; settings follow a colon: "
        "evolve:pool=8,parents=2.",
    )
    flags.DEFINE_integer("trials", 40, "Candidates at most, refused ones too.", 1, 1_000_000)
    own = Rules()
    flags.DEFINE_integer("round", own.round, "Candidates that compete with each other.", 1)
    flags.DEFINE_integer(
        "halvings",
        own.halvings,
        "How often the worse half of a round ends; each time after twice as many steps.",
        0,
        20,
    )
    flags.DEFINE_float(
        "doubt", own.doubt, "Share below the base's loss that is looked at again.", 0.0, 1.0
    )
    for name, what in LIMITS.items():
        told = f"{what}: at most so many times the base's; 0 for any."
        flags.DEFINE_float(name, getattr(own, name), told, 0.0)
    flags.DEFINE_integer("seed", 0, "Of the strategy; runs have train.seed.", 0, cli.MAX_SEED)
    cli.define_path("out", "runs/search", "Folder of the search.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()
    define_cache_flag()


def main(word: str) -> None:
    """Searches, or writes the best that was found."""
    folder = SearchFolder(pathlib.Path(flags.FLAGS.out))
    if word == "extract":
        _extract(folder)
    else:
        _search(folder)


def _search(folder: SearchFolder) -> None:
    args = flags.FLAGS
    rules = Rules(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Rules)})
    strategy, space = strategy_of(args.strategy), _space()
    check_paths(choice.path for choice in space.choices)
    rules.rungs(space.base.train.steps)
    layout = layout_from_flags(space.base.parallel, one_device=True)
    if processes.count() > 1:
        raise UserError("gam search runs as one process: give it one host's devices by --mesh")
    folder.begin({"from": args.space} | about(space, rules, args.strategy, args.trials, layout))
    trials = Trials(space, rules, folder, layout, args.trials)
    search(space, strategy, trials.measure, args.trials, rules.seed, rules.round)
    draw_results(trials.results, folder.picture)
    _tell(space, trials.results, trials, folder)


def _space() -> Space:
    """That of the flags, with its base as they change it."""
    space = space_of(flags.FLAGS.space)
    return dataclasses.replace(space, base=experiment_from_flags(config(space.base).to_dict()))


def _tell(space: Space, results: list[Result], trials: Trials, folder: SearchFolder) -> None:
    best = best_of(results)
    if flags.FLAGS.json:
        found = {
            "best": dataclasses.asdict(best),
            "base": {str(step): trials.base_loss(step) for step in trials.rungs},
            "trials": len(results),
            "refused": sum(bool(each.refused) for each in results),
        }
        print(json.dumps(found))
        return
    print_results(space, results, MOST)
    print(f"base: loss {trials.base_loss(trials.rungs[-1]):.4f} after {trials.rungs[-1]} steps")
    print(f"best: trial {best.trial + 1}, {in_words(space, best.point)}")
    print(f"lines in {folder.results}, picture in {folder.picture}")
    print(f"next: gam search extract --out={folder.path}")


def _extract(folder: SearchFolder) -> None:
    """Writes the best candidate's config file."""
    if not folder.about.is_file():
        raise UserError(f"{folder.path} holds no search: give --out, the folder of one")
    about = read_json(folder.about)
    check_place(folder.best, "--out")
    own = str(about["from"])
    space_of(own)  # registers classes of its own
    space = Space.from_json(about["space"], from_dict(Experiment, about["base"]))
    best = best_of(folder.read())
    experiment = with_tokens_of(space.config(tuple(best.point)), space.base)
    told = (
        f"Trial {best.trial + 1} of a search: {in_words(space, best.point)}; its loss was "
        f"{best.told:.4f} of the base's."
    )
    classes = str(pathlib.Path(own).resolve()) if own not in SPACES else ""
    write_named(folder.best, config_file(config(experiment).to_dict(), told, classes))
    if flags.FLAGS.json:
        print(json.dumps({"config": str(folder.best), "trial": best.trial}))
        return
    print(f"{told}\nnext: gam train --config={folder.best} --run=runs/best")


if __name__ == "__main__":
    cli.run(main, define_flags, choices=WORDS, otherwise=WORDS[0])
