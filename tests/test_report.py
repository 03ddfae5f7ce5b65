import re
import zlib
from base64 import b64decode
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.report import advantages, front, picture, picture_of_masks, render, summarize, verdict
from deepreshape.report.chart import Mark, lay_out, looks
from deepreshape.training.runs import Result


def row(network: str, relus: int, top1: float, seed: int = 0, plan: str = "all ReLUs", method: str = "all") -> Result:
    return Result.of(
        {
            "method": method,
            "id": f"{network}{relus}{seed}",
            "network": network,
            "plan": plan,
            "budget": None,
            "relus": relus,
            "macs": 10 * relus,
            "params": 7,
            "top1": top1,
            "seed": seed,
            "data": "digits",
            "n": 360,
            "command": f"deepreshape train {network}",
            "priced_seconds": {"server-garbler": relus / 100},
        }
    )


ROWS = [
    row("base", 1000, 90.0), row("base", 1000, 92.0, seed=1), row("base", 250, 70.0, plan="thin"),
    row("base", 250, 70.0, seed=1, plan="thin"), row("hrn", 500, 85.0), row("hrn", 500, 87.0, seed=1),
]  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]):
    best = front(points)
    assert all(any(cost <= x and gain >= y for cost, gain in best) for x, y in points)
    assert all(
        not (other[0] <= point[0] and other[1] >= point[1] and other != point) for point in best for other in points
    )


def test_seeds_are_summed_up():
    base, thin, hrn = summarize(ROWS)
    assert (base.mean, base.spread) == (91.0, pytest.approx(2**0.5))
    assert (thin.mean, thin.spread) == (70.0, 0.0)
    assert summarize(ROWS[:1])[0].spread is None
    assert hrn.top1 == (85.0, 87.0)


def test_the_gain_is_taken_at_equal_relus():
    (gain,) = advantages(summarize(ROWS), "base")
    assert gain.baseline == pytest.approx(80.5)  # half way between 70 and 91, over the logarithm of 250, 500, 1000
    assert gain.gain == pytest.approx(5.5)
    assert gain.spread == pytest.approx((2 + 0.5) ** 0.5)
    assert advantages(summarize([*ROWS, row("big", 5000, 99.0)]), "base") == (gain,)


def test_what_a_method_left_is_compared_with_what_the_same_method_left_of_the_baseline():
    rows = [
        row(network, 500, top1, plan=f"{method} 500", method=method)
        for network, method, top1 in (("base", "snl", 60.0), ("base", "coarse", 50.0), ("hrn", "snl", 61.5))
    ]
    (gain,) = advantages(summarize(rows), "base")
    assert (gain.point.network, gain.baseline, gain.gain) == ("hrn, snl", 60.0, 1.5)
    assert "1 of 1 other points are ahead of base, each against the same method: from" in verdict((gain,), "base")
    against = advantages(summarize(rows), "base, coarse")
    assert [each.gain for each in against] == [10.0, 11.5]
    assert "2 of 2 other points are ahead of base, coarse: from" in verdict(against, "base, coarse")


def test_the_front_is_drawn_as_stairs():
    marks = [Mark("a", x, y, 0.0, "", "") for x, y in ((10, 50.0), (100, 60.0))]
    chart = lay_out("", "", marks, [(10, 50.0), (100, 60.0)])
    (x1, y1), (x2, y2) = ((placed.x, placed.y) for placed in chart.marks)
    assert chart.front == f"{x1},{y1} {x2},{y1} {x2},{y2}"
    assert len(chart.legend) == 2


def test_the_verdict_follows_from_the_numbers():
    gains = advantages(summarize(ROWS), "base")
    assert "1 of 1 other points are ahead of base" in verdict(gains, "base")
    assert "1 of them differ by more than twice" in verdict(gains, "base")
    assert "0 of 1" in verdict(advantages(summarize([*ROWS[:4], row("hrn", 500, 60.0)]), "base"), "base")
    assert "one seed" in verdict(advantages(summarize([ROWS[0], ROWS[2], ROWS[4]]), "base"), "base")
    assert "nothing can be said" in verdict((), "base")


def test_the_report_needs_no_network_and_shows_every_point():
    html = render(ROWS, baseline="base", settings="data: digits", command="deepreshape run --out there")
    assert not re.search(r"(src|href)=\"(?!#)", html)
    assert "@import" not in html
    assert html.count("<svg") == 3
    for expected in ("91.00 ± 1.41", "deepreshape run --out there", "data: digits", "deepreshape train hrn", "+5.50"):
        assert expected in html
    anchors = set(re.findall(r'href="#([^"]+)"', html))
    assert anchors == set(re.findall(r'<tr id="([^"]+)"', html))


def test_names_in_the_results_cannot_become_markup():
    html = render([row("<script>alert(1)</script>", 10, 1.0)], baseline="x", settings="", command="")
    assert "<script>" not in html


def test_the_picture_is_valid_svg():
    root = ElementTree.fromstring(picture(ROWS))  # noqa: S314 - we made it
    assert root.tag.endswith("svg")
    assert len(root.findall(".//{*}title")) == 3


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 100), st.floats(0, 5), st.sampled_from("abc")), min_size=1))
def test_every_mark_lies_inside_its_chart(values):
    marks = [Mark(series, x, y, error, "", "") for x, y, error, series in values]
    chart = lay_out("t", "x", marks, [(mark.x, mark.y) for mark in marks])
    for placed in chart.marks:
        assert chart.left <= placed.x <= chart.right
        assert chart.top - 0.1 <= placed.high <= placed.y <= placed.low <= chart.bottom + 0.1
    assert len(chart.x_ticks) >= 2
    assert len(chart.y_ticks) >= 2


def test_no_two_series_look_the_same():
    assert len(set(looks([str(at) for at in range(64)]).values())) == 64
    mixed = looks(["a", "b", "a, snl", "b, snl", "b, coarse"])
    assert len(set(mixed.values())) == 5
    assert len({mixed[name][0] for name in ("b", "b, snl", "b, coarse")}) == 1  # a network's colour
    assert mixed["a, snl"][1] == mixed["b, snl"][1]  # a method's shape


def test_the_picture_of_masks_has_a_bar_and_a_map_for_each_layer():
    before = {name: torch.ones(2, 3, 4, dtype=torch.bool) for name in ("stem.act", "gone", "empty")}
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[:, 1, 2] = True
    svg = picture_of_masks(before, {"stem.act": mask, "empty": torch.zeros_like(mask)})
    root = ElementTree.fromstring(svg)  # noqa: S314 - made just above
    space = "{http://www.w3.org/2000/svg}"
    assert "3 of 72 ReLUs kept" in svg
    bars = [float(bar.get("width")) for bar in root.iter(f"{space}rect") if bar.get("fill")]
    assert bars == [35.0, 0.0, 0.0]
    (picture_,) = root.iter(f"{space}image")
    png = b64decode(picture_.get("href").partition(",")[2])
    pixels = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    rows = [pixels[at * 17 + 1 : at * 17 + 17] for at in range(3)]
    assert [list(row[3::4]) for row in rows] == [[128, 0, 0, 0], [0, 0, 255, 0], [0, 0, 0, 0]]


def test_a_row_may_have_more_than_is_known_and_not_less():
    whole = ROWS[0].to_row()
    assert Result.of(whole | {"note": "of a later version"}) == ROWS[0]
    with pytest.raises(ValueError, match=r"a row of results is not complete: .*'top1'"):
        Result.of({name: value for name, value in whole.items() if name != "top1"})
