"""Plots as positions in pixels; ``templates/plot.svg`` draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 52
TICK_GAP = 44
DODGE = 7
"""Pixels between points of different series at the same value."""
LETTER, LINE = 6.5, 14
"""About how wide a letter of a label is, and how high its line."""

Tick = tuple[float, str]
"""Its place in pixels, and its label."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its interval, in the units of the axes.

    Attributes:
        x: Where it is.
        y: The value.
        low: Lower end of its interval.
        high: Upper end.
        text: What it is, in words.
        label: What is written beside it if it is on the Pareto front.
    """

    x: float
    y: float
    low: float
    high: float
    text: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to pixels.

    Attributes:
        title: What it shows.
        low: Value at `start`.
        high: Value at `end`, more than `low`.
        start: Pixels.
        end: Pixels.
        log: Whether equal ratios are equally long; `low` is positive then.
        ticks: What is written along it.
    """

    title: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: tuple[Tick, ...] = ()

    def at(self, value: float) -> float:
        """The place of a value, to a tenth of a pixel."""
        low, high, here = (math.log2(one) if self.log else one for one in (self.low, self.high, value))
        return round(self.start + (here - low) / (high - low) * (self.end - self.start), 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """A drawn point: pixels, and the words of `Point`.

    Attributes:
        x: Pixels from the left.
        y: Pixels from the top.
        low: The lower end of the interval, from the top, so at least `y`.
        high: Its upper end.
        text: What it is.
        label: What is written beside it; "" for nothing.
        anchor: On which side of the label the point is: "start" for the left, "end" for the right.
    """

    x: float
    y: float
    low: float
    high: float
    text: str
    label: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot, ready to be drawn.

    Attributes:
        key: Unique in the page, of letters and hyphens.
        title: Its heading.
        caption: How to read it.
        x: Horizontal axis.
        y: Vertical axis.
        series: Name -> marks, of a colour and a shape each.
        lines: "x,y" pairs of pixels that are joined: each series, or the front.
        zero: Where a line at value 0 is drawn; None for none.
    """

    key: str
    title: str
    caption: str
    x: Axis
    y: Axis
    series: Mapping[str, tuple[Mark, ...]]
    lines: tuple[str, ...]
    zero: float | None


def draw(
    key: str,
    title: str,
    caption: str,
    x: Axis,
    y_title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    front: bool = False,
) -> Plot:
    """Lay out points over a horizontal axis.

    Args:
        key: See `Plot`.
        title: See `Plot`.
        caption: See `Plot`.
        x: The axis of the points' `x`.
        y_title: Of the vertical axis, which spans the intervals.
        series: Name -> points by rising x; at least one point in all.
        front: Join, and label, the Pareto front of all points; else join each series, a little beside the others.
    """
    points = [point for group in series.values() for point in group]
    y = linear(y_title, [end for point in points for end in (point.low, point.high)], HEIGHT - BOTTOM, TOP)
    best = pareto(points) if front else []
    shifts = [0.0 if front else DODGE * (number - (len(series) - 1) / 2) for number in range(len(series))]
    marks = {
        name: tuple(_mark(point, x, y, shift, labelled=point in best) for point in group)
        for (name, group), shift in zip(series.items(), shifts, strict=True)
    }
    joined = [" ".join(f"{mark.x},{mark.y}" for mark in group) for group in marks.values()]
    lines = (_steps(x, y, best),) if front else tuple(joined)
    return Plot(key, title, caption, x, y, _without_collisions(marks), lines, y.at(0) if y.low <= 0 else None)


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points than which no other is both better and no larger, by rising x; of equal ones the first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def linear(title: str, values: Sequence[float], start: float, end: float) -> Axis:
    """An axis that has room for the values, with round numbers along it.

    Args:
        title: What it shows.
        values: At least one.
        start: Pixels.
        end: Pixels.
    """
    low, high = min(values), max(values)
    apart = high - low > 1e-6 * max(abs(low), abs(high))
    room = 0.06 * (high - low) if apart else max(0.1 * abs(high), 0.01)
    axis = Axis(title, low - room, high + room, start, end)
    step = _step(axis.high - axis.low)
    digits = max(0, -math.floor(math.log10(step)))
    numbers = range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)
    return replace(axis, ticks=tuple((axis.at(number * step), f"{number * step:.{digits}f}") for number in numbers))


def horizontal(title: str, values: Sequence[float], *, log: bool = False, ticks: Sequence[float] = ()) -> Axis:
    """The horizontal axis of a plot.

    Args:
        title: What it shows.
        values: Where there are points; from 0 where not `log`.
        log: See `Axis`.
        ticks: Where there are ticks; by default at the values. Those that would touch are left out.
    """
    low, high = (min(values) / 1.3, max(values) * 1.3) if log else (0.0, max(values) * 1.05)
    axis = Axis(title, low, high, LEFT, WIDTH - RIGHT, log)
    kept: list[Tick] = []
    for value in sorted(set(ticks or values)):
        if low <= value <= high and (not kept or axis.at(value) - kept[-1][0] >= TICK_GAP):
            kept.append((axis.at(value), f"{value:,.0f}"))
    return replace(axis, ticks=tuple(kept))


def _step(width: float, most: int = 7) -> float:
    """1, 2 or 5 times a power of ten that fits at most `most` times into `width`."""
    power = 10.0 ** math.floor(math.log10(width / most))
    return next(power * factor for factor in (1, 2, 5, 10) if width / (power * factor) <= most)


def _steps(x: Axis, y: Axis, front: Sequence[Point]) -> str:
    """Level up to the next point, then up to it: what can be had with so many bytes."""
    corners = [f"{x.at(front[0].x)},{y.at(front[0].y)}"]
    for before, point in pairwise(front):
        corners += [f"{x.at(point.x)},{y.at(before.y)}", f"{x.at(point.x)},{y.at(point.y)}"]
    return " ".join([*corners, f"{x.end},{y.at(front[-1].y)}"])


def _mark(point: Point, x: Axis, y: Axis, shift: float, *, labelled: bool) -> Mark:
    left, label = round(x.at(point.x) + shift, 1), point.label if labelled else ""
    anchor = "start" if left + 8 + len(label) * LETTER <= x.end else "end"
    return Mark(left, y.at(point.y), y.at(point.low), y.at(point.high), point.text, label, anchor)


def _without_collisions(series: Mapping[str, Sequence[Mark]]) -> dict[str, tuple[Mark, ...]]:
    """The same, less the labels that would lie on another."""
    taken: list[tuple[float, float, float]] = []

    def kept(mark: Mark) -> Mark:
        width = len(mark.label) * LETTER
        left = mark.x if mark.anchor == "start" else mark.x - width
        if any(left < to and since < left + width and abs(mark.y - row) < LINE for since, to, row in taken):
            return replace(mark, label="")
        if mark.label:
            taken.append((left, left + width, mark.y))
        return mark

    return {name: tuple(kept(mark) for mark in marks) for name, marks in series.items()}
