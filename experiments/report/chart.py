"""Charts as SVG that takes its colours from the page, in light and dark."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from experiments.report.markup import Markup, joined, tag
from experiments.report.runs import Points

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 44
COLOURS = 8
"""Colours of the page's style: c0 to c7."""
LOG_FROM = 8
"""The largest over the smallest value from which an axis of figures is logarithmic."""
DURATIONS = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
SIZES = (("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30))
COUNTS = (("", 1), ("thousand", 10**3), ("million", 10**6), ("billion", 10**9))


@dataclasses.dataclass(frozen=True)
class Series:
    """What one run shows.

    Attributes:
      number: of the run, from 1; it decides the colour.
      name: of the run.
      points: (x, y), finite.
      faint: drawn thin, behind the others, and free to leave the picture.
    """

    number: int
    name: str
    points: Points
    faint: bool = False

    @property
    def style(self) -> str:
        """Classes: colour, and a dash where colours begin again."""
        turn, colour = divmod(self.number - 1, COLOURS)
        return f"c{colour} dash{turn % 3}"


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis from data to picture.

    Attributes:
      label: what it shows, with the unit.
      low: value at its start.
      high: value at its end.
      unit: what a value is divided by to be shown.
      log: whether it is logarithmic.
    """

    label: str
    low: float
    high: float
    unit: float = 1
    log: bool = False

    def part(self, value: float) -> float:
        """Where a value lies, 0 at the start and 1 at the end."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """(value, text), about five."""
        low, high = self.low / self.unit, self.high / self.unit
        found = _log_ticks(low, high) if self.log else _ticks(low, high)
        return [(value * self.unit, f"{value:.6g}") for value in found]


def axis(
    label: str,
    values: Sequence[float],
    units: Sequence[tuple[str, float]] = (("", 1),),
    *,
    from_zero: bool = False,
    log: bool = False,
) -> Axis:
    """An axis that holds all values, in the unit that suits the largest.

    Args:
      label: what it shows.
      values: at least one.
      units: (name, size), smallest first.
      from_zero: start at zero.
      log: logarithmic where the values are spread widely.
    """
    least, most = min(values), max(values)
    name, unit = next((u for u in reversed(units) if most >= u[1]), units[0])
    label = f"{label}, {name}" if name else label
    if log and least > 0 and most / least >= LOG_FROM:
        return Axis(label, least / 1.4, most * 1.4, unit, log=True)
    margin = 0.09 * (most - least) or 0.05 * abs(most) or 1.0
    return Axis(label, 0.0 if from_zero else least - margin, most + margin, unit)


def curves(
    title: str, x: Axis, y: Axis, series: Sequence[Series], lines: Mapping[str, float]
) -> Markup:
    """Lines through the points of each series; `lines` are levels with a name (baselines)."""
    place = _Place(x, y)
    drawn = [_level(place, name, value) for name, value in _spread(lines, y)]
    for one in sorted(series, key=lambda s: not s.faint):
        kind = f"line faint {one.style}" if one.faint else f"line {one.style}"
        drawn.append(_path(place, one.points, kind, tag("title", one.name)))
        if not one.faint:
            drawn.extend(_dot(place, one, point, 2.6) for point in one.points)
    return _frame(title, place, drawn)


def pareto(
    title: str, x: Axis, y: Axis, series: Sequence[Series], lines: Mapping[str, float]
) -> Markup:
    """One numbered point a run, and a stair under those that no other beats in both.

    Less is better on both axes.
    """
    place = _Place(x, y)
    drawn = [_level(place, name, value) for name, value in _spread(lines, y)]
    points = [one.points[0] for one in series]
    best = front(points)
    if len(best) > 1:
        steps = [
            spot
            for (_, before), (across, down) in itertools.pairwise(best)
            for spot in ((across, before), (across, down))
        ]
        drawn.append(_path(place, [best[0], *steps], "front"))
    for one, point in reversed(list(zip(series, points, strict=True))):
        across, up = place.at(*point)
        kind = "badge" if point in best else "badge beaten"
        words = tag("title", f"{one.name}: {y.label} {point[1]:.4f}")
        circle = tag("circle", words, cx=across, cy=up, r=11)
        number = tag("text", one.number, x=across, y=up, dy="0.36em")
        drawn.append(tag("g", circle, number, class_=f"{kind} {one.style}"))
    return _frame(title, place, drawn)


def front(points: Sequence[tuple[float, float]]) -> Points:
    """The points that no other one equals or beats in both, by growing x."""
    best: Points = []
    for point in sorted(set(points)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


@dataclasses.dataclass(frozen=True)
class _Place:
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[str, str]:
        """Where a point lies in the picture."""
        across = LEFT + self.x.part(x) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - self.y.part(y) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f}", f"{up:.1f}"


def _path(place: _Place, points: Points, kind: str, *content: object) -> Markup:
    spots = (",".join(place.at(*point)) for point in points)
    return tag("path", *content, d="M" + "L".join(spots), class_=kind)


def _frame(title: str, place: _Place, drawn: list[Markup]) -> Markup:
    parts: list[object] = []
    for value, text in place.x.ticks():
        across, _ = place.at(value, place.y.low)
        parts.append(_path(place, [(value, place.y.low), (value, place.y.high)], "grid"))
        parts.append(tag("text", text, x=across, y=HEIGHT - BOTTOM + 17, class_="tick middle"))
    for value, text in place.y.ticks():
        _, up = place.at(place.x.low, value)
        parts.append(_path(place, [(place.x.low, value), (place.x.high, value)], "grid"))
        parts.append(tag("text", text, x=LEFT - 6, y=up, dy="0.36em", class_="tick end"))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(tag("text", place.x.label, x=middle, y=HEIGHT - 8, class_="label middle"))
    inside = f"0 0 {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM}"
    svg = tag(
        "svg",
        *parts,
        tag(
            "svg",
            tag("g", *drawn, transform=f"translate({-LEFT} {-TOP})"),
            x=LEFT,
            y=TOP,
            width=WIDTH - LEFT - RIGHT,
            height=HEIGHT - TOP - BOTTOM,
            viewBox=inside,
        ),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {place.y.label} by {place.x.label}",
    )
    caption = tag("figcaption", tag("b", title), " ", tag("span", place.y.label))
    return tag("figure", caption, svg)


def _dot(place: _Place, one: Series, point: tuple[float, float], radius: float) -> Markup:
    across, up = place.at(*point)
    words = tag("title", f"{one.name}: {point[1]:.4f}")
    return tag("circle", words, cx=across, cy=up, r=radius, class_=f"dot {one.style}")


def _level(place: _Place, name: str, value: float) -> Markup:
    across, up = place.at(place.x.high, value)
    line = _path(place, [(place.x.low, value), (place.x.high, value)], "level")
    words = tag("text", name, x=float(across) - 4, y=float(up) - 4, class_="tick end")
    return joined([line, words])


def _spread(lines: Mapping[str, float], y: Axis) -> list[tuple[str, float]]:
    """The levels that lie inside the picture; those too near each other to be named share one."""
    found: list[tuple[str, float]] = []
    for name, value in sorted(lines.items(), key=lambda item: item[1]):
        if not y.low < value < y.high:
            continue
        if found and y.part(value) - y.part(found[-1][1]) < 0.05:
            found[-1] = (f"{found[-1][0]}, {name}", found[-1][1])
        else:
            found.append((name, value))
    return found


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    heads = (1,) if len(decades) > 5 else (1, 3) if len(decades) > 3 else (1, 2, 5)
    every = [head * 10.0**decade for decade in decades for head in heads]
    return [value for value in every if low <= value <= high]
