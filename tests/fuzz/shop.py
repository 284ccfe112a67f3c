"""The folder that cases run in: a text, its cache, a run and what else a command may be given."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

from gam_jax.config import from_dict
from gam_jax.data import Data
from gam_jax.data.text import Text
from gam_jax.data.text_dataset import open_text
from sharding.checkpoint import manifest
from tests.fuzz.law import seen
from tests.workshop import Run, text

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FIGURES: dict[str, Any] = {
    "date": "2026-11-30 00:00 UTC",
    "machine": {"device": "cpu", "cores": 2, "load": 0.1},
    "load_after": 0.2,
    "options": [],
    "benchmarks": {"scan": {"tree": {"forward": {"value": 1.5, "unit": "ms", "spread": 0.1}}}},
}
"""What `gam benchmark all` writes."""


@dataclasses.dataclass(frozen=True)
class Shop:
    """A folder that is as it was before each case.

    Attributes:
      place: the folder.
      template: what it holds.
      texts: how its text is read.
    """

    place: pathlib.Path
    template: pathlib.Path
    texts: Text

    def renew(self) -> None:
        """Makes the folder anew, if anything in it has changed."""
        if self.place.exists() and seen(self.place) == seen(self.template):
            return
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.template, self.place, symlinks=True)

    def json(self, name: str) -> Any:
        """What a file of JSON holds."""
        return json.loads((self.template / name).read_text())

    def rows(self, name: str) -> list[Any]:
        """What a file of JSON lines holds."""
        return [json.loads(line) for line in (self.template / name).read_text().splitlines()]


def opened(folder: pathlib.Path, trained: Run) -> Shop:
    """A new shop below a folder, with the run in it."""
    place, template = folder / "a" / "place", folder / "template"
    template.mkdir(parents=True)
    place.parent.mkdir()
    (template / "good.txt").write_text(text(600))
    (template / "words").mkdir()
    (template / "words" / "a.txt").write_text("a few words")
    (template / "figures.json").write_text(json.dumps(FIGURES))
    for name in ("hf_llama", "hf_mamba2"):
        shutil.copytree(GOLDEN / name, template / name)
    ignored = shutil.ignore_patterns("tensorboard", "*.png", "run.lock*")
    shutil.copytree(trained.path, template / "run", ignore=ignored)
    texts = Text(name="text:good.txt", dir="data", tokenizer="bytes", window=32)
    config = json.loads((template / "run" / "config.json").read_text())
    config["data"] |= {"name": "text:good.txt", "dir": "data"}
    (template / "run" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rows = (template / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (template / "run" / "metrics.jsonl").write_text("".join(rows[-6:]))
    here = pathlib.Path.cwd()
    os.chdir(template)
    try:
        open_text(texts).described()
        _as_trained_on_it(template / "run", config["data"])
    finally:
        os.chdir(here)
    return Shop(place, template, texts)


def _as_trained_on_it(run: pathlib.Path, data: dict[str, Any]) -> None:
    """Makes the run's checkpoints those of a run on this folder's text."""
    fingerprints = from_dict(Data, data).open(None).fingerprints
    for folder in (run / "checkpoints").glob("*/"):
        saved = manifest.read(folder)
        manifest.write(folder, dataclasses.replace(saved, extra={**saved.extra, **fingerprints}))
