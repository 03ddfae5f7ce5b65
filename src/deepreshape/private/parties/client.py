"""The client: owns the input, learns the output; the hybrid protocol of DELPHI (Mishra et al., USENIX Security 2020).

Model: two semi-honest parties. Every value x of the program is shared, x = x_client + x_server. The client's share of
every value is known offline: it is a mask that the client drew (of the input, and behind every ReLU and truncation), or
what the homomorphic step returned (W r - s, ``linear.py``), or a sum of such shares. So all homomorphic work and all
garbling is done before any input exists, and additions, pooling and flattening cost no message at all.

*Order of the offline phase.* Masks behind ReLUs do not depend on what is before them, so the masks of all linear layers
travel at once, and the answers after them; only layers with nothing but additions between them wait for one another.
Then come the transfers for truncation, and the ReLUs: oblivious transfers for as many layers as may lie in memory,
then their circuits (``Plan.levels``, ``Plan.flights``). A party reads all of a flight before it answers, so that
neither blocks the other, and waits once a flight and not once a layer.

*The client learns* the output, and public facts: architecture, shapes, formats, bit widths and mask positions. Beside
those it sees W r - s (uniform, s is fresh), garbled circuits that give values under the server's masks, and pads.
*The server learns* that a query was made and when; it sees ciphertexts under the client's key, and values under
fresh masks of the client's. Nothing a party sends depends in length or number on secrets.

A party that deviates is not kept from harm it can do: a malicious client of this protocol family can extract the model.
What a peer sends is checked for kind, length and range, and a failed check ends the run; its material is spent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deepreshape.private.arith.ring import Randomness, Words
from deepreshape.private.crypto.he.bfv import ClientKey
from deepreshape.private.parties.plan import OUTPUT, SETUP, Plan
from deepreshape.private.parties.preprocessing import Sink, Source
from deepreshape.private.program.integer_linear import Integers, locally
from deepreshape.private.program.ops import INPUT, Conv2d, Linear, Relu, Truncate
from deepreshape.private.protocols import base as relu
from deepreshape.private.protocols import truncate
from deepreshape.private.protocols.base import Party, Prepared, Step
from deepreshape.private.protocols.linear import receive_share, send_mask, send_public_key
from deepreshape.private.transport.channel import Channel, Frame

Observer = Callable[[str, Words], None]


def offline(
    channel: Channel,
    plan: Plan,
    session: bytes,
    sink: Sink,
    *,
    key: ClientKey | None = None,
    rng: Randomness | None = None,
    observe: Observer | None = None,
) -> ClientKey | None:
    """Prepare one inference; the server calls :func:`deepreshape.private.parties.server.offline`.

    Several may be prepared over one channel, under one homomorphic key: every ciphertext is fresh, and every response
    re-randomised and flooded anew. Nothing else may be shared: offsets, and so the base transfers, are each run's own.

    Args:
        channel: to the server.
        plan: what is to run.
        session: names this run and never repeats; both parties have compared it.
        sink: where to put what :func:`online` will need.
        key: what this function returned for an earlier run over this channel; one is made and sent unless given.
        rng: for tests.
        observe: is shown the client's share of every value, by name, so that the plain interpreter can
            round as this run will. For checks on one machine: whoever sees them and the server's shares sees the input.

    Returns:
        The homomorphic key, if the program needs one.
    """
    return _Offline(channel, plan, session, sink, rng or Randomness()).run(key, observe or _ignore)


class _Offline:
    """One offline phase, and the client's shares by value name."""

    def __init__(self, channel: Channel, plan: Plan, session: bytes, sink: Sink, rng: Randomness) -> None:
        self.channel, self.plan, self.session, self.sink, self.rng = channel, plan, session, sink, rng
        self.modulus = plan.program.modulus
        self.shares: dict[str, Words] = {}

    def run(self, key: ClientKey | None, observe: Observer) -> ClientKey | None:
        plan, program = self.plan, self.plan.program
        mask = self.modulus.random(program.input_shape, self.rng)
        self.sink.put(plan.stream("mask", INPUT), Prepared({"mask": mask.copy()}))
        self.shares[INPUT] = mask
        self._settle()
        if plan.parameters is not None:
            if key is None:
                key = ClientKey(plan.parameters)
                with self.channel.ledger.at(SETUP, "setup"):
                    send_public_key(self.channel, key)
            for level in plan.levels:
                self._linear(key, level)
                self._settle()
        for name, share in self.shares.items():
            observe(name, share)
        if plan.truncations:
            with self.channel.ledger.at(SETUP, "setup"):
                receiver = truncate.Receiver.start(self.channel, self.session, self.rng)
            for op in program.ops:
                if isinstance(op, Relu | Truncate) and op.name in plan.truncations:
                    self._truncate(receiver, op)
        if plan.relus:
            with self.channel.ledger.at(SETUP, "setup"):
                party = relu.start(self.channel, "client", plan.relus.values(), self.session, self.rng)
            for flight in plan.flights:
                self._rectify(party, flight)
        output = self.shares[program.output]
        self.sink.put(plan.stream("share", program.output), Prepared({"share": output.copy()}))
        return key

    def _settle(self) -> None:
        """Draw the masks, and derive the shares, that wait for nothing more from the server."""
        for op in self.plan.program.ops:
            if op.name in self.shares or isinstance(op, Conv2d | Linear):
                continue
            masked = isinstance(op, Relu | Truncate)
            if masked and not self.plan.passed(op).size:
                self.shares[op.name] = self._mask(op)
            elif all(name in self.shares for name in op.inputs):
                known = [self.shares[name] for name in op.inputs]
                self.shares[op.name] = self._mask(op, known[0]) if masked else locally(op, known, self.modulus)

    def _mask(self, op: Relu | Truncate, share: Words | None = None) -> Words:
        """A fresh share of the output, but where nothing is done at all: there it stays ``share``."""
        mask = self.modulus.random(self.plan.program.values[op.name].shape, self.rng)
        if share is not None:
            passed = self.plan.passed(op)
            mask.reshape(-1)[passed] = share.reshape(-1)[passed]
        return mask

    def _linear(self, key: ClientKey, level: list[Conv2d | Linear]) -> None:
        """Send the masks of all these layers, then take their shares."""
        for op in level:
            layout = self.plan.layouts[op.name]
            with self.channel.ledger.at(op.name, "offline"):
                for mask in self.shares[op.inputs[0]].reshape(-1, *layout.layer.input_shape):
                    send_mask(self.channel, key, layout, mask)
        for op in level:
            layout = self.plan.layouts[op.name]
            with self.channel.ledger.at(op.name, "offline"):
                found = [receive_share(self.channel, key, layout) for _ in range(layout.layer.copies)]
            self.shares[op.name] = np.concatenate(found).reshape(self.plan.program.values[op.name].shape)

    def _truncate(self, receiver: truncate.Receiver, op: Relu | Truncate) -> None:
        layer = self.plan.truncations[op.name]
        _, truncated = self.plan.positions(op)
        shares = [self.shares[name].reshape(-1)[truncated] for name in (op.inputs[0], op.name)]
        with self.channel.ledger.at(op.name, "offline"):
            prepared = truncate.client_offline(self.channel, layer, receiver, *shares)
        self.sink.put(self.plan.stream("truncate", op.name), prepared)

    def _rectify(self, party: Party, flight: list[Relu]) -> None:
        """The transfers of all these layers, then their circuits."""
        steps: dict[str, Step] = {}
        for op in flight:
            rectified, _ = self.plan.positions(op)
            shares = [self.shares[name].reshape(-1)[rectified] for name in (op.inputs[0], op.name)]
            steps[op.name] = relu.client_offline(self.channel, self.plan.relus[op.name], party, *shares)
        for name, prepared in relu.together(self.channel, steps):
            self.sink.put(self.plan.stream("relu", name), prepared)


def online(channel: Channel, plan: Plan, session: bytes, source: Source, x: Integers) -> Integers:
    """Run one inference; the server calls :func:`deepreshape.private.parties.server.online`.

    Args:
        channel: to the server.
        plan: what was prepared.
        session: of the offline phase.
        source: what :func:`offline` put; used up.
        x: the input, int64 of the program's input shape.

    Returns:
        The output's integers, int64.

    Raises:
        ValueError: if ``x`` does not fit the program; nothing has been sent or used up then.
        ProtocolError: if the server breaks the protocol.
    """
    check_input(plan, x)
    program, modulus = plan.program, plan.program.modulus
    with channel.ledger.at(INPUT, "online"):
        mask = _only(source, plan.stream("mask", INPUT))["mask"]
        channel.send(Frame.SHARES, modulus.pack(modulus.sub(modulus.encode(x), mask)))
    for op in program.ops:
        if not isinstance(op, Relu | Truncate):
            continue
        with channel.ledger.at(op.name, "online"):
            truncation = plan.truncations.get(op.name)
            answer = None
            if truncation:
                prepared = next(source.get(plan.stream("truncate", op.name)))
                answer = truncate.client_receive(channel, truncation, prepared)
            if op.name in plan.relus:
                relu.client_online(channel, plan.relus[op.name], session, source.get(plan.stream("relu", op.name)))
            if truncation and answer is not None:
                truncate.client_send(channel, truncation, answer)
    with channel.ledger.at(OUTPUT, "online"):
        value = program.values[program.output]
        theirs = modulus.unpack(channel.receive(Frame.SHARES, value.size * modulus.element_bytes), value.size)
        mine = _only(source, plan.stream("share", program.output))["share"]
        return modulus.decode(modulus.add(mine, theirs.reshape(value.shape)))


def check_input(plan: Plan, x: Integers) -> None:
    """Refuse an input that does not fit the program.

    Raises:
        ValueError: saying what it is and what it must be.
    """
    shape, bound = plan.program.input_shape, plan.program.input_bound
    if x.dtype != np.int64 or x.shape != shape or int(np.abs(x).max()) > bound:
        raise ValueError(f"the input is {x.dtype} {x.shape}; it must be int64 {shape} of absolute values up to {bound}")


def _ignore(name: str, share: Words) -> None: ...


def _only(source: Source, stream: str) -> dict[str, Words]:
    return next(source.get(stream)).take()
