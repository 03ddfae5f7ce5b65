"""Signs by garbled circuits: shares of x to shares of +1 where x + t is above 0 and of -1 elsewhere.

t is the server's, by channel, and added to its own share before. The circuit is the sign test of ``relu_sign.py`` over
as many bits as x + t is proven to need: a sum of signs under one-bit weights needs few. So it is exact, unless the
config's word has a ``window`` and calibration left bits out (``sign_test.py``). What comes out of it is a label
of the sign s, and one message under each of its two labels makes shares of the value, as the rows of ``relu_sign.py``
do. With p the permute bit of the label of s = 0, the label of s has the permute bit c = s ^ p, which the evaluator sees
and which is uniform to it. Let m_c be +1 or -1 for s = c ^ p, and P_c a hash of that label:

    the garbler keeps m_0 + P_0, and sends m_1 - (m_0 + P_0) + P_1
    the evaluator takes -P_0 if c = 0, and what was sent less P_1 if c = 1

which adds up to m_c. There are no transfers from the garbler, no decode bits, and no product with x. The client sends
its part less r, its share of the result, which it chose offline; the server adds that to its own.

``garbler="server"``: offline the labels of the client's word by transfer, a seed and tables; online the labels of the
server's word and the messages, and back the client's part less r. ``garbler="client"``: labels of random bits by
transfer, corrected online.

*What the parties see.* The evaluator: a garbled circuit, one label of every wire, c, and a message of which it has the
key of one half. The garbler: columns of the transfer extension. The server in either role: the client's part less r,
which is uniform. The messages are ciphertexts under labels beside tables of the same Delta, under a tweak of their own,
as in ``relu_sign.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from deepreshape.private.arith.ring import Bits, Field, Ring, Words, to_bits
from deepreshape.private.crypto.labels import permute_bits, pick
from deepreshape.private.program.ops import ProgramError, Relu, Sign
from deepreshape.private.program.program import Program
from deepreshape.private.protocols.base import (
    Arrays,
    Declared,
    Integers,
    Offline,
    Prepared,
    Run,
)
from deepreshape.private.protocols.garbled.label_transfer import (
    LABEL_BYTES,
    Evaluator,
    GarbledLayer,
    Garbler,
    blinds_of,
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
from deepreshape.private.protocols.sign_test import replayed, thresholds_of, window_of
from deepreshape.private.transport.channel import Frame

TWEAK = "value of a sign"
"""Of the hash of a sign's label."""


@final
@dataclass(frozen=True)
class GarbledSign(GarbledRelu):
    """See the module.

    Args:
        config: who garbles, in which batches, and whether calibrated windows are read.
        thresholds: at the server, by layer, t of each element, uint64; :meth:`serving` makes it.
    """

    thresholds: Mapping[str, Words] = field(default_factory=dict[str, Words], repr=False)

    mux = False
    work_names = "sign"
    by_shares = True

    def layer(self, modulus: Ring | Field, op: Relu | Sign, count: int) -> GarbledLayer:
        assert isinstance(op, Sign)  # noqa: S101 - others are not given to it
        try:
            test = window_of(modulus, op, self.config)
        except ValueError as error:
            raise ProgramError(f"{op.name}: {error}") from None
        return GarbledLayer(op.name, modulus, 0, count, self.config.garbler, self.config.batch, test)

    def serving(self, layers: Sequence[GarbledLayer], program: Program, *, keep: bool, workers: int) -> GarbledSign:
        return replace(self, thresholds=thresholds_of(program, {layer.name: layer.count for layer in layers}))

    def replay(self, layer: GarbledLayer, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        return replayed(layer.test, x, client)

    def max_input(self, layer: GarbledLayer) -> int:
        return layer.test.max_input

    def known(self, run: Run, layer: GarbledLayer, share: Words | None, blind: Words | None) -> tuple[Bits, Arrays]:
        if share is None or blind is None:
            return np.empty((0, layer.count), np.uint8), {}
        return self.choices(layer, share, blind)

    def choices(self, layer: GarbledLayer, share: Words, blind: Words) -> tuple[Bits, Arrays]:
        return to_bits(layer.test.client_word(share), layer.test.width), {"blind": blind.copy()}

    def garble(
        self, run: Run, layer: GarbledLayer, garbler: Garbler, chosen: list[Words], known: Bits, kept: Arrays
    ) -> Offline:
        head, batches = send_circuits(run, layer, garbler, chosen, known)
        outputs = np.concatenate([labels[0] for labels in batches])
        yield Prepared(head | {"outputs": outputs} | kept)

    def evaluate(
        self, run: Run, layer: GarbledLayer, evaluator: Evaluator, labels: list[Words], kept: Arrays
    ) -> Offline:
        head, batches = receive_circuits(run, layer, labels)
        yield Prepared(head | kept)
        for batch in batches:
            yield Prepared(batch)

    def client_online(self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared]) -> None:
        if layer.garbler == "client":
            send_labels(run, layer, head, receive_choices(run, layer))
            part = _send_values(run, layer, head)
        else:
            part = _take_values(run, layer, head, batches)
        run.channel.send(Frame.SHARES, layer.modulus.pack(layer.modulus.sub(part, head["blind"])))

    def server_online(
        self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared], share: Words
    ) -> Words:
        modulus, test = layer.modulus, layer.test
        word = to_bits(test.server_word(modulus.add(share, self.thresholds[layer.name])), test.width)
        if layer.garbler == "server":
            send_labels(run, layer, head, word)
            part = _send_values(run, layer, head)
        else:
            send_choices(run, layer, head, word)
            part = _take_values(run, layer, head, batches)
        reply = run.channel.receive(Frame.SHARES, layer.count * modulus.element_bytes)
        return modulus.add(part, modulus.unpack(reply, layer.count))

    def and_gates(self, layer: GarbledLayer) -> int:
        return layer.test.compared_bits

    def decode_bytes(self, layer: GarbledLayer) -> int:
        return 0

    def online_bytes(self, layer: GarbledLayer) -> tuple[int, int]:
        element = layer.count * layer.modulus.element_bytes
        if layer.garbler == "server":
            return element, label_bytes(layer) + element
        return label_bytes(layer) + 2 * element, -(-layer.chosen * layer.count // 8)

    def stored(self, layer: GarbledLayer) -> tuple[int, int]:
        garbler, evaluator = kept_bytes(layer, self.and_gates(layer))
        garbler += LABEL_BYTES * layer.count
        blind = 8 * layer.count
        if layer.garbler == "server":
            return evaluator + blind, garbler
        return garbler + blind, evaluator + -(-layer.chosen * layer.count // 8)

    def declared(self, layer: GarbledLayer) -> Declared:
        declared = super().declared(layer)
        counts = {
            phase: {"signs" if name == "relus" else name: number for name, number in counted.items()}
            for phase, counted in declared.counts.items()
        }
        return replace(declared, counts=counts, resident=8 * layer.count)


def _send_values(run: Run, layer: GarbledLayer, head: Arrays) -> Words:
    """Online, at the garbler: its part of the values."""
    modulus, zero = layer.modulus, head["outputs"]
    permuted = permute_bits(zero)
    first = pick(zero, head["offset"], permuted)  # the label that the evaluator sees with c = 0
    values = [modulus.encode(np.where(permuted ^ c, 1, -1).astype(np.int64)) for c in (0, 1)]
    part = modulus.add(values[0], blinds_of(layer, run, first, TWEAK, modulus))
    second = blinds_of(layer, run, first ^ head["offset"], TWEAK, modulus)
    run.channel.send(Frame.ROWS, modulus.pack(modulus.add(modulus.sub(values[1], part), second)))
    return part


def _take_values(run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared]) -> Words:
    """Online, at the evaluator: its part of the values."""
    modulus = layer.modulus
    labels = np.concatenate([outputs[0] for _, outputs in evaluated(run, layer, head, batches)])
    received = run.channel.receive(Frame.ROWS, layer.count * modulus.element_bytes)
    sent = modulus.unpack(received, layer.count)
    return modulus.sub(
        np.where(permute_bits(labels), sent, np.uint64(0)), blinds_of(layer, run, labels, TWEAK, modulus)
    )
