"""The layers of a network with real weights, and how they are folded together before they become integers.

Everything here is exact in real arithmetic:

* A batch norm is folded into the convolution before it; one that follows an add (pre-activation networks) into the
  layer behind it, its shift only where that layer does not pad. Where neither is exact, it becomes a depthwise 1x1
  convolution.
* A pool's division is folded likewise; ``Pool`` does not divide.
* A split whose parts are convolved and joined again (reused ReLUs) becomes one convolution, and the ReLUs of some parts
  one ReLU with a mask. Equal parts make a grouped convolution, which has no more MACs than before. Others make a dense
  one with blocks of zeros and, for a part passed on, rows of the identity: up to three times the MACs with the networks
  of this package, which the server spends on plain integers, but one layer with one set of ciphertexts in and out where
  three layers would each fill their own.
* Two convolutions with nothing between them become one if that is exact and has fewer MACs: any before a 1x1; a 1x1
  before any that does not pad, or if the first has no bias. Two linear layers too. Not fused: two larger kernels,
  grouped convolutions, a convolution or pool into a linear layer behind it, and anything across an add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.program.ops import INPUT, ProgramError

__all__ = [
    "Affine",
    "Conv",
    "Dense",
    "Flat",
    "Join",
    "Layer",
    "Part",
    "Pool",
    "Quadratic",
    "Rectify",
    "Squared",
    "Sum",
    "Traced",
    "Zero",
    "simplify",
]

Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution with real weights (out, in / groups, kernel, kernel) and bias (out,); batch norm is inside."""

    name: str
    inputs: tuple[str, ...]
    weight: Real
    bias: Real
    stride: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer with real weights (out, in) and bias (out,)."""

    name: str
    inputs: tuple[str, ...]
    weight: Real
    bias: Real


@dataclass(frozen=True)
class Sum:
    """A sum of values of one shape."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """Sums (not means) over windows without padding."""

    name: str
    inputs: tuple[str, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Rectify:
    """A ReLU where ``mask`` (C, H, W) is true, the identity elsewhere; None is true everywhere."""

    name: str
    inputs: tuple[str, ...]
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Quadratic:
    """c0 + c1 x + c2 x^2 by channel, ``coefficients`` (C, 3); a ReLU where ``mask`` (C, H, W) is true."""

    name: str
    inputs: tuple[str, ...]
    coefficients: Real
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Squared:
    """(x + shift)^2 + constant by channel, both (C,); a ReLU where ``mask`` (C, H, W) is true."""

    name: str
    inputs: tuple[str, ...]
    shift: Real
    constant: Real
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Zero:
    """The value where ``keep`` (C, H, W) is true, 0 elsewhere."""

    name: str
    inputs: tuple[str, ...]
    keep: NDArray[np.bool_]


@dataclass(frozen=True)
class Flat:
    """(C, H, W) as one axis."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Affine:
    """scale * x + shift for each channel."""

    name: str
    inputs: tuple[str, ...]
    scale: Real
    shift: Real


@dataclass(frozen=True)
class Part:
    """Channels ``start`` to ``stop``."""

    name: str
    inputs: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Join:
    """Channels behind one another."""

    name: str
    inputs: tuple[str, ...]


Layer = Conv | Dense | Sum | Pool | Rectify | Quadratic | Squared | Zero | Flat
Traced = Layer | Affine | Part | Join
"""What a trace gives; :func:`simplify` leaves only the first kind."""

Shapes = dict[str, tuple[int, ...]]


def simplify(traced: Sequence[Traced], output: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """The layers that ``output`` needs, folded and fused; the last of them makes it.

    Args:
        traced: in the order in which they run.
        output: name of one of them.
        shapes: of each one's value for one input, and of ``"input"``.

    Raises:
        ProgramError: if a split or a join cannot be resolved, naming it.
    """
    known = dict(shapes)
    return _fuse(_fold_forward(_joined(traced, output, known), known), known)


def _joined(traced: Sequence[Traced], output: str, shapes: Shapes) -> list[Traced]:
    """The layers that the output needs, batch norms folded back where they can be, and splits and joins resolved."""
    layers = _alive(traced, output)
    _fold_back(layers)
    for join in [layer for layer in layers if isinstance(layer, Join)]:
        made = _merged(join, layers, shapes)
        names = {layer.name for layer in made} - {join.name}
        layers = [layer for layer in layers if layer.name not in names]
        at = layers.index(join)
        layers[at : at + 1] = made
        shapes |= dict.fromkeys([layer.name for layer in made], shapes[join.name])
        _redirect(layers, join.name, made[-1].name)
        layers = _alive(layers, layers[-1].name)
    for layer in layers:
        if isinstance(layer, Part):
            raise ProgramError(f"{layer.name}: a part of {layer.inputs[0]} that is not joined again cannot be lowered")
    return layers


def _alive(layers: Sequence[Traced], output: str) -> list[Traced]:
    """The layers that ``output`` depends on, which makes it the last."""
    needed, kept = {output}, list[Traced]()
    for layer in reversed(layers):
        if layer.name in needed:
            needed.update(layer.inputs)
            kept.append(layer)
    return kept[::-1]


def _redirect(layers: list[Traced], old: str, new: str) -> None:
    """Let those who read ``old`` read ``new``."""
    for index, layer in enumerate(layers):
        if old in layer.inputs and layer.name != new:
            inputs = tuple(new if name == old else name for name in layer.inputs)
            layers[index] = replace(layer, inputs=inputs)


def _uses(layers: Sequence[Traced]) -> Counter[str]:
    return Counter(name for layer in layers for name in layer.inputs)


def _fold_back(layers: list[Traced]) -> None:
    """Fold each affine map into the convolution or linear layer before it, or before the pool before it."""
    index = 0
    while index < len(layers):
        affine, places = layers[index], {layer.name: place for place, layer in enumerate(layers)}
        index += 1
        if not isinstance(affine, Affine) or _uses(layers)[affine.inputs[0]] != 1 or affine.inputs[0] == INPUT:
            continue
        scale, shift = affine.scale, affine.shift
        before = layers[places[affine.inputs[0]]]
        target = before
        if isinstance(before, Pool) and before.inputs[0] != INPUT and _uses(layers)[before.inputs[0]] == 1:
            # the windows are whole, so a sum over them scales and shifts like what it sums
            target, shift = layers[places[before.inputs[0]]], shift / prod(before.kernel)
        if not isinstance(target, Conv | Dense | Affine):
            continue
        if isinstance(target, Affine):
            made: Traced = replace(target, scale=target.scale * scale, shift=target.shift * scale + shift)
        else:
            rows = scale.reshape(-1, *[1] * (target.weight.ndim - 1))
            made = replace(target, weight=target.weight * rows, bias=target.bias * scale + shift)
        layers[places[target.name]] = made
        index -= 1
        del layers[index]
        _redirect(layers, affine.name, before.name)


def _fold_forward(layers: list[Traced], shapes: Shapes) -> list[Layer]:
    """Fold each affine map that is left into the layer behind it, past pools and flattening, or make it a layer."""
    index = 0
    while index < len(layers):
        affine = layers[index]
        if not isinstance(affine, Affine):
            index += 1
            continue
        users = [place for place, layer in enumerate(layers) if affine.name in layer.inputs]
        user = layers[users[0]] if len(users) == 1 else None
        if isinstance(user, Conv | Dense) and _absorbs(user, affine):
            layers[users[0]] = replace(_absorbed(user, affine), inputs=affine.inputs)
            del layers[index]
        elif isinstance(user, Flat | Pool):
            repeat = prod(shapes[affine.name][1:]) if isinstance(user, Flat) else 1
            summed = prod(user.kernel) if isinstance(user, Pool) else 1
            moved = replace(
                affine,
                inputs=(user.name,),
                scale=np.repeat(affine.scale, repeat),
                shift=np.repeat(affine.shift, repeat) * summed,
            )
            _redirect(layers, user.name, affine.name)
            layers[users[0]] = replace(user, inputs=affine.inputs)
            layers.insert(users[0] + 1, moved)
            shapes[affine.name] = shapes[user.name]
            del layers[index]
        else:
            layers[index] = _alone(affine, len(shapes[affine.name]))
            index += 1
    return cast(list[Layer], layers)


def _absorbs(layer: Conv | Dense, affine: Affine) -> bool:
    """Whether an affine map before ``layer`` folds into it exactly: what pads with zeros does not see a shift there."""
    return isinstance(layer, Dense) or layer.padding == 0 or not affine.shift.any()


def _absorbed(layer: Conv | Dense, affine: Affine) -> Conv | Dense:
    weight = layer.weight
    groups = layer.groups if isinstance(layer, Conv) else 1
    outs, fan_in, *kernel = weight.shape
    rest = [1] * len(kernel)
    per_output = np.repeat(affine.scale.reshape(groups, fan_in), outs // groups, axis=0).reshape(outs, fan_in, *rest)
    shifts = np.repeat(affine.shift.reshape(groups, fan_in), outs // groups, axis=0).reshape(outs, fan_in, *rest)
    bias = layer.bias + (weight * shifts).reshape(outs, -1).sum(1)
    return replace(layer, weight=weight * per_output, bias=bias)


def _alone(affine: Affine, axes: int) -> Layer:
    """An affine map as a layer of its own."""
    if axes == 1:
        return Dense(affine.name, affine.inputs, np.diag(affine.scale), affine.shift)
    weight = affine.scale.reshape(-1, 1, 1, 1)
    return Conv(affine.name, affine.inputs, weight, affine.shift, groups=len(weight))


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


def _piece(name: str, join: Join, layers: Sequence[Traced]) -> _Piece:
    by_name = {layer.name: layer for layer in layers}
    uses = _uses(layers)
    layer, relu, conv, zero = by_name.get(name), None, None, None
    if isinstance(layer, Zero) and uses[layer.name] == 1:
        zero, layer = layer, by_name.get(layer.inputs[0])
    if isinstance(layer, Rectify) and uses[layer.name] == 1:
        relu, layer = layer, by_name.get(layer.inputs[0])
    if isinstance(layer, Conv) and layer.groups == 1 and uses[layer.name] == 1:
        conv, layer = layer, by_name.get(layer.inputs[0])
    if not isinstance(layer, Part):
        raise ProgramError(
            f"{join.name}: joins {name}, which is no part of a split, convolved and rectified at most once; "
            "chained reuse and dense connections cannot be lowered"
        )
    return _Piece(layer, conv, relu, zero)


def _merged(join: Join, layers: Sequence[Traced], shapes: Shapes) -> list[Layer]:
    """One convolution, and a ReLU and zeros if there are any, for the parts that a join puts behind one another."""
    pieces = [_piece(name, join, layers) for name in join.inputs]
    sources = {piece.part.inputs[0] for piece in pieces}
    kinds = {(p.conv.weight.shape[2], p.conv.stride, p.conv.padding) for p in pieces if p.conv} or {(1, 1, 0)}
    if len(sources) > 1 or len(kinds) > 1:
        raise ProgramError(f"{join.name}: joins parts of {sorted(sources)} convolved in {len(kinds)} ways; one of each")
    (source,), ((kernel, stride, padding),) = sources, kinds
    if not all(piece.conv for piece in pieces) and (stride != 1 or 2 * padding + 1 != kernel):
        raise ProgramError(f"{join.name}: passes a part on beside convolutions that change the size of the map")
    outs = sum(piece.width for piece in pieces)
    weight = np.zeros((outs, shapes[source][0], kernel, kernel))
    bias = np.zeros(outs)
    mask, keep = np.zeros(shapes[join.name], np.bool_), np.ones(shapes[join.name], np.bool_)
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
    name = join.name.rpartition(".")[0]
    if not name or any(layer.name == name for layer in layers):
        name = join.name
    groups = _equal(pieces, shapes[source][0])
    if groups > 1:
        weight = np.concatenate([piece.conv.weight for piece in pieces if piece.conv])
    made: list[Layer] = [Conv(name, (source,), weight, bias, stride, padding, groups)]
    rectified = [piece.relu.name for piece in pieces if piece.relu]
    if rectified:
        made.append(Rectify(rectified[0], (name,), None if mask.all() else mask))
    zeros = [piece.zero.name for piece in pieces if piece.zero]
    if zeros:
        made.append(Zero(zeros[0], (made[-1].name,), keep))
    return made


def _equal(pieces: Sequence[_Piece], channels: int) -> int:
    """As how many groups of one grouped convolution the pieces can be written; one if they cannot."""
    each, left = divmod(channels, len(pieces))
    starts = [piece.part.start for piece in pieces]
    same = all(piece.conv and piece.width == pieces[0].width for piece in pieces)
    return len(pieces) if same and not left and starts == [each * n for n in range(len(pieces))] else 1


def _fuse(layers: list[Layer], shapes: Shapes) -> list[Layer]:
    """Make two linear layers one where that is exact and has fewer MACs."""
    index = 0
    while index < len(layers):
        second = layers[index]
        first = next((layer for layer in layers if layer.name == second.inputs[0]), None)
        made = None
        if first is not None and _uses(layers)[first.name] == 1:
            if isinstance(first, Conv) and isinstance(second, Conv):
                made = _convolved(first, second)
            elif isinstance(first, Dense) and isinstance(second, Dense):
                weight, bias = second.weight @ first.weight, second.weight @ first.bias + second.bias
                made = Dense(second.name, first.inputs, weight, bias)
        if first is not None and made is not None:
            before = sum(_macs(cast(Conv | Dense, layer), shapes) for layer in (first, second))
            if _macs(made, shapes) < before:
                layers[index] = made
                layers.remove(first)
                continue
        index += 1
    return layers


def _convolved(first: Conv, second: Conv) -> Conv | None:
    """Two convolutions as one, if that is exact."""
    if first.groups > 1 or second.groups > 1:
        return None
    one, two = first.weight, second.weight
    bias = two.sum((2, 3)) @ first.bias + second.bias
    if two.shape[2] == 1:
        weight = np.einsum("oi,ijkl->ojkl", two[:, :, 0, 0], one)
        return Conv(second.name, first.inputs, weight, bias, first.stride * second.stride, first.padding)
    if one.shape[2] == 1 and first.stride == 1 and (second.padding == 0 or not first.bias.any()):
        weight = np.einsum("oikl,ij->ojkl", two, one[:, :, 0, 0])
        return Conv(second.name, first.inputs, weight, bias, second.stride, second.padding)
    return None


def _macs(layer: Conv | Dense, shapes: Shapes) -> int:
    return layer.weight.size * prod(shapes[layer.name][1:])
