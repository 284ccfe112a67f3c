"""A study's table: ours beside the published, claims below; and the page of all claims."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from experiments.report.markdown import escaped, table
from experiments.study.claim import Values, Verdict
from experiments.study.declare import Measure, Study
from experiments.study.found import ArmFound, Found
from experiments.study.sheet import PUBLISHED, Sheet
from sharding.whole_file import write_named


def sheet(study: Study, found: Found) -> Sheet:
    """A row an arm, a column a measure, the published figures of a measure beside it."""
    measures = [n for n in study.measures if found.of(n) or _published(study, n, found)]
    head = [""]
    for name in measures:
        head.append(heading(study.measures[name]))
        if _published(study, name, found):
            head.append(PUBLISHED)
    rows = [_row(study, found, arm, measures) for arm in study.arms if arm in found.arms]
    rows += [_baseline(study, found, name, measures) for name in found.baselines]
    notes = [f"{claim}: {word}" for claim, word in told(study, found)]
    return Sheet(f"{study.title}: {found.scale}", tuple(head), tuple(rows), (*notes, *study.notes))


def heading(measure: Measure) -> str:
    """Title and unit."""
    return f"{measure.title}, {measure.unit}" if measure.unit else measure.title


def shown(values: Values, measure: Measure) -> str:
    """Mean ± sample deviation of seeds; median and quartiles of turns."""
    text = format(values.mean, measure.form)
    if values.kind == "turns":
        low, high = values.quartiles
        return text if low == high else f"{text} ({low:{measure.form}} to {high:{measure.form}})"
    deviation = values.deviation
    if deviation is None or values.kind == "exact" or not deviation:
        return text
    return f"{text} ± {deviation:{measure.form}}"


def told(study: Study, found: Found) -> list[tuple[str, str]]:
    """Each claim about an arm whose measure was found, with its verdict in words."""
    own = [c for c in study.claims if any(name in found.of(c.measure) for name in c.arms)]
    verdicts = [claim.judge(found.of(claim.measure)) for claim in own]
    return [
        (claim.text, verdict.word + (f" ({verdict.detail})" if verdict.detail else ""))
        for claim, verdict in zip(own, verdicts, strict=True)
    ]


def _row(study: Study, found: Found, arm: str, measures: list[str]) -> tuple[str, ...]:
    cells = [study.arms[arm].title]
    for name in measures:
        values = found.of(name).get(arm)
        measure = study.measures[name]
        cells.append("" if values is None else shown(values, measure))
        if published := _published(study, name, found):
            value = published.get(arm)
            cells.append("" if value is None else format(value, measure.form))
    return tuple(cells)


def _baseline(study: Study, found: Found, name: str, measures: list[str]) -> tuple[str, ...]:
    cells = [f"({name})"]
    for measure in measures:
        value = found.baselines[name].get(measure)
        cells.append("" if value is None else format(value, study.measures[measure].form))
        cells += [""] if _published(study, measure, found) else []
    return tuple(cells)


def _published(study: Study, measure: str, found: Found) -> dict[str, float]:
    """Of the arms that were run."""
    own = (p for p in study.published if p.measure == measure and p.arm in found.arms)
    return {p.arm: p.value for p in own}


@dataclasses.dataclass(frozen=True)
class Line:
    """A claim on the page of claims."""

    text: str
    source: str
    verdict: Verdict
    figures: str
    seeds: str
    scale: str
    command: str


def lines(study: Study, found: Mapping[str, Found]) -> list[Line]:
    """Every claim of a study, at every scale that was run; NOT RUN where none was."""
    result = []
    for claim in study.claims:
        judged_at = [
            (scale, verdict)
            for scale, one in found.items()
            if (verdict := claim.judge(one.of(claim.measure))).word != "NOT RUN"
        ]
        if not judged_at:
            missing = claim.judge(next(iter(found.values())).of(claim.measure)) if found else None
            verdict = missing or claim.judge({})
            result.append(Line(claim.text, claim.source, verdict, "", "", "", ""))
        for scale, verdict in judged_at:
            own = {name: found[scale].arms[name] for name in claim.arms}
            seeds = sorted({seed for arm in own.values() for seed in arm.seeds})
            commands = dict.fromkeys(_how(arm) for arm in own.values())
            measure = study.measures[claim.measure]
            values = found[scale].of(claim.measure)
            figures = "; ".join(
                f"{study.arms[name].title} {shown(values[name], measure)}" for name in claim.arms
            )
            listed = ", ".join(map(str, seeds))
            line = Line(
                claim.text, claim.source, verdict, figures, listed, scale, "; ".join(commands)
            )
            result.append(line)
    return result


def _how(arm: ArmFound) -> str:
    """The command of an arm's figures, and what must be known of them."""
    told = ["before"] if arm.before else []
    told += [arm.note] if arm.note else []
    return f"`{arm.command}`" + (f" ({'; '.join(told)})" if told else "")


def page(studies: Mapping[str, Study], found: Mapping[str, Mapping[str, Found]]) -> str:
    """docs/claims.md: every claim of every paper with its verdict, figures, scale and command."""
    parts = [
        "# Claims\n",
        "What each paper claims, and what was seen of it here. `gam study claims` writes this page "
        "from `experiments/papers/found/`; it trains nothing. `gam study run NAME` runs a study "
        "again.\n",
        "HOLDS and REVERSED: beyond two standard errors of the differences between seeds, or, of "
        "times, beyond quartiles. UNCLEAR: not beyond. ONE SEED: one run tells no noise. NOT RUN: "
        "nobody has measured it. NOT HERE: it cannot be had here, and why. Commands "
        "followed by (before) print their figures by loops that are gone.\n",
    ]
    for name, study in studies.items():
        parts.append(f"## {study.title}\n")
        parts.append(f"{study.source} · [{study.page}]({study.page}) · `gam study run {name}`\n")
        head = ("claim", "says", "verdict", "figures", "seeds", "scale", "command")
        rows = [
            (
                escaped(line.text),
                escaped(line.source),
                f"**{line.verdict.word}** {escaped(line.verdict.detail)}".rstrip(),
                escaped(line.figures),
                line.seeds,
                line.scale,
                line.command,
            )
            for line in lines(study, found.get(name, {}))
        ]
        rows += [
            (escaped(one.text), escaped(study.source), f"**NOT HERE** {escaped(one.reason)}")
            + ("",) * 4
            for one in study.absent
        ]
        parts.append(table(head, rows, text=True) + "\n")
    return "\n".join(parts)


def write_markdown(study: Study, found: Found, path: pathlib.Path) -> None:
    """The study's table as a page."""
    write_named(path, sheet(study, found).markdown())
