"""``gc-sign`` and ``gc-stochastic``: only the sign comes out of the circuit; the MUX with x is outside it.

The idea is Circa's (Ghodsi et al., NeurIPS 2021), which multiplies by a Beaver triple; here the labels of the sign
multiplex, and truncate by f bits with it, in the same round. How wrong the sign may be is ``drelu.py``'s affair: 0 for
gc-sign. The rounding is ``arith/truncation.py``'s: the floor of x / 2^f or one unit above (over a field rarely one
below), exact for f = 0 and for multiples of 2^f. A value whose sign is not positive gives 0.

Let G be the garbler's and E the evaluator's part of x / 2^f, g and e their bits "my share is at least M/2", and K = M
>> f: ``arith/truncation.py`` shows T = G + E + g e K. Let s be the sign. The garbler draws t and sends decode bits that
are masked with it, so that the evaluator learns c = s ^ t, which is uniform, and neither knows s. Wanted: shares of s T
= s G + s E + s g e K.

1. *A correction under a wire.* For values m0 and m1 that the garbler knows, one for each label, and blinds P0, P1,
   which are hashes of the two labels: the garbler keeps m0 + P0 and sends m1 - (m0 + P0) + P1. The evaluator takes -P0,
   or the correction less P1; with what the garbler keeps that is m0, or m1. It sees the correction under a blind that
   it does not have.
2. *s E.* s E = c E + (1 - 2c) t E. Of E, the evaluator holds a random part a, the garbler the rest, D = E - a. One
   correlated oblivious transfer, in which the garbler chooses by t, gives blinds P0, P1 to the evaluator and P_t to the
   garbler: with a = P1 - P0, u = -P0 and v = P_t, u + v = t a. So nothing is sent for a. Then s E = s D + c a + (1 -
   2c) (u + v), where the evaluator knows c a + (1 - 2c) u. D is uniform to the garbler.
3. The garbler sends one correction under the sign's wire, for m_c = s (G + D) + (1 - 2c) v.
4. *s g e K.* A correction under the sign's wire, for m_c = s g K, gives shares z_E + z_G of z = s g K. Then e z = e
   z_E, which the evaluator knows, plus e z_G, which is a correction under the wire of e, for m0 = 0 and m1 = z_G. Both
   corrections have f bits in the ring. With f = 0 there is nothing to correct: K is a multiple of M.

Either party ends up with a share of s T. The client sends its own less r, and the server adds that to its own.

``garbler="server"``: E is known offline, so D is sent then.
    offline  client -> server   oblivious transfers of the labels of the client's word and of e
             server -> client   its choices t, a seed, tables, masked decode bits
             client -> server   D
    online   server -> client   labels of the server's word; the corrections
             client -> server   its share less r

``garbler="client"``: E is known online, and D is one more element.
    offline  server -> client   oblivious transfers of labels for random bits
             client -> server   its choices t, the seed of the labels of its word, tables, masked decode bits
    online   server -> client   its corrections of those bits; D
             client -> server   labels, masked; the corrections; its share less r

*What the parties see.* The evaluator: a garbled circuit, one label for every wire, c, and corrections of which it can
open, per wire, the one that its label is the key of. The garbler: D, under a blind of the evaluator's, and columns of
the transfer extension. The server in either role: the client's share less r, which is uniform.

*Assumptions.* The corrections are ciphertexts under two labels that differ by the global Delta, beside tables of the
same Delta; their hash is the gates' (``labels.py``), under keys of other tweaks, so circular correlation
robustness covers both. Each label is hashed once under each key, as the Delta claims every (session, layer, batch)
once. Transfers by t have a Delta of their own, the evaluator's, and base transfers under a session id of their own.

These corrections are no projection gates of arithmetic garbling (Ball, Malkin and Rosulek, CCS 2016). Such a gate's
messages are labels again, of a wire whose labels differ by multiples of a Delta of another modulus, so its corrections
are related by that secret Delta. A correction here hides a share that nobody ever uses as a key, and the garbler's own
part of it is a fresh blind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np

from deepreshape.private.arith.drelu import Parity, Window, Wrap
from deepreshape.private.arith.ring import Bits, Field, Modulus, Ring, Words, to_bits
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.crypto.labels import permute_bits, pick
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.program.ops import ProgramError, Relu
from deepreshape.private.protocols.base import Arrays, Integers, Offline, Prepared, Run
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
from deepreshape.private.transport.channel import Frame

SIGN_CORRECTION, WRAP_CORRECTION, HALF_CORRECTION = "row of the sign", "row of the wrap", "row of the half"
MUX = "product"
"""Tweaks of the hash; the last is for labels of another Delta."""


@final
class ReluSign(GarbledRelu):
    """See the module."""

    mux = True
    work_names = "sign"
    by_shares = True

    def layer(self, modulus: Ring | Field, op: Relu, count: int) -> GarbledLayer:
        config = self.config
        exact = config.protocol == "gc-sign"
        low = 0 if exact else op.low if config.window else config.drop
        try:
            if isinstance(modulus, Field):
                sign = Parity(modulus) if exact else Wrap(modulus, low, config.mode)
            else:
                high = op.high if config.window and op.high else modulus.bits
                sign = Window(modulus, low, high, "pos-zero" if exact else config.mode)
        except ValueError as error:
            raise ProgramError(f"{op.name}: {error}") from None
        return GarbledLayer(op.name, modulus, op.shift, count, config.garbler, config.batch, sign)

    def replay(self, layer: GarbledLayer, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        sign, server = layer.test, layer.modulus.sub(layer.modulus.encode(x), client)
        positive = sign.positive(sign.client_word(client), sign.server_word(server))
        return np.where(positive, _truncation(layer).rounded(x, client), 0)

    def max_input(self, layer: GarbledLayer) -> int:
        return min(layer.test.max_input, _truncation(layer).max_input)

    def known(self, run: Run, layer: GarbledLayer, share: Words | None, blind: Words | None) -> tuple[Bits, Arrays]:
        if share is None or blind is None:
            return np.empty((0, layer.count), np.uint8), {}
        part, half = _truncation(layer).client_part(share)
        kept = {"own": part, "half": np.packbits(half), "mask": blind.copy()}
        return to_bits(layer.test.client_word(share), layer.test.width), kept

    def choices(self, layer: GarbledLayer, share: Words, blind: Words) -> tuple[Bits, Arrays]:
        part, half = _truncation(layer).client_part(share)
        word = _with_half(layer, to_bits(layer.test.client_word(share), layer.test.width), half)
        return word, {"part": part, "half": np.packbits(half), "mask": blind.copy()}

    def garble(
        self, run: Run, layer: GarbledLayer, garbler: Garbler, chosen: list[Words], known: Bits, kept: Arrays
    ) -> Offline:
        """What it does not have to keep of its own part of x comes from the evaluator."""
        assert garbler.mux is not None  # noqa: S101 - looked at before
        blind_bits = run.rng.bytes(layer.count) & np.uint8(1)
        product = blinds_of(layer, run, garbler.mux.chosen(run.channel, blind_bits), MUX, layer.modulus)
        head, batches = send_circuits(run, layer, garbler, chosen, known)
        outputs: list[Words] = []
        for span, labels in zip(layer.spans, batches, strict=True):
            run.channel.send(Frame.TABLES, np.packbits(permute_bits(labels[0]) ^ blind_bits[span]))
            outputs.append(labels)
        if "own" not in kept:
            yield None
            kept = {"own": _elements(run, layer)}
        arrays = {"outputs": np.concatenate(outputs, axis=1), "masks": np.packbits(blind_bits), "product": product}
        yield Prepared(head | arrays | kept)

    def evaluate(
        self, run: Run, layer: GarbledLayer, evaluator: Evaluator, labels: list[Words], kept: Arrays
    ) -> Offline:
        """If it knows its part of x already, it sends what the garbler shall hold of it."""
        assert evaluator.mux is not None  # noqa: S101 - looked at before
        received, delta = evaluator.mux.chosen(run.channel, layer.count), evaluator.mux.delta.words
        zero, one = (blinds_of(layer, run, r, MUX, layer.modulus) for r in (received, received ^ delta))
        product, part = layer.modulus.sub(one, zero), kept.pop("part", None)
        rest = None if part is None else layer.modulus.pack(layer.modulus.sub(part, product))
        head, batches = receive_circuits(run, layer, labels)
        yield Prepared(head | {"product": product, "pad": layer.modulus.neg(zero)} | kept)
        for size, batch in zip(layer.sizes, batches, strict=True):
            decode = run.channel.receive(Frame.TABLES, -(-size // 8))
            yield Prepared(batch | {"decode": np.frombuffer(decode, np.uint8)})
        if rest is not None:
            yield None
            run.channel.send(Frame.SHARES, rest)

    def client_online(self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared]) -> None:
        half = np.unpackbits(head["half"], count=layer.count)
        if layer.garbler == "client":
            changed = receive_choices(run, layer)
            value = layer.modulus.add(head["own"], _elements(run, layer))
            send_labels(run, layer, head, changed)
            result = _send_corrections(run, layer, head, value, half)
        else:
            result = _receive_corrections(run, layer, head, batches, half)
        run.channel.send(Frame.SHARES, layer.modulus.pack(layer.modulus.sub(result, head["mask"])))

    def server_online(
        self, run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared], share: Words
    ) -> Words:
        modulus, sign = layer.modulus, layer.test
        part, half = _truncation(layer).server_part(share)
        word = to_bits(sign.server_word(share), sign.width)
        if layer.garbler == "server":
            send_labels(run, layer, head, word)
            result = _send_corrections(run, layer, head, modulus.add(part, head["own"]), half)
        else:
            send_choices(run, layer, head, _with_half(layer, word, half))
            run.channel.send(Frame.SHARES, modulus.pack(modulus.sub(part, head["product"])))
            result = _receive_corrections(run, layer, head, batches, half)
        return modulus.add(result, _elements(run, layer))

    def and_gates(self, layer: GarbledLayer) -> int:
        return layer.test.compared_bits

    def decode_bytes(self, layer: GarbledLayer) -> int:
        return IKNP.chosen_bytes(layer.count) + sum(-(-size // 8) for size in layer.sizes)

    def online_bytes(self, layer: GarbledLayer) -> tuple[int, int]:
        element = layer.count * layer.modulus.element_bytes
        corrections = element + (2 * layer.count * _truncation(layer).message.element_bytes if layer.shift else 0)
        if layer.garbler == "server":
            return element, label_bytes(layer) + corrections
        return label_bytes(layer) + corrections + element, -(-layer.chosen * layer.count // 8) + element

    def stored(self, layer: GarbledLayer) -> tuple[int, int]:
        bit, word = -(-layer.count // 8), 8 * layer.count
        garbler, evaluator = kept_bytes(layer, self.and_gates(layer))
        garbler += LABEL_BYTES * len(layer.circuit.outputs) * layer.count + bit + 2 * word
        evaluator += 2 * word + sum(-(-size // 8) for size in layer.sizes)
        if layer.garbler == "server":
            return evaluator + bit + word, garbler
        return garbler + bit + word, evaluator + -(-layer.chosen * layer.count // 8)


def _truncation(layer: GarbledLayer) -> ShareTruncation:
    return ShareTruncation(layer.modulus, layer.shift, layer.test.reach)


def _send_corrections(run: Run, layer: GarbledLayer, head: Arrays, value: Words, half: Bits) -> Words:
    """Online, at the garbler: its share of s T, for ``value`` = G + D and ``half`` = g."""
    modulus, delta = layer.modulus, head["offset"]
    blind_bits = np.unpackbits(head["masks"], count=layer.count)
    others = blind_bits ^ np.uint8(1)
    labels = pick(head["outputs"][0], delta, blind_bits)  # of c = 0

    def correction(wire: Words, tweak: str, within: Modulus, first: Words, second: Words) -> Words:
        label = within.add(first, blinds_of(layer, run, wire, tweak, within))
        other = blinds_of(layer, run, wire ^ delta, tweak, within)
        run.channel.send(Frame.ROWS, within.pack(within.add(within.sub(second, label), other)))
        return label

    product = head["product"]
    first, second = modulus.add(_where(blind_bits, value), product), modulus.sub(_where(others, value), product)
    result = correction(labels, SIGN_CORRECTION, modulus, first, second)
    if not layer.shift:
        return result
    truncation = _truncation(layer)
    wrap = _where(half, np.full_like(value, truncation.correction))
    shared = correction(labels, WRAP_CORRECTION, truncation.message, _where(blind_bits, wrap), _where(others, wrap))
    half_share = correction(head["outputs"][1], HALF_CORRECTION, truncation.message, np.zeros_like(value), shared)
    return modulus.add(result, modulus.scale(half_share, truncation.unit))


def _receive_corrections(run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared], half: Bits) -> Words:
    """Online, at the evaluator: its share of s T, for ``half`` = e."""
    modulus = layer.modulus
    layers: list[Words] = []
    decode: list[Bits] = []
    for arrays, outputs in evaluated(run, layer, head, batches):
        layers.append(outputs)
        decode.append(np.unpackbits(arrays["decode"], count=outputs.shape[1]))
    labels = np.concatenate(layers, axis=1)
    shown = permute_bits(labels[0]) ^ np.concatenate(decode)

    def take(wire: Words, tweak: str, within: Modulus, choice: Bits) -> Words:
        received = within.unpack(run.channel.receive(Frame.ROWS, layer.count * within.element_bytes), layer.count)
        return within.sub(_where(choice, received), blinds_of(layer, run, wire, tweak, within))

    product = np.where(shown, modulus.sub(head["product"], head["pad"]), head["pad"])
    result = modulus.add(take(labels[0], SIGN_CORRECTION, modulus, shown), product)
    if not layer.shift:
        return result
    truncation = _truncation(layer)
    shared = take(labels[0], WRAP_CORRECTION, truncation.message, shown)
    half_share = take(labels[1], HALF_CORRECTION, truncation.message, half)
    return modulus.add(result, modulus.scale(truncation.message.add(_where(half, shared), half_share), truncation.unit))


def _with_half(layer: GarbledLayer, word: Bits, half: Bits) -> Bits:
    return np.concatenate([word, half[None]]) if layer.shift else word


def _where(bits: Bits, values: Words) -> Words:
    """``values``, and zero where ``bits`` are."""
    return np.where(bits, values, np.uint64(0))


def _elements(run: Run, layer: GarbledLayer) -> Words:
    return layer.modulus.unpack(
        run.channel.receive(Frame.SHARES, layer.count * layer.modulus.element_bytes), layer.count
    )
