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

from deepreshape.cost import Layer, LinearLayer
from deepreshape.pricing.work import TYPICAL_WEIGHT, Product, Steps
from deepreshape.private.arith.ring import Ring
from deepreshape.private.crypto.he.bfv import Parameters, candidates
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.parties.plan import OUTPUT, SETUP, WORD_BYTES, Part, flights
from deepreshape.private.program.ops import INPUT, Relu
from deepreshape.private.program.relu_config import GC_FULL, ReluConfig
from deepreshape.private.protocols import base as relu
from deepreshape.private.protocols import truncate
from deepreshape.private.protocols.base import ReluLayer
from deepreshape.private.protocols.linear import Convolution, Layout, joined, lay_out
from deepreshape.private.protocols.truncate import TruncationLayer


@dataclass(frozen=True)
class Outline:
    """How a network of these layers would be run.

    Args:
        layers: in order, as a count gives them.
        bits: of the ring.
        weight_bits: of the largest weight of a layer.
        shift: by which values are truncated behind a linear layer.
        relu: how ReLUs are computed; windows are all bits here, as nothing is calibrated.

    Raises:
        ValueError: if there is no linear layer, or one is too large for every known set of parameters.
    """

    layers: tuple[Layer, ...]
    bits: int = 30
    weight_bits: int = 11
    shift: int = 13
    relu: ReluConfig = GC_FULL

    @property
    def modulus(self) -> Ring:
        """Where shares live."""
        return Ring(self.bits)

    @cached_property
    def linear(self) -> dict[str, tuple[LinearLayer, Convolution]]:
        """Every linear layer, and how the homomorphic encryption sees it: one of its copies."""
        found: dict[str, tuple[LinearLayer, Convolution]] = {}
        for layer in self.layers:
            if isinstance(layer, LinearLayer):
                found[_unique(layer.name, found)] = layer, joined(self._convolution(layer), layer.groups)
        if not found:
            raise ValueError("the network has no convolution and no linear layer; there is nothing private to price")
        return found

    def _convolution(self, layer: LinearLayer) -> Convolution:
        shape = layer.in_channels // layer.groups, *layer.in_size, layer.out_channels // layer.groups
        kernel = max(layer.kernel)
        stride = max(-(-layer.in_size[0] // layer.out_size[0]), 1)
        # the padding that gives this size of output; a kernel may be larger than a tiny map
        wanted = ((layer.out_size[0] - 1) * stride + kernel - layer.in_size[0] + 1) // 2
        padding = min(max(wanted, 0), kernel - 1)
        typical = math.ceil(self.weight_bits + math.log2(shape[0] * kernel**2 * TYPICAL_WEIGHT))
        return Convolution(*shape, kernel, stride, padding, self.weight_bits, max(typical, self.weight_bits))

    @cached_property
    def parameters(self) -> Parameters:
        """The cheaper of the first two known sets that every layer fits; an exact plan compares them all."""
        layers = [layer for _, layer in self.linear.values()]
        # what sums up most needs the widest primes: it refuses first
        hardest = sorted(set(layers), key=lambda layer: layer.weight_sum, reverse=True)
        refusal = ""
        costs: dict[Parameters, int] = {}
        for parameters in candidates(self.modulus.order):
            try:
                each = {layer: lay_out(layer, parameters).cost for layer in hardest}
            except ValueError as error:
                refusal = str(error)
                continue
            costs[parameters] = sum(layer.copies * each[layer] for layer in layers)
            if len(costs) == 2:
                break
        if not costs:
            raise ValueError(refusal)
        return min(costs, key=costs.__getitem__)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """How every linear layer (one of its copies) is laid out in polynomials."""
        return {name: lay_out(layer, self.parameters) for name, (_, layer) in self.linear.items()}

    @cached_property
    def steps(self) -> Steps:
        """What there is to do."""
        order = [*self._operations()]
        relus = {step.name: step for step in order if isinstance(step, ReluLayer)}
        truncations = {step.name: step for step in order if isinstance(step, TruncationLayer)}
        products = {
            name: Product(self.layouts[name], self.bits, layer.in_channels // layer.groups * math.prod(layer.kernel))
            for name, (layer, _) in self.linear.items()
        }
        first, *_, last = [layer for layer, _ in self.linear.values()] * 2
        inputs, outputs = first.in_channels * math.prod(first.in_size), last.out_channels * math.prod(last.out_size)
        kept = [relu.stored(step) for step in relus.values()]
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
                sign = self.relu.sign(self.modulus, Relu(name, (at,), self.shift))
                yield ReluLayer(name, self.modulus, self.shift, layer.relus, self.relu.garbler, self.relu.batch, sign)

    def _parts(self, order: list[str | ReluLayer | TruncationLayer], inputs: int, outputs: int) -> Iterator[Part]:
        served = self.relu.garbler == "server"
        yield Part(INPUT, "offline", "shares", "", 0, 0)
        yield Part(SETUP, "setup", "keys", "C", self.parameters.fresh_bytes, 0)
        # behind every linear layer comes a ReLU or a truncation, so all masks are known at once
        sizes = {name: self._he(name) for name in self.linear}
        yield from (Part(name, "offline", "he", "C", up, 0) for name, (up, _) in sizes.items())
        yield from (Part(name, "offline", "he", "S", 0, down) for name, (_, down) in sizes.items())
        truncations = [step for step in order if isinstance(step, TruncationLayer)]
        if truncations:
            yield Part(SETUP, "setup", "transfers", "CS", *IKNP.setup_bytes)
        for step in truncations:
            yield Part(step.name, "offline", "truncate", "C", *truncate.declared(step)["offline"])
        relus = [step for step in order if isinstance(step, ReluLayer)]
        if relus:
            there, back = relu.setup_bytes(relus)
            products = self.relu.protocol != "gc-full"
            senders = {True: "CSSC" if products else "CS", False: "SCCS" if products else "SC"}[served]
            yield Part(SETUP, "setup", "transfers", senders, *((back, there) if served else (there, back)))
        for flight in flights(relus):
            for turn in zip(*(relu.turns(layer) for layer in flight), strict=True):
                for layer, (sender, nbytes) in zip(flight, turn, strict=True):
                    sizes = (nbytes, 0) if sender == "C" else (0, nbytes)
                    yield Part(layer.name, "offline", "garble", sender, *sizes)
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
                    yield Part(step.name, "online", "evaluate", "SC", *relu.declared(step)["online"])
        yield Part(OUTPUT, "online", "shares", "S", 0, element * outputs)

    def _he(self, name: str) -> tuple[int, int]:
        copies = self.linear[name][1].copies
        up, down = self.layouts[name].declared.traffic["offline"]
        return copies * up, copies * down


def outline(layers: Sequence[Layer], relu: ReluConfig = GC_FULL, bits: int = 30) -> Outline:
    """The outline of these layers at typical formats."""
    return Outline(tuple(layers), bits, relu=relu)


def _unique(name: str, taken: Container[str]) -> str:
    """A name for a layer whose module runs more than once."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}.{number}"
    return unique
