import re
from dataclasses import replace

import pytest
from support.results import ROWS, row

from deepreshape.report import picture, render


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


def test_a_report_of_points_without_a_published_price_has_no_column_and_no_chart_of_it():
    squares = replace(row("base-herpn", 0, 88.0), priced_seconds={})
    html = render([*ROWS, squares], baseline="base", settings="", command="")
    assert "server-garbler" not in html
    assert html.count("<svg") == 2
    assert "88.00" in html


def test_networks_without_a_relu_are_reported_without_a_chart_of_relus():
    squares = [replace(row(name, 0, 88.0), macs=100, priced_seconds={}) for name in ("a", "b")]
    html = render(squares, baseline="a", settings="", command="")
    assert html.count("<svg") == 1
    assert "multiply-adds" in html
    with pytest.raises(ValueError, match="none of these networks has a ReLU"):
        picture(squares)


def test_a_report_on_the_digits_says_what_they_do_not_show():
    words = "not which network is better"
    assert words in render(ROWS, baseline="base", settings="", command="")
    elsewhere = [replace(each, data="cifar100") for each in ROWS]
    assert words not in render(elsewhere, baseline="base", settings="", command="")
