"""``gc-full``: the whole ReLU in one garbled circuit, after which its input's bits are never seen.

The output is exact: max(x, 0) / 2^shift to the nearest = r + y_server, where r is what the client chose offline. The
circuit drops bits; the server has added half a unit to its share before, which changes no output's sign.

``garbler="server"`` (DELPHI: Mishra et al., USENIX Security 2020). The paper feeds r into the circuit by oblivious
transfer; here, as in its code, the garbler feeds in a blind m of its own, which halves the transfers:
    offline  client -> server   oblivious transfers that choose the labels of x_client
             server -> client   seed of the labels of the server's fresh blind m, tables, decode bits
    online   server -> client   labels of x_server
             client             evaluates, and learns (ReLU + m), which is uniform to it
             client -> server   ReLU + m - r; the server subtracts m

``garbler="client"`` (Garimella et al., ASPLOS 2023; the store lies with the server):
    offline  server -> client   oblivious transfers of labels for random bits
             client -> server   seed of the labels of x_client and of the blind -r, tables, decode bits
    online   server -> client   its corrections of those bits
             client -> server   the labels of x_server, masked
             server             evaluates, and learns ReLU - r, its share
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np

from deepreshape.private.arith.ring import Bits, Field, Ring, Words, from_bits, to_bits
from deepreshape.private.arith.truncation import half_unit, to_nearest
from deepreshape.private.crypto.gc.relu_circuits import relu_and_gates
from deepreshape.private.crypto.labels import permute_bits
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program.ops import Relu
from deepreshape.private.protocols.base import Arrays, Integers, Offline, Prepared, Run
from deepreshape.private.protocols.garbled.label_transfer import (
    Evaluator,
    GarbledLayer,
    Garbler,
    evaluated,
    kept_bytes,
    label_bytes,
    receive_choices,
    receive_circuits,
    send_choices,
    send_circuits,
    send_labels,
)
from deepreshape.private.protocols.garbled.relu_garbled import GarbledRelu
from deepreshape.private.transport.channel import Frame


@final
class ReluGc(GarbledRelu):
    """See the module."""

    mux = False
    work_names = "gc-full"

    def layer(self, modulus: Ring | Field, op: Relu, count: int) -> GarbledLayer:
        return GarbledLayer(op.name, modulus, op.shift, count, self.config.garbler, self.config.batch)

    def replay(self, layer: GarbledLayer, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        return to_nearest(np.maximum(x, 0), layer.shift)

    def max_input(self, layer: GarbledLayer) -> int:
        return (layer.modulus.order - 1) // 2 - half_unit(layer.shift)

    def known(self, run: Run, layer: GarbledLayer, share: Words | None, blind: Words | None) -> tuple[Bits, Arrays]:
        bits = layer.modulus.bits
        if share is None or blind is None:
            drawn = layer.modulus.random(layer.count, run.rng)
            return to_bits(drawn, bits), {"mask": drawn}
        return np.concatenate([to_bits(share, bits), to_bits(layer.modulus.neg(blind), bits)]), {}

    def choices(self, layer: GarbledLayer, share: Words, blind: Words) -> tuple[Bits, Arrays]:
        return to_bits(share, layer.modulus.bits), {"mask": blind.copy()}

    def garble(
        self, run: Run, layer: GarbledLayer, garbler: Garbler, chosen: list[Words], known: Bits, kept: Arrays
    ) -> Offline:
        head, batches = send_circuits(run, layer, garbler, chosen, known)
        for outputs in batches:
            run.channel.send(Frame.TABLES, np.packbits(permute_bits(outputs)))
        yield Prepared(head | kept)

    def evaluate(
        self, run: Run, layer: GarbledLayer, evaluator: Evaluator, labels: list[Words], kept: Arrays
    ) -> Offline:
        head, batches = receive_circuits(run, layer, labels)
        yield Prepared(head | kept)
        for size, batch in zip(layer.sizes, batches, strict=True):
            decode = run.channel.receive(Frame.TABLES, -(-layer.modulus.bits * size // 8))
            yield Prepared(batch | {"decode": np.frombuffer(decode, np.uint8)})

    def client_online(self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared]) -> None:
        if layer.garbler == "client":
            send_labels(run, layer, head, receive_choices(run, layer))
        else:
            reply = layer.modulus.sub(_results(run, layer, head, batches), head["mask"])
            run.channel.send(Frame.SHARES, layer.modulus.pack(reply))

    def server_online(
        self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared], share: Words
    ) -> Words:
        raised = layer.modulus.add(share, np.full_like(share, half_unit(layer.shift)))
        planes = to_bits(raised, layer.modulus.bits)
        if layer.garbler == "server":
            send_labels(run, layer, head, planes)
            reply = run.channel.receive(Frame.SHARES, layer.count * layer.modulus.element_bytes)
            return layer.modulus.sub(layer.modulus.unpack(reply, layer.count), head["mask"])
        send_choices(run, layer, head, planes)
        return _results(run, layer, head, batches)

    def and_gates(self, layer: GarbledLayer) -> int:
        return relu_and_gates(layer.modulus, layer.shift)

    def decode_bytes(self, layer: GarbledLayer) -> int:
        return sum(-(-layer.modulus.bits * size // 8) for size in layer.sizes)

    def online_bytes(self, layer: GarbledLayer) -> tuple[int, int]:
        if layer.garbler == "server":
            return layer.count * layer.modulus.element_bytes, label_bytes(layer)
        return label_bytes(layer), -(-layer.chosen * layer.count // 8)

    def stored(self, layer: GarbledLayer) -> tuple[int, int]:
        garbler, evaluator = kept_bytes(layer, self.and_gates(layer))
        evaluator += self.decode_bytes(layer)
        if layer.garbler == "server":
            return evaluator + 8 * layer.count, garbler + 8 * layer.count
        return garbler, evaluator + -(-layer.modulus.bits * layer.count // 8)


def _results(run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared]) -> Words:
    """The circuit's outputs, uint64 (count,)."""
    results: list[Words] = []
    for arrays, outputs in evaluated(run, layer, head, batches):
        shape = outputs.shape[:2]
        decode = np.unpackbits(arrays["decode"], count=shape[0] * shape[1]).reshape(shape)
        results.append(from_bits(permute_bits(outputs) ^ decode))
        if int(results[-1].max()) >= layer.modulus.order:
            raise ProtocolError(f"what the peer garbled for layer {layer.name!r} gives a value not in {layer.modulus}")
    return np.concatenate(results)
