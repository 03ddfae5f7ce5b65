"""``gc-full``: the whole ReLU in one garbled circuit, after which its input's bits are never seen.

The output is exact: (max(x, 0) >> shift) = r + y_server, where r is what the client chose offline.

``garbler="server"`` (DELPHI: Mishra et al., USENIX Security 2020). The paper feeds r into the circuit by oblivious
transfer; here, as in its code, the garbler feeds in a mask m of its own, which halves the transfers:
    offline  client -> server   oblivious transfers that choose the labels of x_client
             server -> client   seed of the labels of the server's fresh mask m, tables, decode bits
    online   server -> client   labels of x_server
             client             evaluates, and learns (ReLU + m), which is uniform to it
             client -> server   ReLU + m - r; the server subtracts m

``garbler="client"`` (Garimella et al., ASPLOS 2023; the store lies with the server):
    offline  server -> client   oblivious transfers of labels for random bits
             client -> server   seed of the labels of x_client and of the mask -r, tables, decode bits
    online   server -> client   its corrections of those bits
             client -> server   the labels of x_server, masked
             server             evaluates, and learns ReLU - r, its share
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deepreshape.private.arith.ring import Bits, Words, from_bits, to_bits
from deepreshape.private.crypto.circuit import and_gates
from deepreshape.private.crypto.labels import permute_bits
from deepreshape.private.protocols.label_transfer import (
    Arrays,
    Evaluator,
    Garbler,
    Prepared,
    ReluLayer,
    Step,
    Turn,
    choose,
    choosing_bytes,
    chosen_by_peer,
    evaluated,
    garbled_bytes,
    kept_bytes,
    label_bytes,
    random_choices,
    receive_circuits,
    send_circuits,
    send_labels,
)
from deepreshape.private.transport.channel import Channel, Frame, ProtocolError


def client_garbles(channel: Channel, layer: ReluLayer, garbler: Garbler, share: Words, mask: Words) -> Step:
    """Offline, at a client that garbles."""
    bits = layer.modulus.bits
    yield from _garble(
        channel, layer, garbler, np.concatenate([to_bits(share, bits), to_bits(layer.modulus.neg(mask), bits)]), {}
    )


def server_evaluates(channel: Channel, layer: ReluLayer, evaluator: Evaluator) -> Step:
    """Offline, at a server that evaluates."""
    choices = random_choices(layer, evaluator.rng)
    yield from _receive(channel, layer, evaluator, choices, {"choices": np.packbits(choices)})


def server_garbles(channel: Channel, layer: ReluLayer, garbler: Garbler) -> Step:
    """Offline, at a server that garbles."""
    mask = layer.modulus.random(layer.count, garbler.rng)
    yield from _garble(channel, layer, garbler, to_bits(mask, layer.modulus.bits), {"mask": mask})


def client_evaluates(channel: Channel, layer: ReluLayer, evaluator: Evaluator, share: Words, mask: Words) -> Step:
    """Offline, at a client that evaluates."""
    yield from _receive(channel, layer, evaluator, to_bits(share, layer.modulus.bits), {"mask": mask.copy()})


def client_online(
    channel: Channel, layer: ReluLayer, session: bytes, head: Arrays, batches: Iterator[Prepared]
) -> None:
    """The client's online step."""
    if layer.garbler == "client":
        bits = layer.chosen * layer.count
        packed = np.frombuffer(channel.receive(Frame.SHARES, -(-bits // 8)), np.uint8)
        send_labels(channel, layer, head, np.unpackbits(packed, count=bits).reshape(-1, layer.count))
    else:
        reply = layer.modulus.sub(_results(channel, layer, session, head, batches), head["mask"])
        channel.send(Frame.SHARES, layer.modulus.pack(reply))


def server_online(
    channel: Channel, layer: ReluLayer, session: bytes, head: Arrays, batches: Iterator[Prepared], share: Words
) -> Words:
    """The server's online step: its share of the output."""
    planes = to_bits(share, layer.modulus.bits)
    if layer.garbler == "server":
        send_labels(channel, layer, head, planes)
        reply = channel.receive(Frame.SHARES, layer.count * layer.modulus.element_bytes)
        return layer.modulus.sub(layer.modulus.unpack(reply, layer.count), head["mask"])
    choices = np.unpackbits(head["choices"], count=planes.size).reshape(planes.shape)
    channel.send(Frame.SHARES, np.packbits(choices ^ planes))
    return _results(channel, layer, session, head, batches)


def turns(layer: ReluLayer) -> list[Turn]:
    """Bytes of the offline step, turn by turn."""
    decode = sum(-(-layer.modulus.bits * size // 8) for size in layer.sizes)
    garbled, choosing = garbled_bytes(layer, and_gates(layer.modulus, layer.shift)) + decode, choosing_bytes(layer)
    if layer.garbler == "server":
        return [("C", choosing), ("S", garbled)]
    return [("S", choosing), ("C", garbled)]


def online_bytes(layer: ReluLayer) -> tuple[int, int]:
    """Bytes of the online step, (client to server, server to client)."""
    if layer.garbler == "server":
        return layer.count * layer.modulus.element_bytes, label_bytes(layer)
    return label_bytes(layer), -(-layer.chosen * layer.count // 8)


def stored(layer: ReluLayer) -> tuple[int, int]:
    """Bytes of arrays that (client, server) keep between the phases."""
    bits = layer.modulus.bits
    garbler, evaluator = kept_bytes(layer, and_gates(layer.modulus, layer.shift))
    evaluator += sum(-(-bits * size // 8) for size in layer.sizes)
    if layer.garbler == "server":
        return evaluator + 8 * layer.count, garbler + 8 * layer.count
    return garbler, evaluator + -(-bits * layer.count // 8)


def _garble(channel: Channel, layer: ReluLayer, garbler: Garbler, known: Bits, kept: Arrays) -> Step:
    chosen = chosen_by_peer(channel, layer, garbler)
    yield None
    head, batches = send_circuits(channel, layer, garbler, chosen, known)
    for outputs in batches:
        channel.send(Frame.TABLES, np.packbits(permute_bits(outputs)))
    yield Prepared(head | kept)


def _receive(channel: Channel, layer: ReluLayer, evaluator: Evaluator, choices: Bits, kept: Arrays) -> Step:
    labels = choose(channel, layer, evaluator, choices)
    yield None
    head, batches = receive_circuits(channel, layer, labels)
    yield Prepared(head | kept)
    for size, batch in zip(layer.sizes, batches, strict=True):
        decode = channel.receive(Frame.TABLES, -(-layer.modulus.bits * size // 8))
        yield Prepared(batch | {"decode": np.frombuffer(decode, np.uint8)})


def _results(channel: Channel, layer: ReluLayer, session: bytes, head: Arrays, batches: Iterator[Prepared]) -> Words:
    """The circuit's outputs, uint64 (count,)."""
    results: list[Words] = []
    for arrays, outputs in evaluated(channel, layer, session, head, batches):
        shape = outputs.shape[:2]
        decode = np.unpackbits(arrays["decode"], count=shape[0] * shape[1]).reshape(shape)
        results.append(from_bits(permute_bits(outputs) ^ decode))
        if int(results[-1].max()) >= layer.modulus.order:
            raise ProtocolError(f"what the peer garbled for layer {layer.name!r} gives a value not in {layer.modulus}")
    return np.concatenate(results)
