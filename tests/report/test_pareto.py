from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.results import ROWS, row

from deepreshape.report import Summary, advantages, pareto_front, seconds_basis, summarize, verdict
from deepreshape.report.pareto import BOTH, MACS


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]):
    best = pareto_front(points)
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


def test_what_has_no_relu_is_compared_with_its_like_alone():
    rows = [row("base", 0, 50.0), row("base", 100, 60.0), row("hrn", 0, 55.0), row("hrn", 10, 56.0)]
    (gain,) = advantages(summarize([replace(each, plan=str(each.relus)) for each in rows]), "base")
    assert (gain.point.relus, gain.gain) == (0, 5.0)


def test_what_a_method_left_is_compared_with_what_the_same_method_left_of_the_baseline():
    rows = [
        row(network, 500, top1, plan=f"{method} 500", method=method)
        for network, method, top1 in (("base", "snl", 60.0), ("base", "coarse", 50.0), ("hrn", "snl", 61.5))
    ]
    (gain,) = advantages(summarize(rows), "base")
    assert (gain.point.network, gain.baseline, gain.gain) == ("hrn, snl", 60.0, 1.5)
    assert "1 of 1 other points between two of base's are ahead of it, each against the same method: from" in verdict(
        (gain,), "base"
    )
    against = advantages(summarize(rows), "base, coarse")
    assert [each.gain for each in against] == [10.0, 11.5]
    assert "2 of 2 other points between two of base, coarse's are ahead of it: from" in verdict(against, "base, coarse")


def networks(*points: tuple[str, int, float, float]) -> tuple[Summary, ...]:
    """Points of (network, ReLUs, millions of multiply-adds, top-1)."""
    rows = [
        replace(row(name, relus, top1, plan=f"{relus}"), macs=int(1e6 * macs), budget=relus)
        for name, relus, macs, top1 in points
    ]
    return summarize(rows)


def test_at_equal_multiply_adds_the_baseline_is_also_its_wider_relatives():
    points = networks(
        ("resnet18-m16", 50, 35, 60.0), ("resnet18-m22", 50, 66, 63.0), ("hrn-m4", 50, 66, 62.0), ("hrn-m3", 50, 50, 61)
    )
    assert [gain.gain for gain in advantages(points, "resnet18-m16")] == [3.0, 2.0, 1.0]
    (gain,) = advantages(points, "resnet18-m16", MACS)
    assert (gain.point.network, gain.gain) == ("hrn-m4", -1.0)
    more = networks(("resnet18-m16", 51, 35, 99.0), ("resnet18-m22", 51, 66, 99.0))
    assert advantages((*points, *more), "resnet18-m16", MACS) == (gain,)  # other budgets are not compared


def test_at_equal_relus_and_multiply_adds_both_are():
    points = networks(
        ("base-m2", 100, 10, 60.0), ("base-m2", 25, 10, 50.0), ("base-m3", 50, 20, 80.0), ("hrn", 50, 11, 56.0)
    )
    (gain,) = advantages(points, "base-m2", BOTH)
    assert (gain.point.network, gain.baseline) == ("hrn", pytest.approx(55.0))
    assert advantages(networks(("base-m2", 100, 10, 60.0), ("hrn", 50, 11, 56.0)), "base-m2", BOTH) == ()


def test_at_equal_seconds_the_best_of_the_baselines_widths_stands_for_it():
    points = networks(
        ("base-m2", 100, 10, 60.0), ("base-m3", 100, 20, 70.0), ("base-m4", 100, 40, 65.0), ("hrn", 90, 15, 68.0),
        ("unpriced", 90, 15, 99.0), ("slow", 90, 15, 71.0),
    )  # fmt: skip
    seconds = {"base-m2": 1.0, "base-m3": 2.0, "base-m4": 4.0, "hrn": 2.0, "slow": 3.0}
    priced = {(name, plan): value for name, value in seconds.items() for plan in ("90", "100")}
    basis = seconds_basis("gc-full, wan", priced)
    gains = advantages(points, "base-m2", basis)
    assert [(gain.point.network, gain.baseline) for gain in gains] == [("hrn", 70.0), ("slow", 70.0)]
    assert "At equal predicted seconds (gc-full, wan), 1 of 2" in verdict(gains, "base-m2", basis)


def test_the_verdict_follows_from_the_numbers():
    gains = advantages(summarize(ROWS), "base")
    assert "1 of 1 other points between two of base's are ahead of it" in verdict(gains, "base")
    assert "1 of them differ by more than twice" in verdict(gains, "base")
    assert "0 of 1" in verdict(advantages(summarize([*ROWS[:4], row("hrn", 500, 60.0)]), "base"), "base")
    assert "one seed" in verdict(advantages(summarize([ROWS[0], ROWS[2], ROWS[4]]), "base"), "base")
    assert "nothing can be said" in verdict((), "base")
