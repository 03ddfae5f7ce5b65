"""The proxy against the trained points it rests on; the search against its own limits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command_line import answer, call

from deepreshape.cost import LINKS
from deepreshape.counting import count
from deepreshape.design.search import PROXY, Limit, Proxy, Space, score_choice, search, undominated
from deepreshape.models import build
from deepreshape.pricing.quote import Terms, quote_layers

POINTS = Path(__file__).parents[2] / "benchmarks" / "results" / "cifar100-coarse.jsonl"
SPACE = Space((3, 16, 16), 10, ("server-garbler",), bases=(1, 3))
TERMS = Terms("server-garbler", link=LINKS["lan"])
LIMIT = Limit("seconds", 8.0)
WIDE = replace(PROXY, fitted=((1, 10**12),) * 3)


def PRICE(layers, protocol):  # noqa: N802 - as constant as what it closes over
    return quote_layers(layers, replace(TERMS, protocol=protocol))


def test_the_proxy_is_the_one_fitted_to_the_trained_points():
    rows = [json.loads(line) for line in POINTS.read_text().splitlines()]
    proxy = Proxy.fit(rows)
    assert (proxy.points, proxy.correlation) == (PROXY.points, PROXY.correlation)
    assert (proxy.fitted, proxy.data) == (PROXY.fitted, PROXY.data)
    assert (proxy.relus, proxy.macs, proxy.params) == pytest.approx((PROXY.relus, PROXY.macs, PROXY.params), abs=2e-3)
    assert proxy.correlation > 0.95


def test_a_proxy_that_follows_the_law_ranks_networks_it_has_not_seen():
    points = [(f"n{at % 4}", 1000 * (at + 1), 10**6 * (1 + at % 7), 10**4 * (1 + at % 5)) for at in range(16)]
    law = Proxy(2, 3, 1, 0, 0, (), ())
    rows = [
        {
            "network": name,
            "relus": relus,
            "macs": macs,
            "params": params,
            "top1": law.score(relus, macs, params),
            "data": "d",
        }
        for name, relus, macs, params in points
    ]
    proxy = Proxy.fit(rows)
    assert (proxy.relus, proxy.macs, proxy.params, proxy.correlation) == pytest.approx((2, 3, 1, 1))
    with pytest.raises(ValueError, match="7 points of 4 networks are too few"):
        Proxy.fit(rows[:7])
    assert Proxy.fit([*rows, {**rows[0], "relus": 0, "top1": 1.0}]) == proxy
    with pytest.raises(ValueError, match="some of these points have another metric"):
        Proxy.fit([*rows, {**{name: value for name, value in rows[0].items() if name != "top1"}, "miou": 1.0}])


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_a_candidate_counts_as_the_built_network_does(seed: int, stages: int):
    candidates = list(search(replace(SPACE, stages=stages), PRICE, [Limit("bytes", 1e12)], 2, proxy=WIDE, seed=seed))
    for candidate in candidates:
        network = candidate.plan.architecture
        assert len(network.phi) == stages
        counted = count(build(network, "meta"), network.input)
        total = counted.total
        assert (candidate.relus, candidate.macs, candidate.params) == (total.relus, total.macs, total.params)
        quote = quote_layers(counted.layers, TERMS)
        assert (candidate.seconds, candidate.bytes) == pytest.approx((quote.seconds, quote.report.bytes))


def test_the_search_keeps_its_limit_repeats_itself_and_gets_better():
    candidates = list(search(SPACE, PRICE, [LIMIT], 120, proxy=WIDE, seed=1))
    assert candidates
    assert all(candidate.seconds <= LIMIT.most for candidate in candidates)
    assert candidates == list(search(SPACE, PRICE, [LIMIT], 120, proxy=WIDE, seed=1))
    best = undominated(candidates, LIMIT)
    assert best[0].score == max(candidate.score for candidate in candidates)
    assert best[0] in candidates[len(candidates) // 3 :]  # what comes after the random half builds on it
    assert [candidate.seconds for candidate in best] == sorted((c.seconds for c in best), reverse=True)
    assert len({candidate.choice for candidate in candidates}) == len(candidates)


def test_what_has_no_such_plan_is_no_candidate():
    choice = SPACE.draw(lambda name, low, high: high)
    assert score_choice(replace(choice, plan=99), SPACE, PRICE, WIDE) is None


def test_nothing_is_proposed_that_the_proxy_was_not_fitted_on():
    small = replace(WIDE, fitted=((1, 2_000), (1, 10**6), (1, 10**5)))
    candidates = list(search(SPACE, PRICE, [Limit("bytes", 1e12)], 30, proxy=small))
    assert candidates
    assert all(c.relus <= 2_000 and c.macs <= 10**6 and c.params <= 10**5 for c in candidates)
    assert list(search(replace(SPACE, input=(3, 32, 32)), PRICE, [Limit("bytes", 1e12)], 5, proxy=small)) == []


def test_the_score_says_what_it_is():
    assert (
        PROXY.name == "1.487 ln relus + 3.151 ln macs + 1.199 ln params: points of top-1 on cifar100 up to a constant"
    )


def test_search_prints_its_front_and_trains_the_best(tmp_path: Path):
    small = ("search", "--protocol", "server-garbler", "--max-bytes", "4e8", "--input", "1x8x8", "--classes", "10")
    points = [(f"n{at % 4}", 10 + 500 * at, 10**3 + 10**7 * at, 10**3 + 10**6 * (at % 7)) for at in range(16)]
    law = Proxy(2, 3, 1, 0, 0, (), ())
    rows = [
        {"network": name, "relus": relus, "macs": macs, "params": params, "top1": law.score(relus, macs, params)}
        for name, relus, macs, params in points
    ]
    (tmp_path / "known").mkdir()
    lines = [json.dumps(row | {"data": "digits"}) for row in rows]
    (tmp_path / "known" / "results.jsonl").write_text("\n".join(lines))
    words = (
        *small,
        "--trials",
        "24",
        "--evidence",
        "known",
        "--train",
        "1",
        "--data",
        "digits",
        "--set",
        "epochs=1",
        "--out",
        "there",
    )
    report = answer(*words, cwd=tmp_path)
    assert (report["proxy"]["rank_correlation"], report["proxy"]["points"]) == (pytest.approx(1, abs=1e-3), 16)
    assert report["proxy"]["fitted_on"]["relus"] == [10, 7510]
    assert "top-1 on digits" in report["proxy"]["score"]
    assert all(candidate["bytes"] <= 4e8 for candidate in report["front"])
    (row,) = report["trained"]
    assert (row["network"], row["relus"]) == (report["front"][0]["network"], report["front"][0]["relus"])
    assert answer(*words, cwd=tmp_path)["trained"] == [row]  # nothing is trained twice
    assert answer("report", "there", cwd=tmp_path)
    assert not list((tmp_path / "there" / "runs").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give at least one of --max-seconds, --max-bytes, --max-relus and --max-macs"),
        (("--max-relus", "-3"), "--max-relus is a number above 0, not -3.0"),
        (
            ("--trials", "3", "--max-macs", "36e6", "--max-relus", "1"),
            "no design keeps within 1 ReLUs and 3.6e+07 multiply-adds and within what",
        ),
        (("--max-seconds", "1", "--train", "2"), "--train 2 needs --out"),
        (("--max-seconds", "1", "--link", "lan,wan"), "--link takes one link to search under, not 'lan,wan'"),
        (("--max-seconds", "1", "--protocol", "gc-full,spdz"), "unknown protocol 'spdz'"),
        (
            ("--max-bytes", "10", "--trials", "4", "--protocol", "server-garbler"),
            "no design keeps within 10 bytes and within what the score was fitted on (5,888 to 139,264 relus",
        ),
    ],
)
def test_wrong_searches_say_so(words: tuple[str, ...], message: str, tmp_path: Path):
    done = call("search", *words, cwd=tmp_path)
    assert done.code == 2
    assert message in done.err


def test_all_of_several_limits_are_kept():
    limits = [Limit("relus", 4_000), Limit("macs", 3e6), LIMIT]
    kept = list(search(SPACE, PRICE, limits, 120, proxy=WIDE, seed=1))
    assert kept
    assert all(each.relus <= 4_000 and each.macs <= 3e6 and each.seconds <= LIMIT.most for each in kept)
    alone = list(search(SPACE, PRICE, limits[:1], 120, proxy=WIDE, seed=1))
    assert any(each.macs > 3e6 for each in alone)
    assert [each.relus for each in undominated(kept, limits[0])] == sorted(
        (each.relus for each in undominated(kept, limits[0])), reverse=True
    )
