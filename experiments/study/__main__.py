"""Papers as data: what each claims, and what is seen of it here.

  gam study list                      every study, its arms and scales
  gam study run compare --seeds=0,1,2
  gam study run mofme --repeats=9 --keep
  gam study claims                    writes docs/claims.md, trains nothing

Each arm and seed is a run folder below --out: finished ones are only read, and a command that was
stopped goes on. Prints the published figures beside ours, and a verdict on each claim.
"""

from __future__ import annotations

import pathlib

from absl import flags

from experiments import cli
from experiments.papers import STUDIES
from experiments.study.command import define_study_flags, run_command
from experiments.study.found import read
from experiments.study.sheets import page
from gam_jax.config import unknown
from sharding.errors import UserError
from sharding.whole_file import check_place, write_named

PAGE = pathlib.Path("docs/claims.md")
COMMANDS = ("list", "run", "claims")


def define_flags() -> None:
    """The command line."""
    define_study_flags()
    flags.DEFINE_string("group", "", "run: a named subset of the arms, such as table1.")
    cli.define_path("page", str(PAGE), "claims: the file that is written.")


def main(which: str, name: str = "") -> None:
    """One of the three."""
    if which == "list":
        for study in STUDIES.values():
            print(f"{study.name:10} {study.title}")
            print(f"{'':10} scales {', '.join(study.scales)}; arms {', '.join(study.arms)}")
            for group, arms in study.groups.items():
                print(f"{'':10} --group={group}: {', '.join(arms)}")
    elif which == "claims":
        path = pathlib.Path(flags.FLAGS.page)
        if not path.parent.is_dir():
            raise UserError(f"--page={path}: there is no folder {path.parent}")
        check_place(path, "--page")
        found = {name: read(name) for name in STUDIES}
        write_named(path, page(STUDIES, found), "--page")
        print(f"claims of {len(STUDIES)} studies in {path}")
    elif name not in STUDIES:
        raise UserError(f"study run: {unknown(name, STUDIES, 'study')}")
    else:
        run_command(STUDIES[name], flags.FLAGS.group)


if __name__ == "__main__":
    cli.run(main, define_flags, choices=COMMANDS, files={"run": 1})
