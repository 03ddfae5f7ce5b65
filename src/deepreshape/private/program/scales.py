"""Quadratics as squares of values that are carried at other scales, so that no product with a secret is left.

a x^2 + b x + c with secret coefficients is D_out y = (D_in x + t)^2 + k for D_in^2 = a D_out: a square, and two
constants that the server alone adds, t = D_in b / 2a and k = D_out (c - b^2 / 4a). So every value v is carried as D v,
D a number of either sign for each channel. Convolutions and linear layers take any D before and behind them into their
weights; sums, pools and flattening pass one D on; ReLUs pass one on that is positive; inputs and outputs have 1. Where
an identity shortcut joins two squares, |D_in| = sqrt(|a D_out|) is followed from the last layer to the first, which
contracts; D_out has the sign of a, and where a negative D_in arises the weights before take it, as (-u)^2 = u^2. So
neither a nor its sign is in the public program.

Where ReLUs and squares share channels (AutoReP), D is a, which must be positive there: relu(a x) = a relu(x), and
t stands at squares only.

What cannot be carried (two squares of one value that want different D, a square of the input itself, a spread of D
above :data:`SPREAD`) gets a layer of its own, a multiplication by channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Flat,
    Layer,
    Pick,
    Pool,
    Quadratic,
    Real,
    Rectify,
    Squared,
    Sum,
)
from deepreshape.private.program.ops import INPUT, ProgramError

__all__ = ["SPREAD", "carry_scales"]

SPREAD = 1 << 10
"""How many times larger than the smallest the largest D of one value may be; each doubling costs a bit of a ring."""
SAME = 1e-9
"""Scales that differ by less than this part are equal."""


def carry_scales(layers: Sequence[Layer], outputs: Iterable[str]) -> list[Layer]:
    """Layers that compute the same without quadratics.

    Args:
        layers: in the order in which they run.
        outputs: names of values that stay what they are.

    Raises:
        ProgramError: if a quadratic has no square in some channel, or a negative one beside ReLUs; names the layer.
    """
    result = [_rectified(layer) if isinstance(layer, Quadratic) else layer for layer in layers]
    if not any(isinstance(layer, Quadratic) for layer in result):
        return result
    kept = frozenset(outputs)
    while isinstance(solved := _Scales.of(result, kept), _Apart):
        result = _separated(result, solved)
    return _shifts_folded([_scaled(layer, solved) for layer in result], kept)


def _rectified(layer: Quadratic) -> Quadratic | Rectify:
    """A quadratic with a square in every channel that has one at all; a ReLU if none has."""
    squares, relus = _kinds(layer)
    if not squares.any():
        return Rectify(layer.name, layer.inputs)
    square = layer.coefficients[:, 2]
    if (flat := np.flatnonzero(squares & (square == 0))).size:
        raise ProgramError(
            f"{layer.name}: channel {flat[0]} has no square (its coefficient is 0), and so have {flat.size} of "
            f"{len(square)} channels; train it further, or put the identity or a ReLU there"
        )
    if (wrong := np.flatnonzero(squares & relus & (square < 0))).size:
        raise ProgramError(
            f"{layer.name}: channel {wrong[0]} has ReLUs beside squares of the negative coefficient "
            f"{square[wrong[0]]:.3g}; channels that mix the two take a positive one"
        )
    return layer


def _kinds(layer: Quadratic) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which channels have squares, and which have ReLUs."""
    if layer.mask is None:
        return np.ones(len(layer.coefficients), np.bool_), np.zeros(len(layer.coefficients), np.bool_)
    mask = layer.mask.reshape(len(layer.mask), -1)
    return np.asarray(~mask.all(1)), np.asarray(mask.any(1))


@dataclass(frozen=True)
class _Apart:
    """A quadratic that needs a layer of its own on one side."""

    name: str
    side: Literal["before", "behind"]


@dataclass
class _Scales:
    """D of every group of values that have one D in common, by the group's representative: (C,), or (1,) for all."""

    parent: dict[str, str]
    sizes: dict[str, Real]
    signs: dict[str, Real]

    @classmethod
    def of(cls, layers: Sequence[Layer], kept: frozenset[str]) -> _Scales | _Apart:
        """The scales of all values, or the first quadratic that has none."""
        scales = cls({}, {}, {})
        for layer in layers:
            if _passes(layer, layers):
                for name in layer.inputs:
                    scales.parent[scales.find(name)] = scales.find(layer.name)
        known = Conv | Dense | Quadratic
        others = [layer for layer in layers if not isinstance(layer, known) and not _passes(layer, layers)]
        fixed = {INPUT, *kept, *(name for layer in others for name in (layer.name, *layer.inputs))}
        scales.sizes = {scales.find(name): np.ones(1) for name in fixed}
        positive = {scales.find(layer.name) for layer in layers if isinstance(layer, Rectify)} | set(scales.sizes)
        squares = [layer for layer in layers if isinstance(layer, Quadratic)]
        for layer in squares:
            if side := scales._note(layer, positive):
                return _Apart(layer.name, side)
        for layer in squares:
            group = scales.find(layer.name)
            if group in positive and (scales.signs[group] < 0).any():
                return _Apart(layer.name, "behind")
        for layer in reversed(squares):
            if not _kinds(layer)[1].any() and not scales._follow(layer):
                return _Apart(layer.name, "before")
        return scales

    def find(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def _note(self, layer: Quadratic, positive: set[str]) -> Literal["before", "behind"] | None:
        """Note the signs behind a quadratic, and D on both sides if it has ReLUs; the side where that cannot be."""
        before, behind = self.find(layer.inputs[0]), self.find(layer.name)
        square, (squares, relus) = layer.coefficients[:, 2], _kinds(layer)
        sign = np.where(squares & ~relus, np.sign(square), 1.0)
        if not np.array_equal(self.signs.setdefault(behind, sign), sign):
            return "behind"
        if relus.any():
            positive.add(before)
            size = np.where(squares, np.abs(square), 1.0)
            if not _agree(self.sizes.setdefault(before, size), size):
                return "before"
            if not _agree(self.sizes.setdefault(behind, size), size):
                return "behind"
        return None

    def _follow(self, layer: Quadratic) -> bool:
        """Choose what is free of D_in^2 = a D_out; whether it holds."""
        before, behind = self.find(layer.inputs[0]), self.find(layer.name)
        square = np.abs(layer.coefficients[:, 2])
        if before == behind:
            return False
        if behind not in self.sizes:
            known = self.sizes.get(before)
            self.sizes[behind] = np.ones(len(square)) if known is None else known**2 / square
        wanted = np.sqrt(square * self.sizes[behind])
        if wanted.max() > SPREAD * wanted.min() and before not in self.sizes and self._joined(before):
            return False
        return _agree(self.sizes.setdefault(before, wanted), wanted)

    def _joined(self, group: str) -> bool:
        """Whether a square's result is in the group, so that a spread would be handed on."""
        return group in self.signs

    def scale(self, name: str) -> Real:
        """D of a value: (C,), or (1,) for all channels."""
        group = self.find(name)
        return self.sizes.get(group, np.ones(1)) * self.signs.get(group, np.ones(1))


def _passes(layer: Layer, layers: Sequence[Layer]) -> bool:
    """Whether what a layer makes has the scale of what it reads."""
    if not isinstance(layer, Flat):
        return isinstance(layer, Sum | Pool | Rectify)
    # the weights of a linear layer take a scale for each element
    readers = [reader for reader in layers if layer.name in reader.inputs]
    return bool(readers) and all(isinstance(reader, Dense) for reader in readers)


def _agree(one: Real, other: Real) -> bool:
    return bool(np.allclose(one, other, rtol=SAME, atol=0))


def _separated(layers: Sequence[Layer], apart: _Apart) -> list[Layer]:
    """The layers with one more that multiplies by channel (for now by 1) beside a quadratic."""
    result: list[Layer] = []
    for layer in layers:
        if layer.name != apart.name or not isinstance(layer, Quadratic):
            result.append(layer)
            continue
        name = f"{layer.name}.{'scaled' if apart.side == 'before' else 'carried'}"
        channels, flat = len(layer.coefficients), _is_flat(layer, layers)
        if apart.side == "before":
            result.append(_identity(name, layer.inputs, channels, flat))
            result.append(replace(layer, inputs=(name,)))
        else:
            # readers go on reading the layer's name
            result.append(replace(layer, name=name))
            result.append(_identity(layer.name, (name,), channels, flat))
    return result


def _identity(name: str, inputs: tuple[str, ...], channels: int, flat: bool) -> Layer:
    if flat:
        return Dense(name, inputs, np.eye(channels), np.zeros(channels))
    return Conv(name, inputs, np.ones((channels, 1, 1, 1)), np.zeros(channels), groups=channels)


def _is_flat(layer: Layer, layers: Sequence[Layer]) -> bool:
    """Whether a layer's value has one axis."""
    makers = {one.name: one for one in layers}
    while not isinstance(layer, Conv | Dense | Flat | Pick):
        if layer.inputs[0] == INPUT:
            return False
        layer = makers[layer.inputs[0]]
    return isinstance(layer, Dense | Flat) or (isinstance(layer, Pick) and layer.index.ndim == 1)


def _scaled(layer: Layer, scales: _Scales) -> Layer:
    """A layer for values at their scales."""
    if isinstance(layer, Conv | Dense):
        before, behind = scales.scale(layer.inputs[0]), scales.scale(layer.name)
        groups = layer.groups if isinstance(layer, Conv) else 1
        outs, fan_in, *kernel = layer.weight.shape
        rest = [1] * len(kernel)
        inputs = np.repeat(before, groups * fan_in // len(before)).reshape(groups, fan_in)
        each = np.repeat(inputs, outs // groups, axis=0).reshape(outs, fan_in, *rest)
        weight = layer.weight * behind.reshape(-1, 1, *rest) / each
        return replace(layer, weight=weight, bias=layer.bias * behind)
    if not isinstance(layer, Quadratic):
        return layer
    squares, relus = _kinds(layer)
    constant, linear, square = layer.coefficients.T
    square = np.where(squares, square, 1.0)
    before, behind = scales.scale(layer.inputs[0]), scales.scale(layer.name)
    shift = before * linear / (2 * square)
    rest = behind * (constant - linear**2 / (4 * square))
    return Squared(layer.name, layer.inputs, shift, rest, layer.mask if relus.any() else None)


def _shifts_folded(layers: list[Layer], kept: frozenset[str]) -> list[Layer]:
    """The layers, with the shift before squares in the bias of a layer before, where there is such a layer."""
    makers = {layer.name: layer for layer in layers}
    uses = Counter([*kept, *(name for layer in layers for name in layer.inputs)])
    for layer in layers:
        if isinstance(layer, Squared) and layer.mask is None:
            target = _biased(layer.inputs[0], makers, uses)
            if target is not None:
                makers[target.name] = replace(target, bias=target.bias + layer.shift)
                makers[layer.name] = replace(layer, shift=np.zeros_like(layer.shift))
    return [makers[layer.name] for layer in layers]


def _biased(name: str, makers: dict[str, Layer], uses: Counter[str]) -> Conv | Dense | None:
    """What has a bias and nothing but the value ``name`` behind it."""
    layer = makers.get(name)
    if layer is None or uses[name] != 1:
        return None
    if isinstance(layer, Conv | Dense):
        return layer
    if isinstance(layer, Sum):
        return next((source_bias for source in layer.inputs if (source_bias := _biased(source, makers, uses))), None)
    return None
