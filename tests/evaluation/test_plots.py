"""Where points, ticks and labels come to lie."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval.evaluation.plots import HEIGHT, LEFT, LETTER, LINE, RIGHT, TOP, WIDTH, Axis, Point

from qwen_retrieval.evaluation.plots import draw, horizontal, linear, pareto  # isort: skip

SIZES = st.integers(2, 20_000)
SHARES = st.floats(0, 1)
POINTS = st.lists(st.tuples(SIZES, SHARES, st.floats(0, 0.2)), min_size=1, max_size=30).map(
    lambda rows: [Point(x, y, y - half, y + half, "", f"setting {x}") for x, y, half in sorted(rows)]
)


def test_a_logarithmic_axis_gives_equal_ratios_equal_lengths() -> None:
    axis = Axis("", 1, 100, 0, 200, log=True)
    assert [axis.at(value) for value in (1, 10, 100)] == [0, 100, 200]
    assert Axis("", 0, 100, 0, 200).at(10) == 20


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        pytest.param([0.21, 0.48], ["0.20", "0.25", "0.30", "0.35", "0.40", "0.45"], id="shares"),
        pytest.param([-3.0, 9.0], ["-2", "0", "2", "4", "6", "8"], id="across zero"),
        pytest.param([0.0, 0.0], ["-0.010", "-0.005", "0.000", "0.005", "0.010"], id="all zero"),
        pytest.param([0.5], ["0.46", "0.48", "0.50", "0.52", "0.54"], id="one value"),
    ],
)
def test_an_axis_has_round_numbers_and_room(values: list[float], labels: list[str]) -> None:
    axis = linear("", values, 0, 100)
    assert [label for _, label in axis.ticks] == labels
    assert axis.low < min(values) <= max(values) < axis.high
    assert all(place == axis.at(float(label)) for place, label in axis.ticks)


def test_ticks_that_would_touch_are_left_out() -> None:
    axis = horizontal("", [1000, 1024, 64], log=True)
    assert [label for _, label in axis.ticks] == ["64", "1,000"]


@given(POINTS)
def test_the_front_has_what_no_other_point_beats(points: list[Point]) -> None:
    front = pareto(points)
    beaten = [p for p in points if any(o.x <= p.x and o.y >= p.y and (o.x, o.y) != (p.x, p.y) for o in points)]
    assert {(p.x, p.y) for p in front} == {(p.x, p.y) for p in points} - {(p.x, p.y) for p in beaten}
    assert front == sorted(front, key=lambda point: (point.x, point.y))


@settings(max_examples=50)
@given(POINTS, st.booleans())
def test_all_marks_are_in_the_frame_and_no_label_covers_another(points: list[Point], front: bool) -> None:
    x = horizontal("", [point.x for point in points], log=True)
    plot = draw("key", "", "", x, "", {"a": points[::2], "b": points[1::2]}, front=front)
    marks = [mark for group in plot.series.values() for mark in group]
    assert len(marks) == len(points)
    for mark in marks:
        assert LEFT - 8 < mark.x < WIDTH - RIGHT + 8
        assert TOP <= mark.high <= mark.y <= mark.low <= HEIGHT
    labels = [mark for mark in marks if mark.label]
    assert bool(labels) is front
    for number, one in enumerate(labels):
        for other in labels[:number]:
            apart = abs(one.x - other.x) >= len(min(one.label, other.label, key=len)) * LETTER
            assert apart or abs(one.y - other.y) >= LINE or one.anchor != other.anchor


def test_the_front_rises_in_steps_and_series_are_joined_beside_each_other() -> None:
    x = Axis("", 0, 10, LEFT, LEFT + 100)
    groups = {"a": [Point(0, 0.1, 0.1, 0.1, "")], "b": [Point(5, 0.3, 0.3, 0.3, "")]}
    plot = draw("key", "", "", x, "", groups, front=True)
    low, high = plot.series["a"][0], plot.series["b"][0]
    assert plot.lines == (f"{low.x},{low.y} {high.x},{low.y} {high.x},{high.y} {x.end},{high.y}",)
    joined = draw("key", "", "", x, "", groups)
    assert [re.split("[, ]", line) for line in joined.lines] == [
        [str(low.x - 3.5), str(low.y)], [str(high.x + 3.5), str(high.y)],
    ]  # fmt: skip
