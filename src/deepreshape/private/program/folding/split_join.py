"""Splits whose parts are convolved and joined again, which is how reused ReLUs are written, as one convolution.

The ReLUs of some parts become one ReLU with a mask. Equal parts make a grouped convolution, which has no more MACs than
before. Others make a dense one with blocks of zeros and, for a part passed on, rows of the identity: up to three times
the MACs with the networks of this package, which the server spends on plain integers, but one layer with one set of
ciphertexts in and out where three layers would each fill their own. Every other split and join is kept as elements that
are chosen and values that are put behind one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepreshape.private.program.graph import Conv, Graph, Join, Layer, Part, Pick, Rectify, Stack, Zero

__all__ = ["resolve_joins"]


def resolve_joins(graph: Graph) -> None:
    """Leave no part and no join in a graph."""
    for join in [layer for layer in graph.layers if isinstance(layer, Join)]:
        merged = _merged(join, graph)
        if merged is None:
            graph.layers[graph.place(join.name)] = Stack(join.name, join.inputs)
            continue
        names = {layer.name for layer in merged} - {join.name}
        graph.layers = [layer for layer in graph.layers if layer.name not in names]
        at = graph.place(join.name)
        graph.layers[at : at + 1] = merged
        graph.shapes |= dict.fromkeys([layer.name for layer in merged], graph.shapes[join.name])
        graph.redirect(join.name, merged[-1].name)
        graph.remove_unread()
    for place, layer in enumerate(graph.layers):
        if isinstance(layer, Part):
            source = graph.shapes[layer.inputs[0]]
            whole = np.arange(np.prod(source), dtype=np.int32).reshape(source)
            graph.layers[place] = Pick(layer.name, layer.inputs, whole[layer.start : layer.stop])


@dataclass(frozen=True)
class _Piece:
    """One input of a join: a part of a value, perhaps convolved, perhaps rectified, perhaps 0 in places."""

    part: Part
    conv: Conv | None
    relu: Rectify | None
    zero: Zero | None

    @property
    def width(self) -> int:
        """Channels that it comes to."""
        return len(self.conv.weight) if self.conv else self.part.stop - self.part.start


def _piece(name: str, graph: Graph) -> _Piece | None:
    uses = graph.uses()
    layer, relu, conv, zero = graph.named(name), None, None, None
    if isinstance(layer, Zero) and uses[layer.name] == 1:
        zero, layer = layer, graph.named(layer.inputs[0])
    if isinstance(layer, Rectify) and uses[layer.name] == 1:
        relu, layer = layer, graph.named(layer.inputs[0])
    if isinstance(layer, Conv) and layer.groups == 1 and uses[layer.name] == 1:
        conv, layer = layer, graph.named(layer.inputs[0])
    return _Piece(layer, conv, relu, zero) if isinstance(layer, Part) else None


def _merged(join: Join, graph: Graph) -> list[Layer] | None:
    """One convolution, and a ReLU and zeros if there are any, for the parts that a join puts behind one another.

    None if they do not come from one value or are not convolved in one way.
    """
    pieces = [piece for name in join.inputs if (piece := _piece(name, graph))]
    sources = {piece.part.inputs[0] for piece in pieces}
    kinds = {(p.conv.weight.shape[2], p.conv.stride, p.conv.padding) for p in pieces if p.conv} or {(1, 1, 0)}
    if len(pieces) < len(join.inputs) or len(sources) > 1 or len(kinds) > 1 or not any(p.conv for p in pieces):
        return None
    (source,), ((kernel, stride, padding),) = sources, kinds
    if not all(piece.conv for piece in pieces) and (stride != 1 or 2 * padding + 1 != kernel):
        return None
    outs, channels = sum(piece.width for piece in pieces), graph.shapes[source][0]
    weight = np.zeros((outs, channels, kernel, kernel))
    bias = np.zeros(outs)
    shape = graph.shapes[join.name]
    mask, keep = np.zeros(shape, np.bool_), np.ones(shape, np.bool_)
    start = 0
    for piece in pieces:
        rows = slice(start, start + piece.width)
        if piece.conv:
            weight[rows, piece.part.start : piece.part.stop] = piece.conv.weight
            bias[rows] = piece.conv.bias
        else:
            weight[rows, piece.part.start : piece.part.stop, padding, padding] = np.eye(piece.width)
        if piece.relu:
            mask[rows] = True if piece.relu.mask is None else piece.relu.mask
        if piece.zero:
            keep[rows] = piece.zero.keep
        start += piece.width
    groups = _equal_groups(pieces, channels)
    if groups > 1:
        weight = np.concatenate([piece.conv.weight for piece in pieces if piece.conv])
    name = _name(join, graph)
    merged: list[Layer] = [Conv(name, (source,), weight, bias, stride, padding, groups)]
    rectified = [piece.relu.name for piece in pieces if piece.relu]
    if rectified:
        merged.append(Rectify(rectified[0], (name,), None if mask.all() else mask))
    zeros = [piece.zero.name for piece in pieces if piece.zero]
    if zeros:
        merged.append(Zero(zeros[0], (merged[-1].name,), keep))
    return merged


def _name(join: Join, graph: Graph) -> str:
    """The path of the module in which a join stands, if no layer has it."""
    name = join.name.rpartition(".")[0]
    return join.name if not name or graph.named(name) else name


def _equal_groups(pieces: Sequence[_Piece], channels: int) -> int:
    """As how many groups of one grouped convolution the pieces can be written; one if they cannot."""
    each, left = divmod(channels, len(pieces))
    starts = [piece.part.start for piece in pieces]
    same = all(piece.conv and piece.width == pieces[0].width for piece in pieces)
    return len(pieces) if same and not left and starts == [each * n for n in range(len(pieces))] else 1
