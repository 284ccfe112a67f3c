"""The report as one page of HTML: no script, nothing fetched, light and dark, small and large."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import chart, figures
from experiments.report.figures import Column
from experiments.report.markup import Markup, joined, tag
from experiments.report.runs import Run, cautions, differences, measure, shared_baselines, turns

STYLE = pathlib.Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the page forbids itself: everything but its own style."""


def page(runs: Sequence[Run], command: str) -> str:
    """The whole page.

    Args:
      runs: best first.
      command: what was typed to make it.
    """
    score = measure(runs)
    title = f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"
    notes = [tag("li", note) for note in cautions(runs)]
    sections = [
        tag("h1", title),
        tag("p", figures.verdict(runs, score), class_="verdict"),
        _tiles(runs) if len(runs) > 1 else "",
        tag("ul", *notes, class_="notes") if notes else "",
        _section("Results", _results(runs)),
        _section("Curves", _legend(runs), _curves(runs, score)),
        _pareto_section(runs, score),
        _section("Baselines", *_baselines(runs)) if any(run.baselines for run in runs) else "",
        _section("What differs between the runs", _differences(runs)) if len(runs) > 1 else "",
        _history_section(runs),
        _section("Configurations", *(_configuration(n, run) for n, run in _numbered(runs))),
    ]
    head = [
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        tag("style", Markup(STYLE.read_text())),
    ]
    foot = tag("footer", "Made by ", tag("code", command))
    body = tag("body", tag("main", *sections, foot))
    return f'<!doctype html>\n<html lang="en">{tag("head", *head)}{body}</html>\n'


def _numbered(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    return list(enumerate(runs, start=1))


def _section(title: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), *content)


def _badge(number: int) -> Markup:
    style = chart.Series(number, "", []).style
    return tag("span", number, class_=f"number {style}")


def _named(number: int, run: Run) -> Markup:
    return tag("span", _badge(number), " ", tag("span", run.name, class_="name"), class_="named")


def _tiles(runs: Sequence[Run]) -> Markup:
    """The best run by each figure."""
    words = {
        figures.LOSS: "lowest validation loss",
        figures.speed_column(runs): f"most {figures.common_unit(runs)}/s",
        figures.PARAMETERS: "fewest parameters",
        figures.CARRY: "smallest carry",
    }
    tiles = []
    for column, text in words.items():
        best = column.best(runs)
        winners = [(n, run) for n, run in _numbered(runs) if column.value(run) == best]
        if best is None:
            continue
        shown = figures.count(best) if column is figures.PARAMETERS else column.shown(best)
        named = joined([_named(*winner) for winner in winners[:3]], " ")
        tiles.append(tag("div", tag("span", text), tag("strong", shown), named, class_="tile"))
    return tag("div", *tiles, class_="tiles") if tiles else Markup()


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], kind: str) -> Markup:
    """A table. The first cell of a row is its name; rows of kind "cards" are so on a phone."""
    top = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head)))
    body = []
    for name, *cells in rows:
        named = zip(head[1:], cells, strict=True)
        values = (tag("td", tag("span", cell), data_label=label) for label, cell in named)
        body.append(tag("tr", tag("th", name, scope="row"), *values))
    return tag("div", tag("table", top, tag("tbody", *body)), class_=f"scroll {kind}")


def _results(runs: Sequence[Run]) -> Markup:
    columns = figures.columns(runs)
    best = {column.name: column.best(runs) for column in columns}

    def cell(column: Column, run: Run) -> object:
        value, text = column.value(run), column.text(run)
        return tag("b", text) if value is not None and value == best[column.name] else text

    rows = [
        [_named(number, run), *(cell(column, run) for column in columns)]
        for number, run in _numbered(runs)
    ]
    note = tag(
        "p",
        "The last validation. Speed is the median while training; training time is what that "
        "speed makes of the steps, without compiling and validating. The carry is what one "
        "stream hands to its next token. The best of each column is bold.",
        class_="small",
    )
    return joined(
        [_table(["run", *(column.name for column in columns)], rows, "cards figures"), note]
    )


def _legend(runs: Sequence[Run]) -> Markup:
    return tag("p", *(tag("span", _named(n, run)) for n, run in _numbered(runs)), class_="legend")


def _label(runs: Sequence[Run], score: str) -> str:
    if score == "bits_per_byte":
        return "validation, bits per byte"
    return "validation loss, nats" + (" per token" if figures.common_unit(runs) == "tokens" else "")


def _levels(runs: Sequence[Run], score: str) -> dict[str, float]:
    found = shared_baselines(runs)
    return {name: values[score] for name, values in found.items() if score in values}


def _curves(runs: Sequence[Run], score: str) -> Markup:
    """Losses by units seen and by training time; training losses are faint behind."""
    held = {n: run.points("validation", score) for n, run in _numbered(runs)}
    train = {
        n: run.points("train", "loss") if score == "loss" else [] for n, run in _numbered(runs)
    }
    seen = [y for points in held.values() for _, y in points]
    seen = seen or [y for points in train.values() for _, y in points]
    if not seen:
        return tag("p", "No run has logged a loss yet.")
    levels = _levels(runs, score)
    y = chart.axis(_label(runs, score), [*seen, *levels.values()])

    def draw(title: str, label: str, units: Any, across: Any) -> Markup | str:
        series = []
        for number, run in _numbered(runs):
            for points, faint in ((train[number], True), (held[number], False)):
                moved = [(across(run, step), value) for step, value in points]
                moved = [point for point in moved if point[0] is not None]
                if moved:
                    series.append(chart.Series(number, run.name, moved, faint))
        if not series:
            return ""
        reach = [point[0] for one in series for point in one.points]
        x = chart.axis(label, reach, units, from_zero=True)
        return chart.curves(title, x, y, series, levels)

    by_units = draw(
        f"By {figures.common_unit(runs)} seen",
        figures.common_unit(runs),
        chart.COUNTS,
        Run.units_at,
    )
    by_time = draw("By time", "training time", chart.DURATIONS, Run.seconds_at)
    note = tag("p", "Thick: validation. Thin: training. Dotted: baselines.", class_="small")
    return joined([tag("div", by_units, by_time, class_="charts"), note])


def _pareto_section(runs: Sequence[Run], score: str) -> Markup:
    """Loss against what it costs; nothing for a single run."""
    loss = figures.LOSS if score == "loss" else figures.BITS
    axes = [(figures.TIME, chart.DURATIONS), (figures.PARAMETERS, chart.COUNTS)]
    axes += [(figures.CARRY, chart.SIZES)]
    axes += [(column, chart.SIZES) for column in figures.memory_columns(runs)]
    charts = []
    for column, units in axes:
        series = [
            chart.Series(number, run.name, [(x, y)])
            for number, run in _numbered(runs)
            if (x := column.value(run)) is not None and (y := loss.value(run)) is not None
        ]
        if len({one.points[0][0] for one in series}) < 2:
            continue
        xs, ys = ([one.points[0][i] for one in series] for i in (0, 1))
        x, y = chart.axis(column.name, xs, units, log=True), chart.axis(_label(runs, score), ys)
        title = f"Loss against {column.name}"
        charts.append(chart.pareto(title, x, y, series, _levels(runs, score)))
    if not charts:
        return Markup()
    note = tag(
        "p",
        "Lower and further left is better. The stair joins the runs that no other equals or beats "
        "in both; the others are pale.",
        class_="small",
    )
    grid = tag("div", *charts, class_="charts")
    return _section("What a loss costs", _legend(runs), grid, note)


def _baselines(runs: Sequence[Run]) -> list[Any]:
    """Baselines beside the runs; once if all runs share them."""
    columns = [c for c in figures.score_columns(runs) if c in (figures.LOSS, figures.BITS)]
    scores = {figures.LOSS: "loss", figures.BITS: "bits_per_byte"}
    head = ["", *(scores[column].replace("_", " ") for column in columns)]

    def cell(column: figures.Column, values: Mapping[str, float]) -> str:
        known = scores[column] in values
        return column.shown(values[scores[column]]) if known else figures.UNKNOWN

    shared = shared_baselines(runs)
    groups = [("", shared, _numbered(runs))] if shared else []
    if not shared:
        groups = [(run.name, run.baselines, [(n, run)]) for n, run in _numbered(runs)]
    found = []
    for name, lines, those in groups:
        rows: list[tuple[float, list[Any]]] = [
            (v["loss"], [k, *(cell(column, v) for column in columns)]) for k, v in lines.items()
        ]
        for number, run in those:
            if (loss := run.final("loss")) is not None:
                cells = [_named(number, run), *(column.text(run) for column in columns)]
                rows.append((loss, cells))
        if lines:
            ordered = [row for _, row in sorted(rows, key=lambda row: -row[0])]
            found.append(joined([tag("h3", name) if name else "", _table(head, ordered, "narrow")]))
    note = "Unigram and bigram count the training text; gzip and xz compress the validation text."
    return [*found, tag("p", note, class_="small") if figures.BITS in columns else ""]


def _differences(runs: Sequence[Run]) -> Markup:
    found = differences(runs)
    if not found:
        return tag("p", "Nothing: all have the same configuration.")
    head = ["field", *(f"{number} {run.name}" for number, run in _numbered(runs))]
    rows = [
        [tag("code", field), *(shown_value(value) for value in values)]
        for field, values in found.items()
    ]
    return _table(head, rows, "cards")


def _history_section(runs: Sequence[Run]) -> Markup:
    """Where runs changed on their way; nothing if none did."""
    rows = [
        [_named(place + 1, runs[place]), f"{began.step:,}", began.time, "; ".join(began.told())]
        for place, began in turns(runs)
    ]
    if not rows:
        return Markup()
    return _section(
        "What changed on the way", _table(["run", "from step", "at", ""], rows, "cards")
    )


def shown_value(value: Any) -> str:
    """A field's value as a person would write it."""
    if value is None:
        return figures.UNKNOWN
    return value if isinstance(value, str) and value else json.dumps(value)


def _configuration(number: int, run: Run) -> Markup:
    lines = "\n".join(f"{name} = {shown_value(value)}" for name, value in run.config.items())
    return tag("details", tag("summary", _named(number, run)), tag("pre", lines))
