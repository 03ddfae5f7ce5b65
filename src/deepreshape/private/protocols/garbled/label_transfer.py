"""Layers of garbled ReLUs: who garbles them, in which batches, and how labels get to the evaluator.

What is the same for every garbled protocol. A garbler has words that it knows offline; labels of their bits cost
no bytes: both parties derive the label in use from a seed, and the garbler sets the label of zero from it. A garbling
server has one word that it knows online only, and sends the labels of its bits then. The evaluator's labels come by
oblivious transfer, all of it offline. An evaluating server does not know its word by then, so it chooses the labels of
random bits c; online it sends d = c ^ word, bit by bit, and gets a blind ^ d * Delta for every bit, which turns the
label of c into that of its own bit. d reveals nothing, as c is uniform, and the blind is used once.

What a party keeps of a layer is a head, and then one :class:`Prepared` for each batch. A store keeps them in that order
and hands them back in it, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.drelu import Sign
from deepreshape.private.arith.ring import Bits, Field, Modulus, Ring, Words
from deepreshape.private.arith.rng import SEED_BYTES, Randomness
from deepreshape.private.crypto.circuit import Circuit
from deepreshape.private.crypto.gc.halfgates import TABLE_BYTES, evaluate, garble, table_shape
from deepreshape.private.crypto.gc.relu_circuits import relu_circuit, sign_circuit
from deepreshape.private.crypto.labels import Context, Delta, derive_blinds, pick
from deepreshape.private.crypto.ot.cot import CotReceiver, CotSender
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.program.relu_config import GC_FULL, Role
from deepreshape.private.protocols.base import Arrays, Prepared, Run, claim
from deepreshape.private.transport.channel import Frame

LABEL_BYTES = 16


@dataclass(frozen=True)
class GarbledLayer:
    """A layer of ``count`` ReLUs; both parties know it. ``name`` is unique in the session.

    ``garbler`` says who garbles, ``batch`` how many instances one garbling covers, ``sign`` which sign test is garbled;
    None garbles the whole ReLU.
    """

    name: str
    modulus: Ring | Field
    shift: int
    count: int
    garbler: Role
    batch: int = GC_FULL.batch
    sign: Sign | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise ValueError(f"a layer of {self.count} ReLUs in batches of {self.batch}: both must be at least 1")

    @property
    def circuit(self) -> Circuit:
        """The circuit of one instance."""
        if self.sign is None:
            return relu_circuit(self.modulus, self.shift)
        return sign_circuit(self.sign, self.shift > 0)

    @property
    def chosen(self) -> int:
        """Bits of the evaluator, hence its oblivious transfers."""
        return sum(word.width for word in self.circuit.inputs if word.owner == "evaluator")

    @property
    def late(self) -> int:
        """Bits of the garbler's first word if it is known online only."""
        return self.circuit.inputs[0].width if self.garbler == "server" else 0

    @property
    def spans(self) -> list[slice]:
        """The instances of each batch."""
        return [slice(start, min(start + self.batch, self.count)) for start in range(0, self.count, self.batch)]

    @property
    def sizes(self) -> list[int]:
        """How many instances each batch has."""
        return [span.stop - span.start for span in self.spans]

    @property
    def test(self) -> Sign:
        """The sign test that is garbled; there is one."""
        assert self.sign is not None  # noqa: S101 - the protocol that made the layer gave it one
        return self.sign

    def context(self, id: bytes, batch: int) -> Context:
        """Where batch number ``batch`` is garbled."""
        return Context(id, self.name, batch)


@dataclass(repr=False)
class Garbler:
    """The garbling party of one run: its Delta, and its ends of the oblivious transfers.

    ``transfers`` carry labels to the evaluator. Layers that multiplex outside the circuit (``relu_sign.py``)
    choose by ``mux``, the other way round.
    """

    transfers: CotSender
    mux: CotReceiver | None = None
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, run: Run, use: str, *, mux: bool) -> Garbler:
        """Draw a Delta and run the base transfers; the peer calls :meth:`Evaluator.start`.

        Args:
            run: in which.
            use: names the protocol in the ids of both sessions; none other of the run has that name.
            mux: whether there are transfers back.
        """
        there, back = _ids(run, use)
        transfers = IKNP.sender(run.channel, there, Delta(run.rng), run.rng)
        return cls(transfers, IKNP.receiver(run.channel, back, run.rng) if mux else None)


@dataclass(repr=False)
class Evaluator:
    """The evaluating party of one run: the other ends."""

    transfers: CotReceiver
    mux: CotSender | None = None
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, run: Run, use: str, *, mux: bool) -> Evaluator:
        """Run the base transfers; the peer calls :meth:`Garbler.start`."""
        there, back = _ids(run, use)
        transfers = IKNP.receiver(run.channel, there, run.rng)
        return cls(transfers, IKNP.sender(run.channel, back, Delta(run.rng), run.rng) if mux else None)


Party = Garbler | Evaluator


def _ids(run: Run, use: str) -> tuple[bytes, bytes]:
    """Of the transfers to the evaluator, and of those back."""
    return f"deepreshape {use}".encode() + run.id, f"deepreshape {use} back".encode() + run.id


def garbler_of(party: Party, layer: GarbledLayer) -> Garbler:
    """``party``, which takes on the layer as its garbler.

    Raises:
        TypeError: if it is the evaluator.
        RuntimeError: if the layer was prepared before.
    """
    if not isinstance(party, Garbler):
        raise TypeError("this party garbles the layer; it needs the run's Garbler, got its Evaluator")
    claim(party.layers, layer.name)
    return party


def evaluator_of(party: Party, layer: GarbledLayer) -> Evaluator:
    """``party``, which takes on the layer as its evaluator; errors as of :func:`garbler_of`."""
    if not isinstance(party, Evaluator):
        raise TypeError("this party evaluates the layer; it needs the run's Evaluator, got its Garbler")
    claim(party.layers, layer.name)
    return party


def random_choices(layer: GarbledLayer, rng: Randomness) -> Bits:
    """c, of an evaluator that does not know its word yet: (chosen, count) zeros and ones."""
    return rng.bytes(layer.chosen * layer.count).reshape(layer.chosen, layer.count) & np.uint8(1)


def choose(run: Run, layer: GarbledLayer, evaluator: Evaluator, choices: Bits) -> list[Words]:
    """The evaluator's transfers: its labels of ``choices`` (chosen, count), batch by batch."""
    return [evaluator.transfers.chosen(run.channel, choices[:, span].reshape(-1)) for span in layer.spans]


def chosen_by_peer(run: Run, layer: GarbledLayer, garbler: Garbler) -> list[Words]:
    """The garbler's end of :func:`choose`: the labels of zero."""
    return [garbler.transfers.chosen(run.channel, layer.chosen * size) for size in layer.sizes]


def send_circuits(
    run: Run, layer: GarbledLayer, garbler: Garbler, chosen: list[Words], known: Bits
) -> tuple[Arrays, Iterator[Words]]:
    """The garbler's circuits.

    Args:
        run: of the garbler.
        layer: what to garble.
        garbler: of the run.
        chosen: labels of zero of the evaluator's words.
        known: the words it feeds in that it knows already, (bits, count).

    Returns:
        What it keeps for :func:`send_labels`; and, once for each batch, whose tables have been sent then, the labels of
        zero of the outputs, uint64 (outputs, size, 2).
    """
    shown_seed, hidden_seed = run.rng.seed(), run.rng.seed()
    shown, hidden = Randomness(shown_seed), Randomness(hidden_seed)
    run.channel.send(Frame.LABELS, shown_seed)
    delta = garbler.transfers.delta

    def batches() -> Iterator[Words]:
        # one room for all batches: a channel is done with a payload when send returns
        room = np.empty(int(np.prod(table_shape(layer.circuit, max(layer.sizes)))), np.uint64)
        for number, (span, size) in enumerate(zip(layer.spans, layer.sizes, strict=True)):
            garbler_bits = known[:, span]
            # the label of the garbler's own bit is the one that the peer derives too; the label of zero follows
            drawn = shown.labels(garbler_bits.size).reshape(*garbler_bits.shape, 2)
            garbler_labels = pick(drawn, delta.words, garbler_bits)
            evaluator_labels = chosen[number].reshape(-1, size, 2)
            if layer.garbler == "server":
                labels = [hidden.labels(layer.late * size).reshape(-1, size, 2), garbler_labels, evaluator_labels]
            else:
                moved = hidden.labels(layer.chosen * size).reshape(evaluator_labels.shape)
                labels = [garbler_labels, evaluator_labels ^ moved]
            context = layer.context(run.id, number)
            tables, outputs = garble(layer.circuit, delta, labels, context, room)
            run.channel.send(Frame.TABLES, tables)
            yield outputs

    return {"seed": np.frombuffer(bytearray(hidden_seed), np.uint8), "offset": delta.words.copy()}, batches()


def receive_circuits(run: Run, layer: GarbledLayer, labels: list[Words]) -> tuple[Arrays, Iterator[Arrays]]:
    """The evaluator's end of :func:`send_circuits`, with its own ``labels``.

    Returns:
        What it keeps of the layer, and of each batch, as it comes in, for :func:`evaluated`.
    """
    seed = np.frombuffer(run.channel.receive(Frame.LABELS, SEED_BYTES), np.uint8)

    def batches() -> Iterator[Arrays]:
        for size, chosen in zip(layer.sizes, labels, strict=True):
            shape = table_shape(layer.circuit, size)
            tables = run.channel.receive(Frame.TABLES, 8 * int(np.prod(shape)))
            yield {"tables": np.frombuffer(tables, np.uint64).reshape(shape), "labels": chosen}

    return {"seed": seed}, batches()


def send_labels(run: Run, layer: GarbledLayer, head: Arrays, planes: Bits) -> None:
    """Online, at the garbler: its hidden labels, moved by Delta where ``planes`` (bits, count) are one.

    Those are the bits of its late word, or what the evaluator sent as d.
    """
    hidden = Randomness(head["seed"].tobytes())
    for span in layer.spans:
        wanted = planes[:, span]
        run.channel.send(
            Frame.LABELS, pick(hidden.labels(wanted.size).reshape(*wanted.shape, 2), head["offset"], wanted)
        )


def send_choices(run: Run, layer: GarbledLayer, head: Arrays, planes: Bits) -> None:
    """Online, at an evaluator that chose labels of random bits: d, for its word's ``planes`` (bits, count)."""
    choices = np.unpackbits(head["choices"], count=planes.size).reshape(planes.shape)
    run.channel.send(Frame.SHARES, np.packbits(choices ^ planes))


def receive_choices(run: Run, layer: GarbledLayer) -> Bits:
    """The garbler's end: d, for :func:`send_labels`."""
    bits = layer.chosen * layer.count
    packed = np.frombuffer(run.channel.receive(Frame.SHARES, -(-bits // 8)), np.uint8)
    return np.unpackbits(packed, count=bits).reshape(-1, layer.count)


def evaluated(
    run: Run, layer: GarbledLayer, head: Arrays, batches: Iterator[Prepared]
) -> Iterator[tuple[Arrays, Words]]:
    """Online, at the evaluator: each batch's arrays and its output labels, uint64 (outputs, size, 2)."""
    shown = Randomness(head["seed"].tobytes())
    for number, size in enumerate(layer.sizes):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"layer {layer.name!r} has {len(layer.sizes)} batches, and {number} were given")
        arrays = batch.take()
        online = layer.late or layer.chosen
        received = run.channel.receive(Frame.LABELS, LABEL_BYTES * online * size)
        sent = np.frombuffer(received, np.uint64).reshape(online, size, 2)
        stored = arrays["labels"].reshape(-1, size, 2)
        known = layer.circuit.width - layer.late - layer.chosen
        derived = shown.labels(known * size).reshape(known, size, 2)
        labels = [sent, derived, stored] if layer.garbler == "server" else [derived, stored ^ sent]
        context = layer.context(run.id, number)
        yield arrays, evaluate(layer.circuit, arrays["tables"], labels, context)


def blinds_of(layer: GarbledLayer, run: Run, labels: Words, tweak: str, within: Modulus) -> Words:
    """A blind for every label (count, 2), under the keys of each batch."""
    batches = [
        derive_blinds(labels[span], layer.context(run.id, at), tweak, within) for at, span in enumerate(layer.spans)
    ]
    return np.concatenate(batches)


def wipe(arrays: Iterable[NDArray[Any]]) -> None:
    """Overwrite, as far as Python lets us."""
    for array in arrays:
        if array.flags.writeable:
            array.fill(0)


def choosing_bytes(layer: GarbledLayer) -> int:
    """Bytes of :func:`choose`."""
    return sum(IKNP.chosen_bytes(layer.chosen * size) for size in layer.sizes)


def garbled_bytes(layer: GarbledLayer, and_gates: int) -> int:
    """Bytes of :func:`send_circuits`."""
    return SEED_BYTES + TABLE_BYTES * and_gates * layer.count


def label_bytes(layer: GarbledLayer) -> int:
    """Bytes of :func:`send_labels`."""
    return LABEL_BYTES * (layer.late or layer.chosen) * layer.count


def kept_bytes(layer: GarbledLayer, and_gates: int) -> tuple[int, int]:
    """Bytes of the arrays that :func:`send_circuits` and :func:`receive_circuits` give to keep."""
    return SEED_BYTES + LABEL_BYTES, SEED_BYTES + (TABLE_BYTES * and_gates + LABEL_BYTES * layer.chosen) * layer.count
