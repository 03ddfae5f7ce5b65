"""What both parties derive from the public program before they talk: parameters, layouts, steps, and the exact cost.

Everything here is public, and equal on both sides because it is computed from the same public program; the handshake
compares :attr:`Plan.agreed`. :meth:`Plan.declared` says every byte that will travel, by layer and phase, and tests hold
it against what the channels have counted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepreshape.cost import Cost, CostReport
from deepreshape.private.crypto.he.bfv import Parameters
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.program.ops import INPUT, Conv2d, Linear, Program, ProgramError, Relu, Truncate
from deepreshape.private.program.relu_config import GC_FULL, ReluConfig
from deepreshape.private.protocols import base as relu
from deepreshape.private.protocols import truncate
from deepreshape.private.protocols.base import ReluLayer
from deepreshape.private.protocols.label_transfer import LABEL_BYTES
from deepreshape.private.protocols.linear import Convolution, Layout, choose_parameters, joined, lay_out
from deepreshape.private.protocols.truncate import TruncationLayer
from deepreshape.private.transport.ledger import Phase

SETUP = "(setup)"
"""Under this name keys and base transfers are booked."""
OUTPUT = "(output)"
"""Under this name the server's last share is booked."""
WORD_BYTES = 8
FLIGHT_BYTES = 1 << 26
"""How many bytes of labels may wait in memory for their circuits, unless one layer alone has more."""


class Part(NamedTuple):
    """One party's turn, or a few, in one layer and phase: who sends in which order ("C" or "S"), and how much."""

    layer: str
    phase: Phase
    kind: str
    senders: str
    up: int
    down: int


def flights(layers: Iterable[ReluLayer]) -> list[list[ReluLayer]]:
    """Layers of ReLUs, in order, by the flight in which their transfers travel.

    Between its transfers and its circuits a layer's labels lie in memory, which bounds what travels together.
    """
    found: list[list[ReluLayer]] = []
    room = 0
    for layer in layers:
        nbytes = LABEL_BYTES * layer.chosen * layer.count
        if nbytes > room or not found:
            found.append([])
            room = FLIGHT_BYTES
        found[-1].append(layer)
        room -= nbytes
    return found


@dataclass(frozen=True, eq=False)
class Plan:
    """How a program is run.

    Args:
        program: its public part.
        relu: how ReLUs are computed.

    Raises:
        ValueError: if the program holds weights.
        ProgramError: if a layer is too wide for every known set of homomorphic parameters, or too narrow for its sign
            test; names the layer.
    """

    program: Program
    relu: ReluConfig = GC_FULL

    def __post_init__(self) -> None:
        if self.program.weights or self.program.limits:
            raise ValueError("a plan is made of public facts only; give it program.public()")
        _ = self.parameters, self.relus  # refuses here what cannot be run

    @cached_property
    def convolutions(self) -> dict[str, Convolution]:
        """Every linear operation as the homomorphic encryption sees it: one of its copies."""
        found: dict[str, Convolution] = {}
        for op in self.program.ops:
            if isinstance(op, Conv2d):
                channels, height, width = self.program.values[op.inputs[0]].shape
                shape = channels // op.groups, height, width, op.out_channels // op.groups
                widths = op.weight_bits, op.sum_bits
                group = Convolution(*shape, op.kernel, op.stride, op.padding, *widths)
                found[op.name] = joined(group, op.groups)
            elif isinstance(op, Linear):
                inputs = self.program.values[op.inputs[0]].size
                found[op.name] = Convolution.matrix(inputs, op.out_features, op.weight_bits, op.sum_bits)
        return found

    @cached_property
    def parameters(self) -> Parameters | None:
        """Of the homomorphic encryption; None if no operation needs it."""
        if not self.convolutions:
            return None
        order = self.program.modulus.order
        try:
            return choose_parameters(order, self.convolutions.values())
        except ValueError as error:
            for name, layer in self.convolutions.items():
                try:
                    choose_parameters(order, [layer])
                except ValueError as reason:
                    raise ProgramError(f"{name}: {reason}") from None
            raise ProgramError(str(error)) from None

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """How every linear operation (one of its copies) is laid out in polynomials."""
        if self.parameters is None:
            return {}
        return {name: lay_out(layer, self.parameters) for name, layer in self.convolutions.items()}

    @cached_property
    def relus(self) -> dict[str, ReluLayer]:
        """The garbled part of every Relu that has one."""
        modulus, found = self.program.modulus, dict[str, ReluLayer]()
        for op in self.program.ops:
            if isinstance(op, Relu) and (count := len(self.positions(op)[0])):
                sign = self.relu.sign(modulus, op)
                found[op.name] = ReluLayer(op.name, modulus, op.shift, count, self.relu.garbler, self.relu.batch, sign)
        return found

    @cached_property
    def rooms(self) -> dict[str, int]:
        """For every Relu, the largest absolute value that its sign test can take."""
        relus = [op for op in self.program.ops if isinstance(op, Relu) and op.name in self.relus]
        return {op.name: self.relu.room(self.program.modulus, op) for op in relus}

    @cached_property
    def by_shares(self) -> frozenset[str]:
        """The values of which the client's shares decide how they are rounded, or what their sign is."""
        exact = self.relu.protocol == "gc-full"
        return frozenset(
            op.inputs[0]
            for op in self.program.ops
            if op.name in self.truncations or (op.name in self.relus and not exact)
        )

    @cached_property
    def truncations(self) -> dict[str, TruncationLayer]:
        """What is truncated without a ReLU: every Truncate, and the masked-out positions of every Relu."""
        found: dict[str, TruncationLayer] = {}
        for op in self.program.ops:
            if not isinstance(op, Relu | Truncate) or not op.shift:
                continue
            if count := len(self.positions(op)[1]):
                found[op.name] = TruncationLayer(op.name, self.program.modulus, op.shift, count)
        return found

    @cached_property
    def levels(self) -> list[list[Conv2d | Linear]]:
        """The linear operations, by the flight in which the client's masks of them travel.

        A mask behind a ReLU or a truncation is the client's own choice, so an operation waits only for those that it
        reads without one in between. Those of one level wait together.
        """
        waits = {INPUT: 0}
        found: list[list[Conv2d | Linear]] = []
        for op in self.program.ops:
            waits[op.name] = max(waits[name] for name in op.inputs)
            if isinstance(op, Conv2d | Linear):
                if waits[op.name] == len(found):
                    found.append([])
                found[waits[op.name]].append(op)
                waits[op.name] += 1
            elif isinstance(op, Relu | Truncate) and not self.passed(op).size:
                waits[op.name] = 0
        return found

    @cached_property
    def flights(self) -> list[list[Relu]]:
        """The ReLUs with a garbled part, by the flight in which their transfers travel."""
        ops = {op.name: op for op in self.program.ops if isinstance(op, Relu) and op.name in self.relus}
        return [[ops[layer.name] for layer in flight] for flight in flights(self.relus[name] for name in ops)]

    @cached_property
    def agreed(self) -> dict[str, int | str]:
        """The public settings that the handshake compares, beside the program's digest."""
        settings: dict[str, int | str] = {"relu": str(self.relu)}
        if self.parameters is not None:
            settings["degree"] = self.parameters.degree
            settings["primes"] = "-".join(map(str, self.parameters.prime_bits))
        return settings

    @cached_property
    def laid_out(self) -> str:
        """A digest of all layouts, which a handshake compares before homomorphic layers travel."""
        facts = [
            (name, at.layer.copies, at.split, at.band_rows, at.in_tile, at.out_tile, astuple(at.form))
            for name, at in self.layouts.items()
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def positions(self, op: Relu | Truncate) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Flat positions that are rectified, and those that are only truncated."""
        value = self.program.values[op.name]
        if isinstance(op, Relu):
            return op.positions(value)
        everywhere = np.arange(value.size)
        return everywhere[:0], everywhere

    def passed(self, op: Relu | Truncate) -> NDArray[np.intp]:
        """Flat positions with which nothing is done at all: both parties' shares stay what they are."""
        _, truncated = self.positions(op)
        return truncated[:0] if op.shift else truncated

    def stream(self, kind: str, name: str) -> str:
        """The stream of material of one step: its operation's number and what it is for."""
        return f"{list(self.program.values).index(name)}.{kind}"

    def declared(self) -> CostReport:
        """Bytes, rounds, work and stored bytes of one inference, by layer, phase and kind of work.

        Rounds are the client's waits after having sent something. Bytes are payload, without frame headers, TLS and
        handshake. Stored bytes are those of arrays, without the store's headers and tags; they stand in the row of the
        offline phase.
        """
        traffic: dict[tuple[str, Phase, str], list[int]] = {}
        before = "S"
        for part in self.parts():
            row = traffic.setdefault((part.layer, part.phase, part.kind), [0, 0, 0])
            row[0] += part.up
            row[1] += part.down
            for sender in part.senders:
                row[2] += before == "C" and sender == "S"
                before = sender
        place = {name: number for number, name in enumerate((SETUP, *self.program.values, OUTPUT))}
        return CostReport.of(
            Cost(layer, phase, kind, bytes_up=up, bytes_down=down, rounds=rounds, **self._work(layer, phase, kind))
            for (layer, phase, kind), (up, down, rounds) in sorted(traffic.items(), key=lambda row: place[row[0][0]])
        )

    def offline_bytes(self, count: int = 1) -> int:
        """Bytes, both ways, that travel to prepare so many inferences in one session, which share a public key."""
        report = self.declared()
        each = report.bytes - report.only(phase="online").bytes
        return count * each - (count - 1) * report.only(kind="keys").bytes

    def parts(self) -> Iterator[Part]:
        """All that is sent, in order, and the steps between. Whoever sends several parts in a row does not wait."""
        program = self.program
        element = program.modulus.element_bytes
        yield Part(INPUT, "offline", "shares", "", 0, 0)
        if self.parameters is not None:
            yield Part(SETUP, "setup", "keys", "C", self.parameters.fresh_bytes, 0)
        for level in self.levels:
            sizes = {op.name: self._he(op) for op in level}
            yield from (Part(name, "offline", "he", "C", up, 0) for name, (up, _) in sizes.items())
            yield from (Part(name, "offline", "he", "S", 0, down) for name, (_, down) in sizes.items())
        if self.truncations:
            yield Part(SETUP, "setup", "transfers", "CS", *IKNP.setup_bytes)
        for name, layer in self.truncations.items():
            yield Part(name, "offline", "truncate", "C", *truncate.declared(layer)["offline"])
        if self.relus:
            there, back = relu.setup_bytes(self.relus.values())
            products = self.relu.protocol != "gc-full"
            # each pair of base transfers is opened by its sender: the evaluator, and the garbler for products
            if self.relu.garbler == "server":
                yield Part(SETUP, "setup", "transfers", "CSSC" if products else "CS", back, there)
            else:
                yield Part(SETUP, "setup", "transfers", "SCCS" if products else "SC", there, back)
        for flight in self.flights:
            for turn in zip(*(relu.turns(self.relus[op.name]) for op in flight), strict=True):
                for op, (sender, nbytes) in zip(flight, turn, strict=True):
                    up, down = (nbytes, 0) if sender == "C" else (0, nbytes)
                    yield Part(op.name, "offline", "garble", sender, up, down)
        yield Part(OUTPUT, "offline", "shares", "", 0, 0)

        yield Part(INPUT, "online", "shares", "C", element * program.values[INPUT].size, 0)
        for op in program.ops:
            if isinstance(op, Conv2d | Linear):
                yield Part(op.name, "online", "clear", "", 0, 0)
            up, down = 0, 0
            if op.name in self.truncations:
                up, down = truncate.declared(self.truncations[op.name])["online"]
                yield Part(op.name, "online", "truncate", "S", 0, down)
            if op.name in self.relus:
                yield Part(op.name, "online", "evaluate", "SC", *relu.declared(self.relus[op.name])["online"])
            if op.name in self.truncations:
                yield Part(op.name, "online", "truncate", "C", up, 0)
        yield Part(OUTPUT, "online", "shares", "S", 0, element * program.values[program.output].size)

    def _he(self, op: Conv2d | Linear) -> tuple[int, int]:
        up, down = self.layouts[op.name].declared.traffic["offline"]
        copies = self.convolutions[op.name].copies
        return copies * up, copies * down

    def _work(self, layer: str, phase: Phase, kind: str) -> dict[str, int]:
        """What a row of :meth:`declared` counts beside bytes and rounds."""
        if kind == "he":
            return {
                "he_products": self.convolutions[layer].copies * self.layouts[layer].declared.products,
                "stored_server": WORD_BYTES * self.program.values[layer].size,
            }
        if kind == "clear":
            op = self._linear(layer)
            weights = op.weight_shape(self.program.values[op.inputs[0]])
            return {"macs": self.program.values[layer].size * math.prod(weights[1:])}
        if kind == "garble":
            made = self.relus[layer]
            client, server = relu.stored(made)
            return {
                "relus": made.count,
                "and_gates": made.count * made.circuit.and_gates,
                "transfers": made.count * relu.ots(made),
                "stored_client": client,
                "stored_server": server,
            }
        if kind == "truncate" and phase == "offline":
            client, server = truncate.stored(self.truncations[layer])
            transfers = self.truncations[layer].count
            return {"transfers": transfers, "stored_client": client, "stored_server": server}
        if kind == "evaluate":
            return {"relus": self.relus[layer].count}
        if kind == "shares" and phase == "offline":
            name = INPUT if layer == INPUT else self.program.output
            return {"stored_client": WORD_BYTES * self.program.values[name].size}
        return {}

    def _linear(self, name: str) -> Conv2d | Linear:
        return next(op for op in self.program.ops if op.name == name and isinstance(op, Conv2d | Linear))
