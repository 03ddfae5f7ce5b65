"""The client: owns the input, learns the output; the hybrid protocol of DELPHI (Mishra et al., USENIX Security 2020).

Model: two semi-honest parties. Every value x of the program is shared, x = x_client + x_server. The client's share of
every value is known offline: it is a blind that the client drew (of the input, and behind every ReLU and truncation),
or what the homomorphic step returned (W r - s, ``linear.py``), or a sum of such shares. So all homomorphic work and all
garbling is done before any input exists, and additions, pooling and flattening cost no message at all.

*Order of the offline phase.* Blinds behind ReLUs do not depend on what is before them, so the blinds of all linear
layers travel at once, and the answers after them; only layers with nothing but additions between them wait for one
another. Then come the transfers for truncation, and the ReLUs: oblivious transfers for as many layers as may lie in
memory, then their circuits (``protocols/steps.py``). A party reads all of a flight before it answers, so that neither
blocks the other, and waits once a flight and not once a layer.

*The client learns* the output, and public facts: architecture, shapes, formats, bit widths and mask positions. Beside
those it sees W r - s (uniform, s is fresh), garbled circuits that give values under the server's blinds, and other
blinds. *The server learns* that a query was made and when; it sees ciphertexts under the client's key, and values under
fresh blinds of the client's. Nothing a party sends depends in length or number on secrets.

A party that deviates is not kept from harm it can do: a malicious client of this protocol family can extract the model.
What a peer sends is checked for kind, length and range, and a failed check ends the run; its batch is spent.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deepreshape.private.arith.ring import Words
from deepreshape.private.crypto.he.bfv import ClientKey
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.preprocessing import Sink, Source
from deepreshape.private.program.ops import INPUT, Integers, Local, Op
from deepreshape.private.protocols.base import Flight, Prepared, Run, Step, side_by_side
from deepreshape.private.protocols.linear import HeLinear
from deepreshape.private.protocols.steps import OUTPUT, SETUP
from deepreshape.private.transport.channel import Frame


def offline(run: Run, plan: Plan, sink: Sink, *, key: ClientKey | None = None) -> ClientKey | None:
    """Prepare one inference; the server calls :meth:`deepreshape.private.parties.server.Model.offline`.

    Several may be prepared over one channel, under one homomorphic key: every ciphertext is fresh, and every response
    re-randomised and flooded anew. Nothing else may be shared: every Delta, and so the base transfers, are each run's.

    Args:
        run: of the client.
        plan: what is to run.
        sink: where to put what :func:`online` will need.
        key: what this function returned for an earlier run over this channel; one is made and sent unless given.

    Returns:
        The homomorphic key, if the program needs one.
    """
    return _Offline(run, plan, sink).prepare(key)


class _Offline:
    """One offline phase, and the client's shares by value name."""

    def __init__(self, run: Run, plan: Plan, sink: Sink) -> None:
        self.run, self.plan, self.sink = run, plan, sink
        self.modulus = plan.program.modulus
        self.shares: dict[str, Words] = {}

    def prepare(self, key: ClientKey | None) -> ClientKey | None:
        plan, program = self.plan, self.plan.program
        blind = self.modulus.random(program.input_shape, self.run.rng)
        self.sink.put(plan.stream("mask", INPUT), Prepared({"mask": blind.copy()}))
        self.shares[INPUT] = blind
        self._settle()
        for stage in plan.steps.offline:
            setup: Any = key if isinstance(stage.protocol, HeLinear) else None
            if setup is None:
                with self.run.channel.ledger.at(SETUP, "setup"):
                    setup = stage.protocol.setup(self.run, stage.layers)
            if isinstance(setup, ClientKey):
                key = setup
            for flight in stage.flights:
                self._fly(setup, flight)
        if self.run.observe:
            for name, share in self.shares.items():
                self.run.observe(name, share)
        for name in program.outputs:
            self.sink.put(plan.stream("share", name), Prepared({"share": self.shares[name].copy()}))
        return key

    def _settle(self) -> None:
        """Draw the blinds, and derive the shares, that wait for nothing more from the server."""
        for op in self.plan.program.ops:
            if op.name in self.shares or self.plan.decided(op):
                continue
            if not isinstance(op, Local) and not self.plan.passed[op.name].size:
                self.shares[op.name] = self._chosen(op)
            elif all(name in self.shares for name in op.inputs):
                known = [self.shares[name] for name in op.inputs]
                if isinstance(op, Local):
                    self.shares[op.name] = op.on_share(known, self.modulus, server=False)
                else:
                    self.shares[op.name] = self._chosen(op, known[0])

    def _chosen(self, op: Op, share: Words | None = None) -> Words:
        """A fresh share of the result, but where no step computes it: there it stays ``share``."""
        blind = self.modulus.random(self.plan.program.values[op.name].shape, self.run.rng)
        if share is not None:
            passed = self.plan.passed[op.name]
            blind.reshape(-1)[passed] = share.reshape(-1)[passed]
        return blind

    def _fly(self, setup: Any, flight: Flight) -> None:
        """Prepare the steps of a flight; what a protocol decides of the client's shares is known afterwards."""
        steps = [(step.name, step.protocol.offline(self.run, setup, step.layer, *self._known(step))) for step in flight]
        streams = [self.plan.stream(step.stream, step.name) for step in flight]
        results = side_by_side(
            self.run, "offline", steps, lambda number, prepared: self.sink.put(streams[number], prepared)
        )
        for step, share in zip(flight, results, strict=True):
            if share is not None:
                self.shares[step.name] = share.reshape(self.plan.program.values[step.name].shape)
        self._settle()

    def _known(self, step: Step) -> tuple[Words, Words | None]:
        """The client's shares of a step's input, and of its output if the client chooses that."""
        share = self.shares[self.plan.operations[step.name].inputs[0]].reshape(-1)[step.reads]
        if step.protocol.decides:
            return share, None
        return share, self.shares[step.name].reshape(-1)[step.writes]


def online(run: Run, plan: Plan, source: Source, x: Integers) -> Integers:
    """Run one inference; the server calls :meth:`deepreshape.private.parties.server.Model.online`.

    Args:
        run: of the client, with the id of the offline phase.
        plan: what was prepared.
        source: what :func:`offline` put; used up.
        x: the input, int64 of the program's input shape.

    Returns:
        The output's integers, int64.

    Raises:
        ValueError: if ``x`` does not fit the program; nothing has been sent or used up then.
        ProtocolError: if the server breaks the protocol.
    """
    check_input(plan, x)
    channel, program, modulus = run.channel, plan.program, plan.program.modulus
    with channel.ledger.at(INPUT, "online"):
        blind = _only(source, plan.stream("mask", INPUT))["mask"]
        channel.send(Frame.SHARES, modulus.pack(modulus.sub(modulus.encode(x), blind)))
    for flight in plan.steps.online:
        steps = [
            (step.name, step.protocol.online(run, step.layer, plan.prepared(step, "client", source), None))
            for step in flight
        ]
        side_by_side(run, "online", steps)
    with channel.ledger.at(OUTPUT, "online"):
        results: list[Integers] = []
        for name in program.outputs:
            value = program.values[name]
            received = modulus.unpack(channel.receive(Frame.SHARES, value.size * modulus.element_bytes), value.size)
            share = _only(source, plan.stream("share", name))["share"]
            results.append(modulus.decode(modulus.add(share, received.reshape(value.shape))))
        return program.joined(results)


def check_input(plan: Plan, x: Integers) -> None:
    """Refuse an input that does not fit the program.

    Raises:
        ValueError: saying what it is and what it must be.
    """
    program, largest = plan.program, int(np.abs(x).max(initial=0))
    if x.dtype != np.int64 or x.shape != program.input_shape:
        raise ValueError(f"the input is {x.dtype} {x.shape}; it must be int64 {program.input_shape}")
    if largest > program.input_bound:
        reached, most = (value / 2**program.input_fraction for value in (largest, program.input_bound))
        raise ValueError(f"the input reaches {reached:.6g}; this program takes absolute values up to {most:.6g}")


def _only(source: Source, stream: str) -> dict[str, Words]:
    return next(source.get(stream)).take()
