import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.results import ROWS, row

from deepreshape.report import advantages, pareto_front, summarize, verdict


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


def test_the_verdict_follows_from_the_numbers():
    gains = advantages(summarize(ROWS), "base")
    assert "1 of 1 other points are ahead of base" in verdict(gains, "base")
    assert "1 of them differ by more than twice" in verdict(gains, "base")
    assert "0 of 1" in verdict(advantages(summarize([*ROWS[:4], row("hrn", 500, 60.0)]), "base"), "base")
    assert "one seed" in verdict(advantages(summarize([ROWS[0], ROWS[2], ROWS[4]]), "base"), "base")
    assert "nothing can be said" in verdict((), "base")
