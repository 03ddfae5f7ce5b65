"""Quotes: their sums, their shares, their advice, and the command that prints them."""

from dataclasses import replace

import pytest

from deepreshape.cost import LINKS, Cost, CostReport, Link, Quote
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
    assert sum(row["relus"] for row in facts["layers"]) == facts["relus"]
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
