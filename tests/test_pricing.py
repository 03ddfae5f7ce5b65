"""Quotes: their sums, their shares, their advice, and the command that prints them."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.command_line import answer, call

from deepreshape.cost import LINKS, Cost, CostReport, Link, Profile, Quote, reference
from deepreshape.counting import count
from deepreshape.models import architecture, build
from deepreshape.pricing.quote import PROTOCOLS, Terms, quote_layers


def quoted(linear: float, relu: float, rounds: int = 0, link: Link = LINKS["lan"]) -> Quote:
    rows = (
        Cost("conv", "offline", "he", linear),
        Cost("act", "offline", "garble", relu / 2, relus=1000),
        Cost("act", "online", "evaluate", relu / 2, relus=1000, rounds=rounds),
    )
    return Quote("gc-full", "server", link, "made up", CostReport(rows))


def small():
    shape = architecture("resnet18-m4", (3, 16, 16), 10)
    return count(build(shape, "meta"), shape.input).priced_layers


def test_shares_belong_to_layers_and_what_they_send():
    sent = Quote(
        "server-garbler",
        "server",
        LINKS["lan"],
        "",
        CostReport(
            (Cost("a", "offline", "he", 1), Cost("a", "offline", "send", 2), Cost("b", "online", "evaluate", 1))
        ),
    )
    assert (sent.linear_share, sent.relu_share) == (0.75, 0.25)
    assert quoted(1, 3).relu_share == 0.75


@pytest.mark.parametrize(
    ("quote", "words"),
    [
        (quoted(1, 9), "ReLUs take 90% of the time: half as many save about 45%, and act alone takes 90%"),
        (quoted(9, 1), "Linear layers take 90% of the time: removing every ReLU gains at most 10%"),
        (quoted(99, 1), "removing ReLUs gains nearly nothing here"),
        (quoted(1, 1, 50, Link(1e9, 1e9, 0.02)), "Waiting takes 100% of the time on this link: 50 round trips"),
    ],
)
def test_advice_follows_from_the_numbers(quote: Quote, words: str):
    assert words in quote.advice


def test_below_the_advised_count_the_rest_is_worth_less_than_five_percent():
    quote = quoted(9, 1)
    enough = int(quote.advice.split("about ")[1].split()[0].replace(",", ""))
    left = enough / quote.relus * 1
    assert left / (9 + left) == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("link", ["lan", "wan"])
def test_a_worse_link_costs_more_and_sums_agree(protocol: str, link: str):
    quote = quote_layers(small(), Terms(protocol, link=LINKS[link]))
    facts = quote.to_dict()
    for unit in ("seconds", "bytes"):
        assert sum(row[unit]["total"] for row in facts["layers"]) == pytest.approx(facts[unit]["total"], rel=1e-3)
    assert facts["relus"] == 4 * (2 * 256 + 2 * 256 + 256) + 2 * (8 * 64 * 2 + 16 * 16 * 2 + 32 * 4 * 2)
    assert quote.seconds > quote_layers(small(), Terms(protocol, link=Link(1e12, 1e12))).seconds


def test_workers_and_slots_never_cost_more():
    terms = Terms(link=Link(50e6, 50e6, 0.01))
    alone = quote_layers(small(), terms)
    assert quote_layers(small(), replace(terms, workers=4)).seconds == alone.seconds  # too little to share
    assert quote_layers(small(), replace(terms, slots=True)).seconds < alone.seconds


def test_workers_pay_where_there_are_many_products():
    shape = architecture("hrn-5x5x3x-m8", (3, 32, 32), 10)
    layers = count(build(shape, "meta"), shape.input).priced_layers
    seconds = [quote_layers(layers, Terms(workers=workers)).seconds for workers in (1, 2, 3)]
    assert seconds == sorted(seconds, reverse=True)


def test_max_pool_comparisons_are_priced_as_relus():
    shape = architecture("resnet9", (3, 32, 32), 10)
    counted = count(build(shape, "meta"), shape.input)
    total = counted.total
    assert total.maxpool_comparisons
    assert quote_layers(counted.priced_layers, Terms()).relus == total.relus + total.maxpool_comparisons


def test_the_reference_profile_says_what_it_is():
    profile = reference()
    assert profile.machine["cpu"]
    assert profile.versions["numpy"]
    assert min(profile.units.values()) >= 0
    assert all(profile.units[unit] > 0 for unit in ("gc-full.server.garble", "he2.encrypt", "ot.choose", "tls.send"))


def test_a_profile_comes_back_from_its_file(tmp_path: Path):
    (tmp_path / "p.json").write_text(reference().to_json())
    assert Profile.read(tmp_path / "p.json") == reference()
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(ValueError, match=r"q\.json is no profile .*; `deepreshape calibrate --out"):
        Profile.read(tmp_path / "q.json")


def test_cost_prints_the_fixed_shape_and_the_bytes_that_travel(tmp_path: Path):
    made = answer("cost", "resnet18-m2", "--protocol", "gc-full", "--link", "wan", "--plot", str(tmp_path / "a.svg"))
    assert {"seconds", "bytes", "rounds", "stored_bytes", "relu_share", "linear_share", "layers"} <= set(made)
    assert made["exact"]
    assert set(made["seconds"]) == set(made["bytes"]) == {"offline", "online", "total"}
    sent = answer("private", "local", "--model", "resnet18-m2")
    assert {phase: made["bytes"][phase] for phase in ("offline", "online")} == sent["bytes"]
    assert made["rounds"] == sent["rounds"]
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_arrivals_are_answered():
    words = ("--protocol", "server-garbler", "--arrivals", "2", "--storage", "16gb/10tb")
    found = answer("cost", "resnet18", "--classes", "10", *words)["arrivals"]
    assert found["stored_batches"] == 1
    assert 2 < found["sustainable_an_hour"] < found["limit_an_hour"]


def test_cost_prices_a_users_network_even_if_it_cannot_be_lowered(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GELU(),\n"
        "        nn.Flatten(), nn.Linear(36, 10))\n"
    )
    made = answer("cost", "mine.py:net", "--input", "3x8x8", "--link", "lan,wan", cwd=tmp_path)["quotes"]
    assert [quote["link"] for quote in made] == ["1000mbit/1000mbit/0.5ms", "100mbit/100mbit/50ms"]
    assert made[0]["relus"] == 144 + 108
    assert any("gelu" in note for note in made[0]["notes"])
    assert any("cannot be lowered" in note for note in made[0]["notes"])
    assert "say which callable makes the network, such as mine.py:net" in call("cost", "mine.py", cwd=tmp_path).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--link", "dsl"), "unknown link 'dsl'; known are loopback"),
        (("--protocol", "spdz"), "unknown protocol 'spdz'; known are gc-full"),
        (("--garbler", "me"), "--garbler is server or client, not 'me'"),
        (("--profile", "none.json"), "none.json is no profile"),
        (("--storage", "16", "--arrivals", "5"), "--storage takes client/server in mb, gb or tb, such as 16gb/10tb"),
    ],
)
def test_wrong_terms_are_refused(words: tuple[str, ...], message: str, tmp_path: Path):
    done = call("cost", "resnet18-m2", *words, cwd=tmp_path)
    assert done.code == 2
    assert message in done.err
