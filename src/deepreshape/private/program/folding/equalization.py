"""Scales moved between layers, by channel, so that all values use the bits that they are given.

A ReLU, a sum, a pool or a choice of elements passes a positive factor on. So a channel can be multiplied by s in the
layer that makes it and divided by s in the layers that read it, and nothing changes; with powers of two no bit does
(cross-layer equalization: Nagel et al., ICCV 2019, arXiv:1906.04721, equation 7). What passes factors on to one another
is one component. With r the largest value of a component, w the largest weight that reads it, and R and W what is
typical of values and of that layer's weights, s = sqrt((w / W) / (r / R)) makes both use the same share of their bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Filled,
    Flat,
    Graph,
    Layer,
    Pick,
    Pool,
    PublicAffine,
    Rectify,
    Stack,
    Sum,
    Zero,
)
from deepreshape.private.program.ops import INPUT

__all__ = ["equalized"]

Real = NDArray[np.float64]
Rows = Mapping[str, Real]
ROUNDS = 20
"""By half of the distance each, so that what spans many bits is level to less than one."""
LEAST = 3
"""Powers of two below this one are left as they are."""


def equalized(graph: Graph, rows: Rows) -> tuple[Graph, dict[str, Real]] | None:
    """The graph with scales moved, and its values' largest; None if they are level already.

    Args:
        graph: only ``Layer`` in it.
        rows: the largest absolute value of each row of each value, and of ``"input"``.
    """
    components = _Components(graph, rows)
    powers = components.powers(rows)
    if not powers.any():
        return None
    scales = {name: np.ldexp(1.0, powers[components.of[name]]) for name in rows}
    layers = [_moved(layer, scales) for layer in cast(list[Layer], graph.layers)]
    return Graph(layers, graph.outputs, graph.shapes), {name: seen * scales[name] for name, seen in rows.items()}


class _Components:
    """Which rows of which values have one scale.

    Attributes:
        of: for each value, the component of each row.
        fixed: by component, whether its scale is 1.
    """

    def __init__(self, graph: Graph, rows: Rows) -> None:
        self.layers = cast(list[Layer], graph.layers)
        starts, total = dict[str, int](), 0
        for name, seen in rows.items():
            starts[name] = total
            total += len(seen)
        self._parent = np.arange(total)
        numbers = {name: starts[name] + np.arange(len(seen)) for name, seen in rows.items()}
        fixed = [numbers[name] for name in (INPUT, *graph.outputs)]
        for layer in self.layers:
            ties = _ties(layer, numbers, graph.shapes)
            if ties is None:
                fixed += [numbers[name] for name in (layer.name, *layer.inputs)]
            else:
                for one, other in ties:
                    self._tie(one, other)
        roots = np.array([self._root(number) for number in range(total)])
        known, component = np.unique(roots, return_inverse=True)
        self.of = {name: component[numbers[name]] for name in rows}
        self.fixed = np.zeros(len(known), np.bool_)
        self.fixed[component[np.concatenate(fixed)]] = True

    def _root(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    def _tie(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        for left, right in zip(one.tolist(), other.tolist(), strict=True):
            self._parent[self._root(left)] = self._root(right)

    def powers(self, rows: Rows) -> NDArray[np.int64]:
        """The power of two by which each component is to be multiplied."""
        linear = [layer for layer in self.layers if isinstance(layer, Conv | Dense)]
        multiplied = {layer.name for layer in linear}
        scale = np.zeros(len(self.fixed))  # log2
        columns = {layer.name: _columns(layer) for layer in linear}
        for _ in range(ROUNDS):
            values = np.full(len(scale), -np.inf)
            for name, seen in rows.items():
                if name not in multiplied:
                    _raise_to(values, self.of[name], _log2(seen) + scale[self.of[name]])
            weights = np.full(len(scale), -np.inf)
            for layer in linear:
                column = _log2(columns[layer.name]) - scale[self.of[layer.inputs[0]]]
                if np.isfinite(column.max()):
                    _raise_to(weights, self.of[layer.inputs[0]], column - column.max())
            moving = ~self.fixed & np.isfinite(values) & np.isfinite(weights)
            if not moving.any():
                break
            largest = [
                (_log2(seen) + scale[self.of[name]]).max() for name, seen in rows.items() if name not in multiplied
            ]
            typical = np.median([each for each in largest if np.isfinite(each)])
            scale[moving] += (weights[moving] - values[moving] + typical) / 2
        powers = np.rint(np.clip(scale, -40, 40)).astype(np.int64)
        return np.where(np.abs(powers) < LEAST, 0, powers)


def _log2(values: Real) -> Real:
    return np.log2(values, out=np.full(values.shape, -np.inf), where=values > 0)


def _raise_to(values: Real, at: NDArray[np.int64], least: Real) -> None:
    np.maximum.at(values, at, least)


def _columns(layer: Conv | Dense) -> Real:
    """The largest absolute weight that reads each row of the input."""
    weight = np.abs(layer.weight.reshape(*layer.weight.shape[:2], -1)).max(2)
    groups = layer.groups if isinstance(layer, Conv) else 1
    return weight.reshape(groups, len(weight) // groups, -1).max(1).reshape(-1)


def _ties(
    layer: Layer, numbers: Mapping[str, NDArray[np.int64]], shapes: Mapping[str, Sequence[int]]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]] | None:
    """Pairs of rows, by number, that have one scale; None if a layer passes none on."""
    result, sources = numbers[layer.name], [numbers[name] for name in layer.inputs]
    match layer:
        case Conv() | Dense():
            return []
        case Rectify() | Zero() | Filled() | Pool() | Sum():
            return [(result, source) for source in sources]
        case PublicAffine() if not layer.offset:
            return [(result, sources[0])]
        case Flat():
            return [(result, np.repeat(sources[0], prod(shapes[layer.inputs[0]][1:])))]
        case Stack():
            return [(result, np.concatenate(sources))]
        case Pick():
            rows = layer.rows(tuple(shapes[layer.inputs[0]]))
            pairs = np.unique(np.stack([np.repeat(np.arange(len(rows)), rows.shape[1]), rows.reshape(-1)]), axis=1)
            pairs = pairs[:, pairs[1] >= 0]
            return [(result[pairs[0]], sources[0][pairs[1]])]
        case _:
            return None


def _moved(layer: Layer, scales: Rows) -> Layer:
    """A layer whose input and result are at other scales."""
    if isinstance(layer, Filled):
        return replace(layer, constants=layer.constants * scales[layer.name])
    if not isinstance(layer, Conv | Dense):
        return layer
    before, behind = scales[layer.inputs[0]], scales[layer.name]
    groups = layer.groups if isinstance(layer, Conv) else 1
    outs, fan_in, *kernel = layer.weight.shape
    rest = [1] * len(kernel)
    each = np.repeat(before.reshape(groups, fan_in), outs // groups, axis=0).reshape(outs, fan_in, *rest)
    return replace(layer, weight=layer.weight * behind.reshape(-1, 1, *rest) / each, bias=layer.bias * behind)
