"""Parallel scaling streams: what they bring, by law.

python -m experiments.parscale law --published          the paper's tables, fitted anew
python -m experiments.parscale law --published --json
"""

from __future__ import annotations

import json

from absl import flags

from experiments import cli
from experiments.parscale import law


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_bool("published", False, "law: fit the tables that the paper published.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(which: str) -> None:
    """Fits and prints."""
    found = law.published_fits()
    if flags.FLAGS.json:
        print(json.dumps(found))
        return
    for corpus, rows in found.items():
        law.print_fits(corpus, rows["fits"], rows["paper"])


if __name__ == "__main__":
    cli.run(main, define_flags, choices=("law",))
