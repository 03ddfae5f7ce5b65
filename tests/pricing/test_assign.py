"""What auto chooses is the least of all assignments, from exact protocols alone unless the word says otherwise."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from support.programs import random_program

from deepreshape.cost import Layer, LinearLayer, Link, ReluLayer, SignLayer, SquareLayer
from deepreshape.pricing import quote as pricing
from deepreshape.pricing.assign import Objective, assign, candidates
from deepreshape.pricing.estimate import estimate_steps
from deepreshape.pricing.quote import Terms, chosen_relus, quote_layers, quote_program
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.ops import Relu
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import Assignment, ReluConfig, assigned, read_relus
from deepreshape.private.protocols.steps import Steps

SLOW, FAST = Link(2e6, 2e6, 0.02), Link(1e10, 1e10, 1e-5)


def network(counts: list[int], kind: type[ReluLayer | SignLayer] = ReluLayer) -> list[Layer]:
    """A 1x1 convolution before each layer of ReLUs, and one more behind."""
    layers: list[Layer] = []
    for at, count in enumerate(counts):
        layers.append(LinearLayer(f"conv{at}", 2, 2, (1, 1), 1, (4, 4), (4, 4), 64))
        layers.append(SignLayer(f"act{at}", count) if kind is SignLayer else ReluLayer(f"act{at}", count, count))
    return [*layers, LinearLayer("head", 2, 2, (1, 1), 1, (1, 1), (1, 1), 4)]


def with_relus() -> Program:
    """A program with several layers of ReLUs."""
    programs = (random_program(seed, linear=3) for seed in itertools.count())
    return next(program for program in programs if len(program.nonlinear) > 1)


def report_of(steps: Steps, terms: Terms):
    return pricing._schedule(steps, terms)[0]


def value(steps: Steps, terms: Terms) -> tuple[float, float]:
    report = report_of(steps, terms)
    online = report.only(phase="online").seconds
    values = {"seconds": (report.seconds, report.bytes), "bytes": (report.bytes, report.seconds)}
    return values.get(terms.objective, (online, report.seconds))


@pytest.mark.parametrize("objective", ["seconds", "bytes", "online"])
def test_the_choice_is_the_least_of_all_assignments(objective: Objective) -> None:
    rng, mixed = np.random.default_rng(6), 0
    for word in ("auto", "auto:cot=softspoken", "auto:cot=iknp,garbler=client"):
        for _ in range(2):
            layers = network([int(10 ** rng.uniform(1, 5.3)) for _ in range(3)])
            link = Link(
                10 ** rng.uniform(6, 10), 10 ** rng.uniform(6, 10), float(rng.choice([0, 10 ** rng.uniform(-4, -1)]))
            )
            terms = Terms(word, link=link, objective=objective)
            of = {config: estimate_steps(layers, config).steps for config in terms.candidates}
            places = next(iter(of.values())).nonlinear
            every = itertools.product(terms.candidates, repeat=len(places))
            assignments = (
                of[first[0]].with_flights({at: of[config].online[at] for at, config in zip(places, first, strict=True)})
                for first in every
            )
            best = min(value(steps, terms) for steps in assignments)
            quote = quote_layers(layers, terms)
            assert quote.assigned is not None
            chosen = read_relus(quote.assigned.word)
            assert value(estimate_steps(layers, chosen).steps, terms) == best
            mixed += isinstance(chosen, Assignment)
    assert mixed or objective == "bytes"


def test_mixed_steps_are_those_of_the_plan() -> None:
    configs = [ReluConfig.parse(word) for word in ("gc-sign", "ot:tree", "gc-full")]
    for seed in range(40):
        program = random_program(seed, linear=3).public()
        if len(program.nonlinear) < 2:
            continue
        uniform = [Plan(program, config).steps for config in configs]
        chosen = [configs[at % 3] for at in range(len(program.nonlinear))]
        flights = {place: uniform[at % 3].online[place] for at, place in enumerate(uniform[0].nonlinear)}
        exact = Plan(program, assigned(chosen)).steps
        assert [step.name for place in exact.nonlinear for step in exact.online[place][-1:]] == [*program.nonlinear]
        assert [*uniform[0].with_flights(flights).messages()] == [*exact.messages()]


def test_what_auto_may_choose_from() -> None:
    words = {word: [str(config) for config in candidates(word)] for word in ("auto", "auto:window", "ot:auto")}
    assert words["auto"] == ["gc-full", "gc-sign", "ot:chain", "ot:tree"]
    assert not any(config.window or config.drop for config in candidates("auto") if isinstance(config, ReluConfig))
    assert words["auto:window"][:4] == words["auto"]
    assert words["auto:window"][4:] == [
        "gc-sign:window",
        "gc-stochastic:window,pos-zero",
        "ot:window,chain",
        "ot:window,tree",
    ]
    assert words["ot:auto"] == ["ot:chain", "ot:tree"]
    assert [str(config) for config in candidates("ot:auto,window")][2:] == ["ot:window,chain", "ot:window,tree"]
    shared = [str(config) for config in candidates("auto:batch=64", "client", "iknp")]
    assert shared == [
        *("gc-full:garbler=client,batch=64", "gc-sign:garbler=client,batch=64"),
        *("ot:chain,cot=iknp,batch=64", "ot:tree,cot=iknp,batch=64"),
    ]
    assert candidates("ot:tree@2+gc-sign@1", "client") == (read_relus("ot:tree@2+gc-sign:garbler=client@1"),)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gc-sign:auto", "gc-sign leaves nothing to choose; there are auto and ot:auto"),
        ("auto:drop=3", "auto takes window, batch, cot, garbler, and no 'drop=3'"),
        ("ot:auto,tree", "auto takes window, batch, cot, and no 'tree'"),
        ("ot:auto,garbler=client", "and no 'garbler=client'"),
        ("automatic", "unknown protocol 'automatic'"),
    ],
)
def test_words_of_auto_that_make_no_sense(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Terms(word)


def test_the_next_best_is_what_the_whole_would_cost() -> None:
    layers = network([20_000, 300])
    terms = Terms("auto", link=SLOW)
    quote = quote_layers(layers, terms)
    assert quote.assigned is not None
    chosen = read_relus(quote.assigned.word)
    for number, row in enumerate(quote.assigned.choices):
        assert row.protocol == str(chosen.at(number))
        other = [chosen.at(at) for at in range(2)]
        other[number] = ReluConfig.parse(row.other)
        then = report_of(estimate_steps(layers, assigned(other)).steps, terms)
        assert then.bytes - quote.report.bytes == row.more_bytes
        assert then.seconds - quote.seconds == pytest.approx(row.more_seconds)
        assert row.relus == [20_000, 300][number]
    kinds = {"garble", "evaluate", "transfer", "compare"}
    assert sum(row.bytes for row in quote.assigned.choices) == sum(
        row.bytes_up + row.bytes_down for row in quote.report.rows if row.kind in kinds
    )


def test_windows_are_taken_only_where_the_word_allows_them() -> None:
    program = with_relus()
    ops = tuple(replace(op, low=1, high=6) if isinstance(op, Relu) else op for op in program.ops)
    program = replace(program, ops=ops).public()
    for word, windowed in (("auto", False), ("auto:window", True)):
        relu, why = chosen_relus(program, Terms(word, link=SLOW, objective="bytes"))
        assert why is not None
        taken = {relu.at(number).window for number in range(len(program.nonlinear))}
        assert taken == {windowed}
    assert chosen_relus(program, Terms("gc-sign")) == (ReluConfig("gc-sign"), None)


def test_signs_are_chosen_for_too() -> None:
    layers = [*network([50_000]), *network([64], SignLayer)]
    layers = [replace(layer, name=f"{at}.{layer.name}") for at, layer in enumerate(layers)]
    quote = quote_layers(layers, Terms("auto", link=SLOW, objective="bytes"))
    assert quote.assigned is not None
    assert quote.assigned.word == "ot:tree"
    relus, signs = quote.assigned.choices
    assert (signs.layer, signs.relus, relus.other) == ("4.act0", 64, "ot:chain")
    garbled = quote_layers(layers, Terms("ot:tree@1+gc-full@1", link=SLOW))
    assert {row.kind for row in garbled.report.rows if row.signs} == {"garble", "evaluate"}
    assert garbled.report.bytes > quote.report.bytes


def test_squares_have_the_transfers_that_are_named() -> None:
    layers = [*network([400]), SquareLayer("square", 50)]
    assert "cot=softspoken" in str(chosen_for(layers, Terms("auto", cot="softspoken", link=FAST)))
    none = [layer for layer in layers if not isinstance(layer, ReluLayer)]
    assert chosen_for(none, Terms("auto", cot="iknp")).squares.cot == "iknp"


def chosen_for(layers: list[Layer], terms: Terms) -> ReluConfig | Assignment:
    quote = quote_layers(layers, terms)
    assert quote.assigned is not None
    return read_relus(quote.assigned.word)


def test_a_network_without_relus_has_nothing_to_choose() -> None:
    quote = quote_layers(network([]), Terms("auto"))
    assert quote.assigned is not None
    assert (quote.assigned.word, quote.assigned.choices) == ("gc-full", ())


def test_of_two_that_cost_alike_the_first_is_taken() -> None:
    layers = network([100])
    configs = [ReluConfig.parse(word) for word in ("gc-sign", "gc-sign:window")]
    chosen = assign(configs, lambda relu: estimate_steps(layers, relu).steps, lambda steps: report_of(steps, Terms()))
    assert (chosen.relu, chosen.tried, chosen.choices[0].other) == (configs[0], 1, "")


def test_a_program_is_quoted_with_what_was_chosen_for_it() -> None:
    program = with_relus()
    terms = Terms("auto", link=SLOW)
    relu, why = chosen_relus(program, terms)
    quote = quote_program(program, terms)
    assert why is not None
    assert quote.assigned == why
    assert quote.report.bytes == Plan(program.public(), relu).declared().bytes
    assert quote.to_dict()["assigned"]["word"] == str(relu)
    again = replace(terms, protocol=str(relu))
    assert quote_program(program, again).report == quote.report
