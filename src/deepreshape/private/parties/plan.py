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

import numpy as np
from numpy.typing import NDArray

from deepreshape.cost import Cost, CostReport
from deepreshape.private.crypto.he.packing import Convolution, Layout, choose_parameters, lay_out, merge_groups
from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.parties.preprocessing import Source
from deepreshape.private.program.interpret import coins_of
from deepreshape.private.program.ops import INPUT, Conv2d, Linear, Local, Op, ProgramError, Shape
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, Assignment, ReluConfig, Role, check_layers
from deepreshape.private.protocols.base import Flight, Prepared, Step
from deepreshape.private.protocols.choose import Protocols
from deepreshape.private.protocols.linear import EncryptedLayer, HeLinear
from deepreshape.private.protocols.steps import OUTPUT, SETUP, Steps
from deepreshape.private.transport.ledger import Phase

WORD = 60
"""The longest word for ReLUs that both parties compare as it is; a greeting is of limited size."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a program is run.

    Args:
        program: its public part.
        relu: how ReLUs are computed, in all layers alike or layer by layer.

    Raises:
        ValueError: if the program holds weights, or ``relu`` is for another number of layers.
        ProgramError: if a layer is too wide for every known set of homomorphic parameters, or too narrow for its sign
            test; names the layer.
    """

    program: Program
    relu: ReluConfig | Assignment = GC_FULL

    def __post_init__(self) -> None:
        if self.program.weights or self.program.limits:
            raise ValueError("a plan is made of public facts only; give it program.public()")
        check_layers(self.relu, len(self.program.nonlinear))
        _ = self.by_operation  # refuses here what cannot be run

    @cached_property
    def convolutions(self) -> dict[str, Convolution]:
        """Every linear operation as the homomorphic encryption sees it: one of its copies."""
        convolutions: dict[str, Convolution] = {}
        for op in self.program.ops:
            if isinstance(op, Conv2d):
                channels, height, width = self.program.values[op.inputs[0]].shape
                shape = channels // op.groups, height, width, op.out_channels // op.groups
                widths = op.weight_bits, op.sum_bits
                group = Convolution(*shape, op.kernel, op.stride, op.padding, *widths)
                convolutions[op.name] = merge_groups(group, op.groups)
            elif isinstance(op, Linear):
                inputs = self.program.values[op.inputs[0]].size
                convolutions[op.name] = Convolution.matrix(inputs, op.out_features, op.weight_bits, op.sum_bits)
        return convolutions

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
    def protocols(self) -> Protocols:
        """By which everything but linear operations is computed."""
        return Protocols(self.relu)

    @cached_property
    def by_operation(self) -> dict[str, Flight]:
        """The steps of every operation that has any."""
        values, linear = self.program.values, HeLinear()
        flights: dict[str, Flight] = {}
        for op in self.program.ops:
            if isinstance(op, Conv2d | Linear):
                fan_in = math.prod(op.weight_shape(values[op.inputs[0]])[1:])
                mask = op.mask if isinstance(op, Conv2d) else None
                pixels = None if mask is None else tuple(np.flatnonzero(mask).tolist())
                layer = EncryptedLayer(op.name, self.layouts[op.name], self.program.modulus, fan_in, pixels)
                flights[op.name] = (Step(op.name, linear, layer),)
            elif flight := self.protocols.steps(op, self.program):
                flights[op.name] = flight
        return flights

    @cached_property
    def max_inputs(self) -> dict[str, int]:
        """For every operation with steps, the largest absolute value that they can take."""
        return {
            name: min(step.protocol.max_input(step.layer) for step in flight)
            for name, flight in self.by_operation.items()
        }

    @cached_property
    def by_shares(self) -> dict[str, Shape]:
        """What of the client's shares decides how values are rounded, or what their sign is: by name, its shape.

        The values that are rounded so, and the coins of operations that have some.
        """
        values = self.program.values
        shapes: dict[str, Shape] = {}
        for name, flight in self.by_operation.items():
            source = self.operations[name].inputs[0]
            if any(step.protocol.by_shares or step.protocol.by_coins for step in flight):
                shapes[source] = values[source].shape
            if any(step.protocol.by_coins for step in flight):
                shapes[coins_of(name)] = values[name].shape
        return shapes

    @cached_property
    def passed(self) -> dict[str, NDArray[np.intp]]:
        """By operation that is not local, the flat positions that no step computes: shares there stay what they are."""
        places: dict[str, NDArray[np.intp]] = {}
        for op in self.program.ops:
            if not isinstance(op, Local):
                untouched = np.ones(self.program.values[op.name].size, np.bool_)
                for step in self.by_operation.get(op.name, ()):
                    untouched[step.writes] = False
                places[op.name] = np.flatnonzero(untouched)
        return places

    def decided(self, op: Op) -> bool:
        """Whether the client's share of the result is what a protocol makes of it, and no choice of the client's."""
        return any(step.protocol.decides for step in self.by_operation.get(op.name, ()))

    @cached_property
    def levels(self) -> list[list[Op]]:
        """The linear operations, by the flight in which the client's blinds of them travel.

        What a party chooses behind a ReLU or a truncation waits for nothing, so an operation waits only for those that
        it reads without one in between. Those of one level wait together.
        """
        waits = {INPUT: 0}
        levels: list[list[Op]] = []
        for op in self.program.ops:
            waits[op.name] = max(waits[name] for name in op.inputs)
            if self.decided(op):
                if waits[op.name] == len(levels):
                    levels.append([])
                levels[waits[op.name]].append(op)
                waits[op.name] += 1
            elif not isinstance(op, Local) and not self.passed[op.name].size:
                waits[op.name] = 0
        return levels

    @cached_property
    def steps(self) -> Steps:
        """What an inference consists of."""
        values, outputs = self.program.values, self.program.output_size
        levels = [tuple(step for op in level for step in self.by_operation[op.name]) for level in self.levels]
        element_bytes = self.program.modulus.element_bytes
        return Steps.of(values[INPUT].size, outputs, element_bytes, levels, self.by_operation.values())

    @cached_property
    def agreed(self) -> dict[str, int | str]:
        """The public settings that the handshake compares, beside the program's digest."""
        word = str(self.relu)
        if len(word) > WORD:
            word = f"{hashlib.sha256(word.encode()).hexdigest()[:32]} for {word}"[: 10 * WORD]
        settings: dict[str, int | str] = {"relu": word}
        if self.parameters is not None:
            settings["degree"] = self.parameters.degree
            settings["primes"] = "-".join(map(str, self.parameters.prime_bits))
            settings["galois_keys"] = self.parameters.galois_keys
        return settings

    @cached_property
    def laid_out(self) -> str:
        """A digest of all layouts, which a handshake compares before homomorphic layers travel."""
        facts = [(name, at.layer.copies, *at.tiling, astuple(at.form)) for name, at in self.layouts.items()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @cached_property
    def operations(self) -> dict[str, Op]:
        """By name."""
        return {op.name: op for op in self.program.ops}

    def prepared(self, step: Step, role: Role, source: Source) -> Iterator[Prepared]:
        """What a party has kept of a step, of its preprocessing; nothing where it keeps nothing."""
        if not step.declared.stored[role == "server"]:
            return iter(())
        return source.get(self.stream(step.stream, step.name))

    def stream(self, kind: str, name: str) -> str:
        """The stream of the preprocessing of one step: its operation's number and what it is for."""
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
