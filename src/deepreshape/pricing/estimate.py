"""The steps of a private inference from a network's layers alone: for networks that were never lowered, in no time.

Where the exact plan takes formats from calibration and knows which values are added, this takes typical formats and
looks only at what follows what. For a network with all its ReLUs, bytes and rounds are those of the exact plan at the
same formats; where ReLUs are removed, the truncations that this leaves are counted between neighbouring layers only.
Two linear layers with nothing between them, which lowering makes one if that has fewer multiply-adds, are two here.
Comparisons of max pools are priced as ReLUs that run at once, k - 1 for a window of k; a lowered program shares those
of windows that overlap and takes them in steps, so that it has fewer of them in more rounds.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from deepreshape.cost import Layer, LinearLayer, ReluLayer, SignLayer, SquareLayer, UnpricedLayer
from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.square import Squaring
from deepreshape.private.crypto.he.packing import Convolution, Layout, choose_parameters, lay_out, merge_groups
from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.program.lowering.geometry import Placement, SquareForm, square_form, transposed_form
from deepreshape.private.program.ops import Relu, Sign
from deepreshape.private.program.relu_config import GC_FULL, Assignment, ReluConfig, check_layers
from deepreshape.private.protocols.base import Flight, Step
from deepreshape.private.protocols.choose import relu_protocol, sign_protocol
from deepreshape.private.protocols.linear import TYPICAL_WEIGHT, EncryptedLayer, HeLinear
from deepreshape.private.protocols.square import Squares, SquaringLayer
from deepreshape.private.protocols.steps import Steps
from deepreshape.private.protocols.transfers.transfer_ends import COTS
from deepreshape.private.protocols.truncate import Truncation, TruncationLayer

SQUARE_SHIFTS = 10, 11
"""Bits dropped before and after a square, of 11-bit weights and 9 fraction bits at rest."""
RELU_BITS, SQUARE_BITS = 30, 37
"""Of the rings that ReLUs and such squares want."""


@dataclass(frozen=True)
class EstimatedNetwork:
    """How a network of these layers would be run.

    Args:
        layers: in order, as a count gives them.
        bits: of the ring.
        weight_bits: of the largest weight of a layer.
        shift: by which values are truncated behind a linear layer.
        relu: how ReLUs are computed; windows are all bits here, as nothing is calibrated.

    Raises:
        ValueError: if ``relu`` is for another number of layers, there is no linear layer, one that cannot be priced, or
            one that is too large for every known set of parameters.
    """

    layers: tuple[Layer, ...]
    bits: int = RELU_BITS
    weight_bits: int = 11
    shift: int = 13
    relu: ReluConfig | Assignment = GC_FULL

    @property
    def modulus(self) -> Ring:
        """Where shares live."""
        return Ring(self.bits)

    @cached_property
    def linear(self) -> dict[str, tuple[LinearLayer, Convolution]]:
        """Every linear layer, and how the homomorphic encryption sees it: one of its copies."""
        lowered: dict[str, tuple[LinearLayer, Convolution]] = {}
        for layer in self.layers:
            if isinstance(layer, UnpricedLayer):
                raise ValueError(f"{self.relu} has no price for {layer.name}: {layer.operator}")
            if isinstance(layer, LinearLayer):
                lowered[_unique(layer.name, lowered)] = layer, merge_groups(self._convolution(layer), layer.groups)
        if not lowered:
            raise ValueError("the network has no convolution and no linear layer; there is nothing private to price")
        return lowered

    def _convolution(self, layer: LinearLayer) -> Convolution:
        """One group of the layer, as the homomorphic encryption would see it."""
        channels, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        if layer.transposed:
            outputs *= math.prod(layer.stride)
        form = square(layer)
        typical = math.ceil(self.weight_bits + math.log2(channels * form.side**2 * TYPICAL_WEIGHT))
        widths = self.weight_bits, max(typical, self.weight_bits)
        size = form.padded or layer.in_size
        return Convolution(channels, *size, outputs, form.side, form.stride, form.padding, *widths)

    @cached_property
    def parameters(self) -> Parameters:
        """As an exact plan chooses them."""
        return choose_parameters(self.modulus.order, [layer for _, layer in self.linear.values()])

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """How every linear layer (one of its copies) is laid out in polynomials."""
        return {name: lay_out(layer, self.parameters) for name, (_, layer) in self.linear.items()}

    @cached_property
    def steps(self) -> Steps:
        """What there is to do."""
        linear = HeLinear()
        encrypted = {name: Step(name, linear, self._encrypted(name, layer)) for name, (layer, _) in self.linear.items()}
        first, *_, last = [layer for layer, _ in self.linear.values()] * 2
        inputs, outputs = first.in_channels * math.prod(first.in_size), last.out_channels * math.prod(last.out_size)
        # behind every linear layer comes a ReLU or a truncation, so all masks are known at once
        levels = [tuple(encrypted.values())]
        return Steps.of(inputs, outputs, self.modulus.element_bytes, levels, self._flights(encrypted))

    def _encrypted(self, name: str, layer: LinearLayer) -> EncryptedLayer:
        pixels = tuple(range(math.prod(layer.out_size) - layer.left_out)) if layer.left_out else None
        return EncryptedLayer(name, self.layouts[name], self.modulus, _fan_in(layer), pixels)

    def _flights(self, encrypted: Mapping[str, Step]) -> Iterator[Flight]:
        """Linear layers, truncations and rectifications, in order; those of one map go side by side."""
        check_layers(self.relu, sum(_has_choice(layer) for layer in self.layers))
        names, taken, number = iter(self.linear), set[str](), 0
        truncation = Truncation()
        before: LinearLayer | None = None
        at = ""
        for layers in self._maps():
            layer = layers[0]
            if isinstance(layer, LinearLayer):
                if before and (before.out_channels, before.out_size) == (layer.in_channels, layer.in_size):
                    name, count = f"{at}.truncate", before.out_channels * math.prod(before.out_size)
                    yield (Step(name, truncation, TruncationLayer(name, self.modulus, self.shift, count)),)
                before, at = layer, next(names)
                yield (encrypted[at],)
                continue
            before = None
            name = _unique(layer.name, taken)
            taken.add(name)
            config = self.relu.squares
            if any(map(_has_choice, layers)):
                config, number = self.relu.at(number), number + 1
            # as a program has them: ReLUs last, which may answer before they let the others go on
            yield tuple(step for each in reversed(layers) for step in self._nonlinear(name, at, each, config))

    def _maps(self) -> Iterator[list[Layer]]:
        """Layers, ReLUs and squares of one map as one."""
        group: list[Layer] = []
        for layer in self.layers:
            if not (isinstance(layer, SquareLayer) and group and group[-1].name == layer.name):
                yield from [group] * bool(group)
                group = []
            group.append(layer)
        yield group

    def _nonlinear(self, name: str, at: str, layer: Layer, config: ReluConfig) -> Iterator[Step]:
        """The steps of ReLUs and truncations, or of squares, of a map behind layer ``at``."""
        if isinstance(layer, SquareLayer):
            count, squaring, square_config = layer.squares, Squaring(self.modulus, *SQUARE_SHIFTS), self.relu.squares
            squares = SquaringLayer(name, squaring, count, square_config.batch, slice(None), count)
            yield Step(name, Squares(COTS[square_config.cot]), squares)
        elif isinstance(layer, SignLayer):
            protocol = sign_protocol(config)
            yield Step(name, protocol, protocol.layer(self.modulus, Sign(name, (at,)), layer.signs))
        elif isinstance(layer, ReluLayer):
            if rest := layer.elements - layer.relus:
                yield Step(name, Truncation(), TruncationLayer(name, self.modulus, self.shift, rest))
            if layer.relus:
                protocol, op = relu_protocol(config), Relu(name, (at,), self.shift)
                yield Step(name, protocol, protocol.layer(self.modulus, op, layer.relus))


def _has_choice(layer: Layer) -> bool:
    """Whether it has ReLUs or signs, whose protocol can be chosen."""
    return isinstance(layer, SignLayer) or (isinstance(layer, ReluLayer) and layer.relus > 0)


def _fan_in(layer: LinearLayer) -> int:
    """Multiply-adds of one output, zeros in a square kernel included."""
    return layer.in_channels // layer.groups * square(layer).side ** 2


def square(layer: LinearLayer) -> SquareForm:
    """The square convolution that a layer is computed by."""
    rows, columns = (layer.dilation[at] * (layer.kernel[at] - 1) + 1 for at in range(2))
    if layer.transposed:
        phases = transposed_form(layer.in_size, layer.out_size, (rows, columns), layer.stride, layer.padding)
        return square_form(layer.in_size, phases)
    return square_form(layer.in_size, Placement((rows, columns), layer.stride, layer.padding, layer.padding))


def estimate_steps(
    layers: Sequence[Layer], relu: ReluConfig | Assignment = GC_FULL, bits: int | None = None
) -> EstimatedNetwork:
    """The steps of these layers at typical formats, in a ring that suits them unless ``bits`` says which."""
    squares = any(isinstance(layer, SquareLayer) for layer in layers)
    return EstimatedNetwork(tuple(layers), bits or (SQUARE_BITS if squares else RELU_BITS), relu=relu)


def _unique(name: str, taken: Container[str]) -> str:
    """A name for a layer whose module runs more than once."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}.{number}"
    return unique
