"""The client: owns the input, learns the output; the hybrid protocol of DELPHI (Mishra et al., USENIX Security 2020).

Model: two semi-honest parties. Every value x of the program is shared, x = x_client + x_server. The client's share of
every value is known offline: it is a mask that the client drew (of the input, and behind every ReLU and truncation), or
what the homomorphic step returned (W r - s, ``linear.py``), or a sum of such shares. So all homomorphic work and all
garbling is done before any input exists, and additions, pooling and flattening cost no message at all.

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

from deepreshape.private import relu, truncate
from deepreshape.private.channel import Channel, Frame
from deepreshape.private.exact import Integers, locally
from deepreshape.private.he import ClientKey
from deepreshape.private.linear import receive_share, send_mask, send_public_key
from deepreshape.private.material import Sink, Source
from deepreshape.private.plan import OUTPUT, SETUP, Plan
from deepreshape.private.program import INPUT, Add, Conv2d, Flatten, Linear, Raise, Relu, SumPool, Truncate
from deepreshape.private.relu import Evaluator, Garbler, Prepared
from deepreshape.private.shares import Randomness, Words

Observer = Callable[[str, Words], None]


def offline(
    channel: Channel,
    plan: Plan,
    session: bytes,
    sink: Sink,
    *,
    rng: Randomness | None = None,
    observe: Observer | None = None,
) -> None:
    """Prepare one inference; the server calls :func:`deepreshape.private.server.offline`.

    Args:
        channel: to the server.
        plan: what is to run.
        session: names this run and never repeats; both parties have compared it.
        sink: where to put what :func:`online` will need.
        rng: for tests.
        observe: is shown the client's share of every value, by name, so that :func:`deepreshape.private.plain.run` can
            round as this run will. For checks on one machine: whoever sees them and the server's shares sees the input.
    """
    _Offline(channel, plan, session, sink, rng or Randomness()).run(observe or _ignore)


class _Offline:
    """One offline phase: the parties' engines, and the client's shares by value name."""

    def __init__(self, channel: Channel, plan: Plan, session: bytes, sink: Sink, rng: Randomness) -> None:
        self.channel, self.plan, self.sink, self.rng = channel, plan, sink, rng
        self.modulus = plan.program.modulus
        self.shares: dict[str, Words] = {}
        with channel.ledger.at(SETUP, "setup"):
            if plan.parameters is not None:
                self.key = ClientKey(plan.parameters)
                send_public_key(channel, self.key)
            if plan.relus:
                engine = Garbler if plan.garbler == "client" else Evaluator
                self.engine = engine.start(channel, session, rng)
            if plan.truncations:
                self.receiver = truncate.Receiver.start(channel, session, rng)

    def run(self, observe: Observer) -> None:
        program = self.plan.program
        mask = self.modulus.random(program.input_shape, self.rng)
        self.sink.put(self.plan.stream("mask", INPUT), Prepared({"mask": mask.copy()}))
        self.shares[INPUT] = mask
        observe(INPUT, mask)
        for op in program.ops:
            share = self.shares[op.inputs[0]]
            with self.channel.ledger.at(op.name, "offline"):
                match op:
                    case Conv2d() | Linear():
                        self.shares[op.name] = self._linear(op, share)
                    case Relu() | Truncate():
                        self.shares[op.name] = self._nonlinear(op, share)
                    case Add() | SumPool() | Raise() | Flatten():
                        self.shares[op.name] = locally(op, [self.shares[name] for name in op.inputs], self.modulus)
            observe(op.name, self.shares[op.name])
        output = self.shares[program.output]
        self.sink.put(self.plan.stream("share", program.output), Prepared({"share": output.copy()}))

    def _linear(self, op: Conv2d | Linear, share: Words) -> Words:
        layout = self.plan.layouts[op.name]
        groups = share.reshape(-1, *layout.layer.input_shape)
        found: list[Words] = []
        for group in groups:
            send_mask(self.channel, self.key, layout, group)
            found.append(receive_share(self.channel, self.key, layout))
        return np.concatenate(found).reshape(self.plan.program.values[op.name].shape)

    def _nonlinear(self, op: Relu | Truncate, share: Words) -> Words:
        """The client's share of the output: fresh masks, but where nothing is done at all."""
        plan, name, flat = self.plan, op.name, share.reshape(-1)
        rectified, truncated = plan.positions(op)
        mask = self.modulus.random(flat.size, self.rng)
        if name in plan.truncations:
            prepared = truncate.client_offline(
                self.channel, plan.truncations[name], self.receiver, flat[truncated], mask[truncated]
            )
            self.sink.put(plan.stream("truncate", name), prepared)
        else:
            mask[truncated] = flat[truncated]
        if name in plan.relus:
            shares = flat[rectified], mask[rectified]
            for prepared in relu.client_offline(self.channel, plan.relus[name], self.engine, *shares):
                self.sink.put(plan.stream("relu", name), prepared)
        return mask.reshape(share.shape)


def online(channel: Channel, plan: Plan, session: bytes, source: Source, x: Integers) -> Integers:
    """Run one inference; the server calls :func:`deepreshape.private.server.online`.

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
