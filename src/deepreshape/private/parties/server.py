"""The server: owns the weights, learns that it was asked and nothing else. ``client.py`` states protocol and trust."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np

from deepreshape.private.arith.ring import Words
from deepreshape.private.crypto.he.bfv import Responder
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.preprocessing import Sink, Source
from deepreshape.private.program.encoding import digest
from deepreshape.private.program.ops import INPUT, Fill, Local, Op
from deepreshape.private.program.program import Program
from deepreshape.private.protocols.base import Online, Protocol, Run, side_by_side
from deepreshape.private.protocols.he_workers import Workers, worthwhile
from deepreshape.private.protocols.linear import HeLinear
from deepreshape.private.protocols.steps import OUTPUT, SETUP
from deepreshape.private.transport.channel import Frame


class Model:
    """A program with its weights, checked, and ready to serve under a plan. Sessions may share it, one at a time.

    Args:
        program: with its weights.
        plan: of the program's public part.
        keep: hold encoded weights between sessions, ``Declared.encoded_bytes`` of memory for every layer.
        workers: at most how many processes answer homomorphic layers, where there is enough to do; as many as there are
            cores unless given. With ``keep`` it is one, which has the weights.

    Raises:
        ValueError: if the plan is for another program.
        ProgramError: if a value may not fit the modulus, or weights are missing.
    """

    def __init__(self, program: Program, plan: Plan, *, keep: bool = False, workers: int | None = None) -> None:
        given, planned = digest(program), digest(plan.program)
        if given != planned:
            raise ValueError(f"the plan is for program {planned[:16]}, not for {given[:16]}")
        program.check(plan.max_inputs)
        self.program = program
        self.plan = plan
        products = sum(row.he_products for row in plan.declared().rows)
        self.workers = worthwhile(products, most=1 if keep else workers)
        self._protocols = {
            type(stage.protocol): stage.protocol.serving(stage.layers, program, keep=keep, workers=self.workers)
            for stage in plan.steps.offline
        }

    def serving(self, protocol: Protocol[Any, Any]) -> Protocol[Any, Any]:
        """The plan's protocol, with what it needs of the weights."""
        return self._protocols[type(protocol)]

    def offline(self, run: Run, sink: Sink, *, responder: Responder | None = None) -> Responder | None:
        """Prepare one inference, as :func:`deepreshape.private.parties.client.offline` does, whose notes hold here.

        ``responder`` is what this method returned for an earlier run over this channel: it has the client's key.
        """
        for stage in self.plan.steps.offline:
            protocol = self.serving(stage.protocol)
            if isinstance(protocol, HeLinear) and responder is not None:
                setup: Any = Workers(self.workers, responder)
            else:
                with run.channel.ledger.at(SETUP, "setup"):
                    setup = protocol.setup(run, stage.layers)
            with setup if isinstance(setup, Workers) else nullcontext():
                for flight in stage.flights:
                    steps = [(step.name, protocol.offline(run, setup, step.layer, None, None)) for step in flight]
                    streams = [self.plan.stream(step.stream, step.name) for step in flight]
                    side_by_side(run, "offline", steps, lambda number, kept, to=streams: sink.put(to[number], kept))
            if isinstance(setup, Workers):
                responder = setup.responder
        return responder

    def online(self, run: Run, source: Source) -> None:
        """Run one inference, as :func:`deepreshape.private.parties.client.online` does, whose notes hold here."""
        program, channel = self.program, run.channel
        modulus, values = program.modulus, program.values
        with channel.ledger.at(INPUT, "online"):
            count = values[INPUT].size
            received = modulus.unpack(channel.receive(Frame.SHARES, count * modulus.element_bytes), count)
        shares = {INPUT: received.reshape(program.input_shape)}
        for op in program.ops:
            with channel.ledger.at(op.name, "online"):
                if isinstance(op, Local):
                    share = op.on_share([shares[name] for name in op.inputs], modulus, server=True)
                    if isinstance(op, Fill):
                        share = modulus.add(share, op.constants(program.weights[op.name], modulus))
                    shares[op.name] = share
                else:
                    shares[op.name] = self._interactive(run, op, shares[op.inputs[0]], source)
        with channel.ledger.at(OUTPUT, "online"):
            for name in program.outputs:
                channel.send(Frame.SHARES, modulus.pack(shares[name]))

    def _interactive(self, run: Run, op: Op, share: Words, source: Source) -> Words:
        """The share of an operation that takes steps with the client; where none computes it, it stays what it is."""
        plan, value, flat = self.plan, self.program.values[op.name], share.reshape(-1)
        flight = plan.by_operation.get(op.name, ())
        steps: list[tuple[str, Online]] = []
        for step in flight:
            prepared = plan.prepared(step, "server", source)
            steps.append((op.name, self.serving(step.protocol).online(run, step.layer, prepared, flat[step.reads])))
        result = flat.copy() if plan.passed[op.name].size else np.empty(value.size, np.uint64)
        for step, part in zip(flight, side_by_side(run, "online", steps), strict=True):
            assert part is not None  # noqa: S101 - the server has a share of every result
            result[step.writes] = part
        return result.reshape(value.shape)
