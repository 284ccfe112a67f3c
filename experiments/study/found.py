"""What a study has found: figures by arm and scale, in one committed file."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study.claim import Summary, Values
from sharding.errors import UserError
from sharding.json_file import BadJson, read_json
from sharding.whole_file import write_named

FOLDER = pathlib.Path(__file__).parents[1] / "papers" / "found"
LIBRARIES = ("jax", "jaxlib", "numpy", "optax")


@dataclasses.dataclass(frozen=True)
class ArmFound:
    """What one arm has found at one scale.

    Attributes:
      figures: measure -> values, one a seed or turn.
      kind: "seeds", "turns" or "exact", see `Values`; measures of `turns` are timed.
      seeds: of the values.
      turns: measures that were timed, whatever the kind of the others.
      command: that prints them again.
      date: when, as 2026-11-29.
      versions: of the libraries.
      before: whether the figures are from before this engine, by a loop that is gone.
      summaries: measure -> mean and deviation, where values of seeds were not kept one by one.
      note: what else must be known of the figures.
    """

    figures: Mapping[str, tuple[float, ...]]
    kind: str = "seeds"
    seeds: tuple[int, ...] = ()
    turns: tuple[str, ...] = ()
    command: str = ""
    date: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    before: bool = False
    summaries: Mapping[str, Summary] = dataclasses.field(default_factory=dict)
    note: str = ""

    def values(self, measure: str) -> Values | None:
        """Those of a measure; None where it was not found."""
        if measure in self.summaries:
            return Values((), "seeds", self.seeds, self.summaries[measure])
        if measure not in self.figures:
            return None
        if measure in self.turns:
            return Values(self.figures[measure], "turns")
        seeds = self.seeds if self.kind == "seeds" else ()
        return Values(self.figures[measure], self.kind, seeds)


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found at one scale.

    Attributes:
      scale: its name.
      arms: by name.
      baselines: of the data: name -> scores; empty where there are none.
    """

    scale: str
    arms: Mapping[str, ArmFound]
    baselines: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def of(self, measure: str) -> dict[str, Values]:
        """A measure's values, of the arms that have it."""
        pairs = ((name, arm.values(measure)) for name, arm in self.arms.items())
        return {name: values for name, values in pairs if values is not None}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        arms = {name: dataclasses.asdict(arm) for name, arm in self.arms.items()}
        return {"scale": self.scale, "arms": arms, "baselines": dict(self.baselines)}


def path_of(study: str, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """The committed file of a study."""
    return folder / f"{study}.json"


def read(study: str, folder: pathlib.Path = FOLDER) -> dict[str, Found]:
    """Scale -> what was found; empty without a file.

    Raises:
      UserError: the file is damaged.
    """
    path = path_of(study, folder)
    if not path.is_file():
        return {}
    try:
        saved = read_json(path, finite=False)
        return {scale: from_json({**found, "scale": scale}) for scale, found in saved.items()}
    except BadJson as error:
        raise UserError(
            f"{path} is no file of figures (it {error.reason}): restore or remove it"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no file of figures ({error}): restore or remove it") from error


def from_json(saved: Mapping[str, Any]) -> Found:
    """The inverse of `Found.to_json`."""
    arms = {}
    for name, arm in saved["arms"].items():
        figures = {measure: tuple(values) for measure, values in arm["figures"].items()}
        summaries = {m: Summary(**one) for m, one in arm.get("summaries", {}).items()}
        lists = {key: tuple(arm.get(key, ())) for key in ("seeds", "turns")}
        known = ("figures", "seeds", "turns", "summaries")
        rest = {k: v for k, v in arm.items() if k not in known}
        arms[name] = ArmFound(figures=figures, summaries=summaries, **lists, **rest)
    return Found(saved["scale"], arms, saved.get("baselines", {}))


def merge(study: str, found: Found, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Writes what was found into the study's file; other arms and scales in it stay."""
    saved = read(study, folder)
    before = saved.get(found.scale, Found(found.scale, {}))
    baselines = found.baselines or before.baselines
    saved[found.scale] = Found(found.scale, {**before.arms, **found.arms}, baselines)
    values = {scale: one.to_json() for scale, one in sorted(saved.items())}
    for one in values.values():
        del one["scale"]
    path = path_of(study, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    write_named(path, json.dumps(values, indent=1) + "\n")
    return path


def stamped(
    figures: Mapping[str, Sequence[float]],
    kind: str,
    seeds: Sequence[int],
    command: str,
    turns: Sequence[str] = (),
) -> ArmFound:
    """What an arm has found today, with these libraries."""
    return ArmFound(
        figures={name: tuple(values) for name, values in figures.items()},
        kind=kind,
        seeds=tuple(seeds),
        turns=tuple(turns),
        command=command,
        date=datetime.date.today().isoformat(),
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
    )
