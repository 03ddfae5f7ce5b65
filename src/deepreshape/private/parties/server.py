"""The server: owns the weights, learns that it was asked and nothing else. ``client.py`` states protocol and trust."""

from __future__ import annotations

import numpy as np

from deepreshape.private.arith.ring import Randomness, Words
from deepreshape.private.crypto.he.bfv import Responder
from deepreshape.private.crypto.he.residues import Residues
from deepreshape.private.parties.plan import OUTPUT, SETUP, Plan
from deepreshape.private.parties.preprocessing import Sink, Source
from deepreshape.private.program.encoding import digest
from deepreshape.private.program.integer_linear import locally, on_shares
from deepreshape.private.program.ops import (
    INPUT,
    Add,
    Conv2d,
    Flatten,
    Linear,
    Program,
    Raise,
    Relu,
    SumPool,
    Truncate,
)
from deepreshape.private.protocols import base as relu
from deepreshape.private.protocols import truncate
from deepreshape.private.protocols.base import Prepared
from deepreshape.private.protocols.he_workers import Workers, worthwhile
from deepreshape.private.protocols.linear import (
    EncodedWeights,
    receive_mask,
    receive_public_key,
    send_responses,
    split_groups,
)
from deepreshape.private.transport.channel import Channel, Frame


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
        program.check(plan.rooms)
        self.program = program
        self.plan = plan
        self.encoded: dict[str, list[EncodedWeights]] = {}
        products = sum(row.he_products for row in plan.declared().rows)
        self.workers = worthwhile(products, most=1 if keep else workers)
        for name, layout in plan.layouts.items():
            weight = program.weights[name].weight
            weight = weight.reshape(*weight.shape[:2], layout.layer.kernel, layout.layer.kernel)
            parts = split_groups(weight, layout.layer)
            self.encoded[name] = [EncodedWeights(layout, part, keep=keep) for part in parts]


def offline(
    channel: Channel,
    model: Model,
    session: bytes,
    sink: Sink,
    *,
    responder: Responder | None = None,
    rng: Randomness | None = None,
) -> Responder | None:
    """The counterpart of :func:`deepreshape.private.parties.client.offline`, whose notes hold here.

    ``responder`` is what this function returned for an earlier run over this channel: it has the client's key.
    """
    plan, rng = model.plan, rng or Randomness()
    if plan.parameters is not None:
        if responder is None:
            with channel.ledger.at(SETUP, "setup"):
                responder = receive_public_key(channel, plan.parameters, rng)
        with Workers(model.workers, responder) as workers:
            for level in plan.levels:
                _answer(channel, model, workers, [op.name for op in level], sink)
    if plan.truncations:
        with channel.ledger.at(SETUP, "setup"):
            sender = truncate.Sender.start(channel, session, rng)
        for name, layer in plan.truncations.items():
            with channel.ledger.at(name, "offline"):
                prepared = truncate.server_offline(channel, layer, sender)
            sink.put(plan.stream("truncate", name), prepared)
    if plan.relus:
        with channel.ledger.at(SETUP, "setup"):
            party = relu.start(channel, "server", plan.relus.values(), session, rng)
        for flight in plan.flights:
            steps = {op.name: relu.server_offline(channel, plan.relus[op.name], party) for op in flight}
            for name, prepared in relu.together(channel, steps):
                sink.put(plan.stream("relu", name), prepared)
    return responder


def _answer(channel: Channel, model: Model, workers: Workers, level: list[str], sink: Sink) -> None:
    """Take the client's masks of all these layers, then answer one after the other, and keep the shares."""
    plan = model.plan
    received: dict[str, list[list[memoryview]]] = {}
    for name in level:
        with channel.ledger.at(name, "offline"):
            received[name] = [receive_mask(channel, group.layout) for group in model.encoded[name]]
    for name in level:
        with channel.ledger.at(name, "offline"):
            shares: list[Residues] = []
            for group, ciphertexts in zip(model.encoded[name], received.pop(name), strict=True):
                responses, share = workers.respond(group, ciphertexts)
                send_responses(channel, responses)
                shares.append(share)
        share = np.concatenate(shares).reshape(plan.program.values[name].shape)
        sink.put(plan.stream("linear", name), Prepared({"share": share}))


def online(channel: Channel, model: Model, session: bytes, source: Source) -> None:
    """The counterpart of :func:`deepreshape.private.parties.client.online`, whose notes hold here."""
    program, plan = model.program, model.plan
    modulus, values = program.modulus, program.values
    with channel.ledger.at(INPUT, "online"):
        count = values[INPUT].size
        received = modulus.unpack(channel.receive(Frame.SHARES, count * modulus.element_bytes), count)
    shares = {INPUT: received.reshape(program.input_shape)}
    for op in program.ops:
        share = shares[op.inputs[0]]
        with channel.ledger.at(op.name, "online"):
            match op:
                case Conv2d() | Linear():
                    shares[op.name] = _linear(model, op, share, next(source.get(plan.stream("linear", op.name))))
                case Relu() | Truncate():
                    shares[op.name] = _nonlinear(channel, plan, op, share, session, source)
                case Add() | SumPool() | Raise() | Flatten():
                    shares[op.name] = locally(op, [shares[name] for name in op.inputs], modulus)
    with channel.ledger.at(OUTPUT, "online"):
        channel.send(Frame.SHARES, modulus.pack(shares[program.output]))


def _linear(model: Model, op: Conv2d | Linear, share: Words, prepared: Prepared) -> Words:
    """W x_server + s + b."""
    modulus, own = model.program.modulus, model.program.weights[op.name]
    masked = modulus.add(on_shares(op, own, share, modulus), prepared.take()["share"])
    bias = modulus.encode(own.bias if isinstance(op, Linear) else own.bias[:, None, None])
    return modulus.add(masked, bias)


def _nonlinear(
    channel: Channel, plan: Plan, op: Relu | Truncate, share: Words, session: bytes, source: Source
) -> Words:
    flat = share.reshape(-1)
    rectified, truncated = plan.positions(op)
    result = flat.copy()  # where nothing is done, the share stays what it is
    truncation, own = plan.truncations.get(op.name), None
    if truncation:
        prepared = next(source.get(plan.stream("truncate", op.name)))
        own = truncate.server_send(channel, truncation, prepared, flat[truncated])
    if op.name in plan.relus:
        stream = source.get(plan.stream("relu", op.name))
        result[rectified] = relu.server_online(channel, plan.relus[op.name], session, stream, flat[rectified])
    if truncation and own is not None:
        result[truncated] = truncate.server_receive(channel, truncation, own)
    return result.reshape(share.shape)
