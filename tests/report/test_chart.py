from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.results import ROWS

from deepreshape.report import picture
from deepreshape.report.chart import Mark, lay_out_chart, looks


def test_the_picture_is_valid_svg():
    root = ElementTree.fromstring(picture(ROWS))  # noqa: S314 - we made it
    assert root.tag.endswith("svg")
    assert len(root.findall(".//{*}title")) == 3


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 100), st.floats(0, 5), st.sampled_from("abc")), min_size=1))
def test_every_mark_lies_inside_its_chart(values):
    marks = [Mark(series, x, y, error, "", "") for x, y, error, series in values]
    chart = lay_out_chart("t", "x", marks, [(mark.x, mark.y) for mark in marks])
    for placed in chart.marks:
        assert chart.left <= placed.x <= chart.right
        assert chart.top - 0.1 <= placed.high <= placed.y <= placed.low <= chart.bottom + 0.1
    assert len(chart.x_ticks) >= 2
    assert len(chart.y_ticks) >= 2


@pytest.mark.parametrize(("error", "labels"), [(0.0, ["0", "0.2"]), (5e-324, ["-0.2", "0", "0.2"])])
def test_marks_of_one_height_have_a_scale_too(error: float, labels: list[str]):
    chart = lay_out_chart("t", "x", [Mark("a", 10.0, 0.0, error, "", "")], [])
    assert [tick.label for tick in chart.y_ticks] == labels


def test_no_two_series_look_the_same():
    assert len(set(looks([str(at) for at in range(64)]).values())) == 64
    mixed = looks(["a", "b", "a, snl", "b, snl", "b, coarse"])
    assert len(set(mixed.values())) == 5
    assert len({mixed[name][0] for name in ("b", "b, snl", "b, coarse")}) == 1  # a network's colour
    assert mixed["a, snl"][1] == mixed["b, snl"][1]  # a method's shape


def test_the_front_is_drawn_as_stairs():
    marks = [Mark("a", x, y, 0.0, "", "") for x, y in ((10, 50.0), (100, 60.0))]
    chart = lay_out_chart("", "", marks, [(10, 50.0), (100, 60.0)])
    (x1, y1), (x2, y2) = ((placed.x, placed.y) for placed in chart.marks)
    assert chart.front == f"{x1},{y1} {x2},{y1} {x2},{y2}"
    assert len(chart.legend) == 2
