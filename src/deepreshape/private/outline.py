"""The steps of a private inference from a network's layers alone: for networks that were never lowered, in no time.

Where the exact plan takes formats from calibration and knows which values are added, this takes typical formats and
looks only at what follows what. For a network with all its ReLUs, bytes and rounds are those of the exact plan at the
same formats; where ReLUs are removed, the truncations that this leaves are counted between neighbouring layers only.
Comparisons of max pools are priced as ReLUs, which is what they would be.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from deepreshape.cost import Layer, LinearLayer, Phase
from deepreshape.private import ot, relu, truncate
from deepreshape.private.garble import BATCH
from deepreshape.private.he import Parameters, candidates
from deepreshape.private.linear import Convolution, Layout, lay_out
from deepreshape.private.plan import OUTPUT, SETUP, WORD_BYTES, Part
from deepreshape.private.program import INPUT
from deepreshape.private.relu import ReluLayer, Role
from deepreshape.private.shares import Ring
from deepreshape.private.truncate import TruncationLayer
from deepreshape.private.turns import Product, Steps


@dataclass(frozen=True)
class Outline:
    """How a network of these layers would be run.

    Args:
        layers: in order, as a count gives them.
        garbler: who garbles.
        bits: of the ring.
        weight_bits: of the largest weight of a layer.
        shift: by which values are truncated behind a linear layer.
        batch: instances that one garbling covers.

    Raises:
        ValueError: if there is no linear layer, or one is too large for every known set of parameters.
    """

    layers: tuple[Layer, ...]
    garbler: Role = "server"
    bits: int = 32
    weight_bits: int = 11
    shift: int = 13
    batch: int = BATCH

    @property
    def modulus(self) -> Ring:
        """Where shares live."""
        return Ring(self.bits)

    @cached_property
    def linear(self) -> dict[str, tuple[LinearLayer, Convolution]]:
        """Every linear layer, and one group of it as the homomorphic layer sees it."""
        found: dict[str, tuple[LinearLayer, Convolution]] = {}
        for layer in self.layers:
            if isinstance(layer, LinearLayer):
                found[_unique(layer.name, found)] = layer, self._convolution(layer)
        if not found:
            raise ValueError("the network has no convolution and no linear layer; there is nothing private to price")
        return found

    def _convolution(self, layer: LinearLayer) -> Convolution:
        shape = layer.in_channels // layer.groups, *layer.in_size, layer.out_channels // layer.groups
        kernel = max(layer.kernel)
        stride = max(-(-layer.in_size[0] // layer.out_size[0]), 1)
        # the padding that gives this size of output; a kernel may be larger than a tiny map
        wanted = ((layer.out_size[0] - 1) * stride + kernel - layer.in_size[0] + 1) // 2
        return Convolution(*shape, kernel, stride, min(max(wanted, 0), kernel - 1), self.weight_bits)

    @cached_property
    def parameters(self) -> Parameters:
        """The first known set that every layer fits; an exact plan compares them all."""
        refusal = ""
        # what sums up most needs the widest primes: it refuses first
        hardest = sorted(
            {layer for _, layer in self.linear.values()}, key=lambda layer: -math.prod(layer.weight_shape[1:])
        )
        for parameters in candidates(self.modulus.order):
            try:
                for layer in hardest:
                    _ = lay_out(layer, parameters).form  # refuses what does not fit
            except ValueError as error:
                refusal = str(error)
                continue
            return parameters
        raise ValueError(refusal)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """How every linear layer (one group of it) is laid out in polynomials."""
        return {name: lay_out(layer, self.parameters) for name, (_, layer) in self.linear.items()}

    @cached_property
    def steps(self) -> Steps:
        """What there is to do."""
        order = [*self._operations()]
        relus = {step.name: step for step in order if isinstance(step, ReluLayer)}
        truncations = {step.name: step for step in order if isinstance(step, TruncationLayer)}
        products = {
            name: Product(self.layouts[name], layer.groups, self.bits) for name, (layer, _) in self.linear.items()
        }
        first, *_, last = [layer for layer, _ in self.linear.values()] * 2
        inputs, outputs = first.in_channels * math.prod(first.in_size), last.out_channels * math.prod(last.out_size)
        kept = [relu.stored(step.modulus, step.shift, step.count, step.garbler, step.batch) for step in relus.values()]
        kept += [truncate.stored(step) for step in truncations.values()]
        served = WORD_BYTES * sum(product.outputs for product in products.values())
        return Steps(
            tuple(self._parts(order, inputs, outputs)),
            products,
            relus,
            truncations,
            inputs,
            outputs,
            (WORD_BYTES * (inputs + outputs) + sum(client for client, _ in kept), served + sum(own for _, own in kept)),
            (2 + len(kept), len(products) + len(kept)),
        )

    def _operations(self) -> Iterator[str | ReluLayer | TruncationLayer]:
        """Names of linear layers, rectifications, and the truncations between, in order."""
        names, taken = iter(self.linear), set[str]()
        before: LinearLayer | None = None
        at = ""
        for layer in self.layers:
            if isinstance(layer, LinearLayer):
                if before and (before.out_channels, before.out_size) == (layer.in_channels, layer.in_size):
                    count = before.out_channels * math.prod(before.out_size)
                    yield TruncationLayer(f"{at}.truncate", self.modulus, self.shift, count)
                before, at = layer, next(names)
                yield at
                continue
            before = None
            name = _unique(layer.name, taken)
            taken.add(name)
            if layer.elements > layer.relus:
                yield TruncationLayer(name, self.modulus, self.shift, layer.elements - layer.relus)
            if layer.relus:
                yield ReluLayer(name, self.modulus, self.shift, layer.relus, self.garbler, self.batch)

    def _parts(self, order: list[str | ReluLayer | TruncationLayer], inputs: int, outputs: int) -> Iterator[Part]:
        there, back = ot.SETUP_BYTES
        served = self.garbler == "server"
        yield Part(SETUP, "setup", "keys", "C", self.parameters.fresh_bytes, 0)
        if any(isinstance(step, ReluLayer) for step in order):
            yield Part(SETUP, "setup", "transfers", *(("CS", there, back) if served else ("SC", back, there)))
        if any(isinstance(step, TruncationLayer) for step in order):
            yield Part(SETUP, "setup", "transfers", "CS", there, back)
        yield Part(INPUT, "offline", "shares", "", 0, 0)
        for step in order:
            match step:
                case str():
                    groups = self.linear[step][0].groups
                    up, down = self.layouts[step].declared.traffic["offline"]
                    yield Part(step, "offline", "he", "CS" * groups, groups * up, groups * down)
                case TruncationLayer():
                    yield Part(step.name, "offline", "truncate", "C", *truncate.declared(step)["offline"])
                case ReluLayer():
                    yield Part(step.name, "offline", "garble", "CS" if served else "SC", *_bytes(step)["offline"])
        yield Part(OUTPUT, "offline", "shares", "", 0, 0)
        element = self.modulus.element_bytes
        yield Part(INPUT, "online", "shares", "C", element * inputs, 0)
        for step in order:
            match step:
                case str():
                    yield Part(step, "online", "clear", "", 0, 0)
                case TruncationLayer():
                    yield Part(step.name, "online", "truncate", "SC", *truncate.declared(step)["online"])
                case ReluLayer():
                    yield Part(step.name, "online", "evaluate", "SC", *_bytes(step)["online"])
        yield Part(OUTPUT, "online", "shares", "S", 0, element * outputs)


def outline(layers: Sequence[Layer], garbler: Role = "server", bits: int = 32) -> Outline:
    """The outline of these layers at typical formats."""
    return Outline(tuple(layers), garbler, bits)


def _bytes(layer: ReluLayer) -> dict[Phase, tuple[int, int]]:
    return relu.declared(layer.modulus, layer.shift, layer.count, layer.garbler, layer.batch)


def _unique(name: str, taken: Container[str]) -> str:
    """A name for a layer whose module runs more than once."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}.{number}"
    return unique
