"""What both parties derive from the public program before they talk: parameters, layouts, steps, and the exact cost.

Everything here is public, and equal on both sides because it is computed from the same public program; the handshake
compares :attr:`Plan.agreed`. :meth:`Plan.declared` says every byte that will travel, by layer and phase, and tests hold
it against what the channels have counted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.cost import Cost, CostReport
from deepreshape.private.crypto.he.bfv import Parameters
from deepreshape.private.parties.preprocessing import Source
from deepreshape.private.program.ops import INPUT, Conv2d, Linear, Op, ProgramError, Relu, Truncate
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, ReluConfig, Role
from deepreshape.private.protocols.base import Prepared, ReluProtocol
from deepreshape.private.protocols.choose import relu_protocol
from deepreshape.private.protocols.linear import EncryptedLayer, HeLinear
from deepreshape.private.protocols.packing import Convolution, Layout, choose_parameters, joined, lay_out
from deepreshape.private.protocols.steps import OUTPUT, SETUP, Flight, Step, Steps
from deepreshape.private.protocols.truncate import Truncation, TruncationLayer
from deepreshape.private.transport.ledger import Phase


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
    def relu_protocol(self) -> ReluProtocol[Any, Any]:
        """By which ReLUs are computed."""
        return relu_protocol(self.relu)

    @cached_property
    def relus(self) -> dict[str, Any]:
        """The layer of every Relu that rectifies something."""
        layers: dict[str, Any] = {}
        for op in self.program.ops:
            if isinstance(op, Relu) and (count := len(self.positions(op)[0])):
                layers[op.name] = self.relu_protocol.layer(self.program.modulus, op, count)
        return layers

    @cached_property
    def max_inputs(self) -> dict[str, int]:
        """For every Relu that rectifies something, the largest absolute value that it can take."""
        return {name: self.relu_protocol.max_input(layer) for name, layer in self.relus.items()}

    @cached_property
    def by_shares(self) -> frozenset[str]:
        """The values of which the client's shares decide how they are rounded, or what their sign is."""
        return frozenset(
            op.inputs[0]
            for op in self.program.ops
            if op.name in self.truncations or (op.name in self.relus and self.relu_protocol.by_shares)
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
    def steps(self) -> Steps:
        """What an inference consists of."""
        values, modulus = self.program.values, self.program.modulus
        linear, truncation = HeLinear(), Truncation()
        steps: dict[str, Flight] = {}
        for op in self.program.ops:
            flight: list[Step] = []
            if isinstance(op, Conv2d | Linear):
                fan_in = math.prod(op.weight_shape(values[op.inputs[0]])[1:])
                layer = EncryptedLayer(op.name, self.layouts[op.name], modulus.bits, fan_in)
                flight.append(Step(op.name, linear, layer))
            if op.name in self.truncations:
                flight.append(Step(op.name, truncation, self.truncations[op.name]))
            if op.name in self.relus:
                flight.append(Step(op.name, self.relu_protocol, self.relus[op.name]))
            if flight:
                steps[op.name] = tuple(flight)
        levels = [tuple(steps[op.name][0] for op in level) for level in self.levels]
        outputs = self.program.output_size
        return Steps.of(values[INPUT].size, outputs, modulus.element_bytes, levels, steps.values())

    @cached_property
    def by_operation(self) -> dict[str, Flight]:
        """The steps of every operation that has any."""
        return {flight[0].name: flight for flight in self.steps.online}

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

    def places(self, step: Step) -> NDArray[np.intp]:
        """The flat positions of its operation that a step computes."""
        op = self.operations[step.name]
        if not isinstance(op, Relu | Truncate):
            return np.arange(self.program.values[step.name].size)
        return self.positions(op)[not isinstance(step.protocol, ReluProtocol)]

    @cached_property
    def operations(self) -> dict[str, Op]:
        """By name."""
        return {op.name: op for op in self.program.ops}

    def prepared(self, step: Step, role: Role, source: Source) -> Iterator[Prepared]:
        """What a party has kept of a step, out of its offline material; nothing where it keeps nothing."""
        if not step.declared.stored[role == "server"]:
            return iter(())
        return source.get(self.stream(step.stream, step.name))

    def stream(self, kind: str, name: str) -> str:
        """The stream of offline material of one step: its operation's number and what it is for."""
        return f"{list(self.program.values).index(name)}.{kind}"

    def declared(self) -> CostReport:
        """Bytes, rounds, work and stored bytes of one inference, by layer, phase and kind of work.

        Rounds are the client's waits after having sent something. Bytes are payload, without frame headers, TLS and
        handshake. Stored bytes are those of arrays, without the store's headers and tags; they stand in the row of the
        offline phase.
        """
        rows: dict[tuple[str, Phase, str], Cost] = {}
        last: Role = "server"
        for layer, phase, kind, (sender, nbytes), _, counts in self.steps.messages():
            row = rows.get((layer, phase, kind), Cost(layer, phase, kind))
            up, down = (nbytes, 0) if sender == "client" else (0, nbytes)
            rows[layer, phase, kind] = replace(
                row,
                bytes_up=row.bytes_up + up,
                bytes_down=row.bytes_down + down,
                rounds=row.rounds + (nbytes > 0 and last == "client" and sender == "server"),
                **{name: getattr(row, name) + count for name, count in counts.items()},
            )
            last = sender if nbytes else last
        place = {name: number for number, name in enumerate((SETUP, *self.program.values, OUTPUT))}
        return CostReport.of(sorted(rows.values(), key=lambda row: place[row.layer]))

    def offline_bytes(self, count: int = 1) -> int:
        """Bytes, both ways, that travel to prepare so many inferences in one session, which share a public key."""
        report = self.declared()
        each = report.bytes - report.only(phase="online").bytes
        return count * each - (count - 1) * report.only(kind="keys").bytes
