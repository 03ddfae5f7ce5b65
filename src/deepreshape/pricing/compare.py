"""One network's shape under several ways to compute its nonlinear layers, priced by its layers over one link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deepreshape.cost import Layer, Quote, ReluLayer, SignLayer, SquareLayer
from deepreshape.pricing.quote import Terms, quote_layers

__all__ = ["WAYS", "compare"]

WAYS = ("gc-full", "gc-sign", "ot", "auto", "squares")
"""Ways to compute ReLUs, with ``auto`` the best layer by layer, and squares, for which a network must be trained."""


def compare(layers: Sequence[Layer], terms: Terms) -> list[Quote]:
    """A quote for each of :data:`WAYS`, whatever the network has now: the same counts as ReLUs or as squares.

    None of a network with signs, whose shape says nothing without them.

    Args:
        layers: as a count gives them.
        terms: of our runtime; its protocol is not looked at.

    Raises:
        ValueError: as :func:`quote_layers`.
    """
    quotes: list[Quote] = []
    if any(isinstance(layer, SignLayer) for layer in layers):
        return quotes
    for way in WAYS:
        word = "gc-full" if way == "squares" else way
        quote = quote_layers(list(_alike(layers, squares=way == "squares")), replace(terms, protocol=word))
        quotes.append(replace(quote, protocol=way))
    return quotes


def _alike(layers: Sequence[Layer], *, squares: bool) -> Iterator[Layer]:
    """The layers with all that is not linear as squares, or as ReLUs."""
    relus: ReluLayer | None = None
    for layer in [*layers, None]:
        if isinstance(layer, SquareLayer) and relus is not None and relus.name == layer.name:
            relus = replace(relus, relus=relus.relus + layer.squares, elements=relus.elements + layer.squares)
            continue
        if relus is not None:
            yield from _written(relus, squares=squares)
        relus = layer if isinstance(layer, ReluLayer) else None
        if isinstance(layer, SquareLayer):
            relus = ReluLayer(layer.name, layer.squares, layer.squares)
        elif layer is not None and relus is None:
            yield layer


def _written(layer: ReluLayer, *, squares: bool) -> Iterator[Layer]:
    if not squares or not layer.relus:
        yield layer
        return
    if layer.elements > layer.relus:
        yield ReluLayer(layer.name, 0, layer.elements - layer.relus)
    yield SquareLayer(layer.name, layer.relus)
