"""Squares are priced by layers and by program alike, and beside ReLUs of the same shape."""

from __future__ import annotations

import pytest
import torch

from deepreshape.cost import LINKS, ReluLayer, SquareLayer
from deepreshape.counting import count
from deepreshape.models import architecture, build
from deepreshape.pricing.compare import WAYS, compare
from deepreshape.pricing.quote import Terms, quote_layers, quote_program
from deepreshape.private.program.lower import lower

SHAPE = (1, 8, 8)


def network():
    torch.manual_seed(0)
    return build(architecture("resnet18-m2-herpn", SHAPE, 10)).train()


def test_a_network_of_squares_costs_by_its_layers_what_its_program_costs():
    model = network()
    x = torch.randn(16, *SHAPE)
    for _ in range(60):
        model(x)
    lowered = lower(model, x.numpy())
    by_layers = quote_layers(count(model, SHAPE).layers, Terms(bits=lowered.program.modulus.bits))
    exact = quote_program(lowered.program, Terms())
    assert by_layers.squares == exact.squares == lowered.program.squares > 0
    assert by_layers.online.rounds == exact.online.rounds
    ours, theirs = (quote.report.only(kind="square", phase="online").bytes for quote in (by_layers, exact))
    assert abs(ours / theirs - 1) < 0.15
    assert "squares cost" in exact.advice
    facts = exact.to_dict()
    assert facts["squares"] == sum(row["squares"] for row in facts["layers"])


def test_the_same_shape_in_five_ways():
    shapes = [count(build(architecture(name)), (3, 32, 32)).layers for name in ("resnet20", "resnet20-herpn")]
    first, second = (compare(layers, Terms(link=LINKS["wan"])) for layers in shapes)
    assert [quote.protocol for quote in first] == [*WAYS]
    assert [(quote.relus, quote.squares) for quote in first] == [(188_416, 0)] * 4 + [(0, 188_416)]
    assert [quote.report.bytes for quote in first] == [quote.report.bytes for quote in second]
    full, *_, squares = first
    assert squares.online.bytes * 20 < full.online.bytes
    assert squares.online.rounds == full.online.rounds


def test_relus_and_squares_of_one_map_wait_once():
    layers = count(build(architecture("resnet18-m2", SHAPE, 10)), SHAPE).layers
    at = next(number for number, layer in enumerate(layers) if isinstance(layer, ReluLayer))
    relu = layers[at]
    mixed = [*layers[:at], ReluLayer(relu.name, 5, 5), SquareLayer(relu.name, relu.relus - 5), *layers[at + 1 :]]
    whole, parts = (quote_layers(each, Terms()) for each in (layers, mixed))
    assert whole.online.rounds == parts.online.rounds
    assert (parts.relus, parts.squares) == (whole.relus - relu.relus + 5, relu.relus - 5)
    assert [quote.relus for quote in compare(mixed, Terms())] == [whole.relus] * 4 + [0]


def test_published_systems_price_no_squares():
    layers = count(network(), SHAPE).layers
    with pytest.raises(ValueError, match=r"the published systems price no squares, .* our runtime does"):
        quote_layers(layers, Terms("server-garbler"))
