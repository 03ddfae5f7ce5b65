"""``gc-full``: a layer of shared ReLUs by one garbled circuit each, garbled by the server or by the client.

Model: semi-honest. Before: x = x_client + x_server, x_client known offline. After: (max(x, 0) >> shift) = r + y_server,
where r is what the client chose offline as its mask of the next linear layer, so that layer's homomorphic part does not
wait for this one.

``garbler="server"`` (DELPHI: Mishra et al., USENIX Security 2020). The paper feeds r into the circuit by oblivious
transfer; here, as in its code, the garbler feeds in a mask m of its own, which halves the transfers:
    offline  client -> server   oblivious transfers that choose the labels of x_client
             server -> client   seed of the labels of the server's fresh mask m, tables, decode bits
    online   server -> client   labels of x_server
             client             evaluates, and learns (ReLU + m), which is uniform to it
             client -> server   ReLU + m - r; the server subtracts m

``garbler="client"`` (Garimella et al., ASPLOS 2023; the store lies with the server):
    offline  server -> client   oblivious transfers of labels for random bits c, as x_server is not known yet
             client -> server   seed of the labels of x_client and of the mask -r, tables, decode bits
    online   server -> client   d = c ^ x_server, bit by bit
             client -> server   a pad ^ d * offset for every bit, which turns the label of c into that of x_server
             server             evaluates, and learns ReLU - r, its share

Labels of bits that the garbler knows offline cost no bytes: both parties derive the label in use from a seed, and the
garbler sets the label of zero from it. Correction by d reveals nothing: c is uniform, and the pad is used once.

What a party keeps between the phases is a sequence of :class:`Prepared`: first one with what concerns the whole layer,
then, at the evaluator, the seed and one for each batch. A store keeps them in that order and hands them back in it, one
at a time. The first is there once the transfers are done, before anything is garbled: with the transfers of several
layers first and their circuits behind them, all of these layers together take one round.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepreshape.private import ot
from deepreshape.private.channel import Channel, Frame, Phase, ProtocolError
from deepreshape.private.circuit import Circuit, and_gates, relu
from deepreshape.private.garble import (
    BATCH,
    TABLE_BYTES,
    Context,
    Garbled,
    Offset,
    evaluate,
    garble,
    pick,
    refuse_copy,
    table_shape,
)
from deepreshape.private.shares import SEED_BYTES, Bits, Modulus, Randomness, Words, from_bits, to_bits

Role = Literal["client", "server"]
LABEL_BYTES = 16


@dataclass(frozen=True)
class ReluLayer:
    """A layer of ``count`` ReLUs; both parties know it. ``name`` is unique in the session.

    ``garbler`` says who garbles, ``batch`` how many instances one garbling covers.
    """

    name: str
    modulus: Modulus
    shift: int
    count: int
    garbler: Role
    batch: int = BATCH

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise ValueError(f"a layer of {self.count} ReLUs in batches of {self.batch}: both must be at least 1")

    @property
    def circuit(self) -> Circuit:
        """The circuit of one instance."""
        return relu(self.modulus, self.shift)

    @property
    def spans(self) -> list[slice]:
        """The instances of each batch."""
        return [slice(start, min(start + self.batch, self.count)) for start in range(0, self.count, self.batch)]

    def context(self, session: bytes, batch: int) -> Context:
        """Where batch number ``batch`` is garbled."""
        return Context(session, self.name, batch)


class Prepared:
    """Named arrays that one party keeps from the offline to the online phase; they are secret and used once.

    A store takes them to write them down, and makes another of what it reads back.
    """

    __reduce_ex__ = refuse_copy

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._left = [arrays]
        self.nbytes = sum(array.nbytes for array in arrays.values())
        """Their size, which is public."""

    def take(self) -> dict[str, NDArray[Any]]:
        """The arrays.

        Raises:
            RuntimeError: the second time.
        """
        try:
            return self._left.pop()  # of two threads one gets them
        except IndexError:
            raise RuntimeError("this offline material was used; it is for one inference, prepare another") from None


@dataclass(repr=False)
class Garbler:
    """The garbling party of one offline session: its offset, and the sending end of its oblivious transfers."""

    session: bytes
    transfers: ot.CorrelatedSender
    rng: Randomness
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, channel: Channel, session: bytes, rng: Randomness | None = None) -> Garbler:
        """Draw an offset and run the base transfers; the peer calls :meth:`Evaluator.start`.

        ``session`` never repeats; both parties have compared it. ``rng`` is for tests.
        """
        rng = rng or Randomness()
        return cls(session, ot.CorrelatedSender.start(channel, session, Offset(rng), rng), rng)


@dataclass(repr=False)
class Evaluator:
    """The evaluating party of one offline session: the receiving end of its oblivious transfers."""

    session: bytes
    transfers: ot.CorrelatedReceiver
    rng: Randomness
    layers: set[str] = field(default_factory=set[str], init=False)

    @classmethod
    def start(cls, channel: Channel, session: bytes, rng: Randomness | None = None) -> Evaluator:
        """Run the base transfers; the peer calls :meth:`Garbler.start`, whose notes hold here."""
        rng = rng or Randomness()
        return cls(session, ot.CorrelatedReceiver.start(channel, session, rng), rng)


def client_offline(
    channel: Channel, layer: ReluLayer, engine: Garbler | Evaluator, share: Words, mask: Words
) -> Iterator[Prepared]:
    """The client's offline step; it runs as the result is iterated over, the transfers before the first item.

    Args:
        channel: to the server.
        layer: what to prepare.
        engine: the :class:`Garbler` if the client garbles this layer, else the :class:`Evaluator`.
        share: the client's share of the input, uint64 (count,).
        mask: what shall be the client's share of the output, uniform, uint64 (count,).
    """
    _check_shares(layer, share=share, mask=mask)
    if layer.garbler == "client":
        inputs = [to_bits(share, layer.modulus.bits), to_bits(layer.modulus.neg(mask), layer.modulus.bits)]
        yield from _garble(channel, layer, _garbler(engine, layer), inputs, {})
    else:
        choices = to_bits(share, layer.modulus.bits)
        yield from _receive(channel, layer, _evaluator(engine, layer), choices, {"mask": mask.copy()})


def server_offline(channel: Channel, layer: ReluLayer, engine: Garbler | Evaluator) -> Iterator[Prepared]:
    """The server's offline step, the counterpart of :func:`client_offline`."""
    bits = layer.modulus.bits
    if layer.garbler == "server":
        garbler = _garbler(engine, layer)
        mask = layer.modulus.random(layer.count, garbler.rng)
        yield from _garble(channel, layer, garbler, [to_bits(mask, bits)], {"mask": mask})
    else:
        evaluator = _evaluator(engine, layer)
        choices = evaluator.rng.bytes(bits * layer.count).reshape(bits, layer.count) & np.uint8(1)
        yield from _receive(channel, layer, evaluator, choices, {"choices": np.packbits(choices)})


def together(channel: Channel, steps: Mapping[str, Iterator[Prepared]]) -> Iterator[tuple[str, Prepared]]:
    """The offline steps of several layers, by layer: the transfers of all, then what follows of each.

    Both parties name the layers in the same order. What each step makes comes with its layer's name.
    """
    for name, step in steps.items():
        with channel.ledger.at(name, "offline"):
            first = next(step)
        yield name, first
    for name, step in steps.items():
        with channel.ledger.at(name, "offline"):
            for prepared in step:
                yield name, prepared


def client_online(channel: Channel, layer: ReluLayer, session: bytes, prepared: Iterable[Prepared]) -> None:
    """The client's online step. Its share of the output is the mask it gave to :func:`client_offline`.

    Raises:
        ProtocolError: if what the server garbled gives no list of shares.
        RuntimeError: if ``prepared`` was used before.
    """
    with _opened(prepared) as (head, batches):
        if layer.garbler == "client":
            bits = layer.modulus.bits * layer.count
            packed = np.frombuffer(channel.receive(Frame.SHARES, -(-bits // 8)), np.uint8)
            _send_labels(channel, layer, head, np.unpackbits(packed, count=bits).reshape(-1, layer.count))
        else:
            reply = layer.modulus.sub(_evaluate(channel, layer, session, batches), head["mask"])
            channel.send(Frame.SHARES, layer.modulus.pack(reply))


def server_online(
    channel: Channel, layer: ReluLayer, session: bytes, prepared: Iterable[Prepared], share: Words
) -> Words:
    """The server's online step.

    Args:
        channel: to the client.
        layer: what was prepared.
        session: that of the offline phase.
        prepared: what :func:`server_offline` gave; used up.
        share: the server's share of the input, uint64 (count,).

    Returns:
        The server's share of the output, uint64 (count,).

    Raises:
        ProtocolError: if the client's answer, or what it garbled, gives no list of shares.
        RuntimeError: if ``prepared`` was used before.
    """
    _check_shares(layer, share=share)
    planes = to_bits(share, layer.modulus.bits)
    with _opened(prepared) as (head, batches):
        if layer.garbler == "server":
            _send_labels(channel, layer, head, planes)
            reply = channel.receive(Frame.SHARES, layer.count * layer.modulus.element_bytes)
            return layer.modulus.sub(layer.modulus.unpack(reply, layer.count), head["mask"])
        choices = np.unpackbits(head["choices"], count=planes.size).reshape(planes.shape)
        channel.send(Frame.SHARES, np.packbits(choices ^ planes))
        return _evaluate(channel, layer, session, batches)


def declared(
    modulus: Modulus, shift: int, count: int, garbler: Role, batch: int = BATCH
) -> dict[Phase, tuple[int, int]]:
    """Bytes of a layer in each phase, (client to server, server to client); ``ot.SETUP_BYTES`` come once a session.

    Each phase takes one round: what the first sender says depends on nothing that it waits for.
    """
    layer = ReluLayer("", modulus, shift, count, garbler, batch)
    words = [modulus.bits * _size(span) for span in layer.spans]
    choosing = sum(ot.extension_bytes(word) for word in words)
    garbled = SEED_BYTES + TABLE_BYTES * and_gates(modulus, shift) * count + sum(-(-word // 8) for word in words)
    labels = LABEL_BYTES * modulus.bits * count
    if garbler == "server":
        return {"offline": (choosing, garbled), "online": (count * modulus.element_bytes, labels)}
    return {"offline": (garbled, choosing), "online": (labels, -(-modulus.bits * count // 8))}


def stored(modulus: Modulus, shift: int, count: int, garbler: Role, batch: int = BATCH) -> tuple[int, int]:
    """Bytes of arrays that (client, server) keep between the phases."""
    layer = ReluLayer("", modulus, shift, count, garbler, batch)
    words = [modulus.bits * _size(span) for span in layer.spans]
    batches = TABLE_BYTES * and_gates(modulus, shift) * count + sum(-(-w // 8) + LABEL_BYTES * w for w in words)
    secrets = SEED_BYTES + LABEL_BYTES
    if garbler == "server":
        return SEED_BYTES + 8 * count + batches, secrets + 8 * count
    return secrets, SEED_BYTES + -(-modulus.bits * count // 8) + batches


def ots(modulus: Modulus) -> int:
    """Oblivious transfers a ReLU, all of them offline."""
    return modulus.bits


def _garble(
    channel: Channel, layer: ReluLayer, garbler: Garbler, known: list[Bits], kept: dict[str, NDArray[Any]]
) -> Iterator[Prepared]:
    """The garbler's offline step; ``known`` are the words it feeds in that it knows already."""
    bits, offset = layer.modulus.bits, garbler.transfers.offset
    chosen = [garbler.transfers.extend(channel, bits * _size(span)) for span in layer.spans]
    shown_seed, hidden_seed = garbler.rng.seed(), garbler.rng.seed()
    shown, hidden = Randomness(shown_seed), Randomness(hidden_seed)
    yield Prepared({"seed": np.frombuffer(bytearray(hidden_seed), np.uint8), "offset": offset.words.copy(), **kept})
    channel.send(Frame.LABELS, shown_seed)
    # one room for all batches: a channel is done with a payload when send returns
    room = np.empty(int(np.prod(table_shape(layer.circuit, min(layer.batch, layer.count)))), np.uint64)
    for number, span in enumerate(layer.spans):
        size = _size(span)
        mine = np.concatenate([planes[:, span] for planes in known])
        # the label of the garbler's own bit is the one that the peer derives too; the label of zero follows
        own = pick(shown.labels(mine.size).reshape(*mine.shape, 2), offset.words, mine)
        pad = hidden.labels(bits * size).reshape(bits, size, 2)
        theirs = chosen[number].reshape(bits, size, 2)
        labels = [pad, own, theirs] if layer.garbler == "server" else [own, theirs ^ pad]
        garbled = garble(layer.circuit, offset, np.concatenate(labels), layer.context(garbler.session, number), room)
        tables, decode = garbled.take()
        channel.send(Frame.TABLES, tables)
        channel.send(Frame.TABLES, np.packbits(decode))


def _receive(
    channel: Channel, layer: ReluLayer, evaluator: Evaluator, choices: Bits, kept: dict[str, NDArray[Any]]
) -> Iterator[Prepared]:
    """The evaluator's offline step; ``choices`` (bits, count) select the labels of its input word."""
    labels = [evaluator.transfers.extend(channel, choices[:, span].reshape(-1)) for span in layer.spans]
    yield Prepared(kept)
    yield Prepared({"seed": np.frombuffer(channel.receive(Frame.LABELS, SEED_BYTES), np.uint8)})
    for span, chosen in zip(layer.spans, labels, strict=True):
        shape = table_shape(layer.circuit, _size(span))
        tables = np.frombuffer(channel.receive(Frame.TABLES, 8 * int(np.prod(shape))), np.uint64).reshape(shape)
        decode = channel.receive(Frame.TABLES, -(-layer.modulus.bits * _size(span) // 8))
        yield Prepared({"tables": tables, "decode": np.frombuffer(decode, np.uint8), "labels": chosen})


def _send_labels(channel: Channel, layer: ReluLayer, head: dict[str, NDArray[Any]], planes: Bits) -> None:
    """Online, at the garbler: its hidden labels, moved by the offset where ``planes`` (bits, count) are one."""
    hidden = Randomness(head["seed"].tobytes())
    for span in layer.spans:
        wanted = planes[:, span]
        channel.send(Frame.LABELS, pick(hidden.labels(wanted.size).reshape(*wanted.shape, 2), head["offset"], wanted))


def _evaluate(channel: Channel, layer: ReluLayer, session: bytes, batches: Iterator[Prepared]) -> Words:
    """Online, at the evaluator: the circuit's outputs, uint64 (count,)."""
    bits = layer.modulus.bits
    shown = Randomness(_next(layer, batches)["seed"].tobytes())
    results: list[Words] = []
    for number, span in enumerate(layer.spans):
        arrays, size = _next(layer, batches), _size(span)
        sent = np.frombuffer(channel.receive(Frame.LABELS, LABEL_BYTES * bits * size), np.uint64).reshape(bits, size, 2)
        own = arrays["labels"].reshape(bits, size, 2)
        if layer.garbler == "server":
            labels = [sent, shown.labels(bits * size).reshape(bits, size, 2), own]
        else:
            labels = [shown.labels(2 * bits * size).reshape(2 * bits, size, 2), own ^ sent]
        decode = np.unpackbits(arrays["decode"], count=bits * size).reshape(bits, size)
        garbled = Garbled(arrays["tables"], decode)
        planes = evaluate(layer.circuit, garbled, np.concatenate(labels), layer.context(session, number))
        results.append(from_bits(planes))
        if int(results[-1].max()) >= layer.modulus.order:
            raise ProtocolError(f"what the peer garbled for layer {layer.name!r} gives a value not in {layer.modulus}")
    return np.concatenate(results)


def _next(layer: ReluLayer, batches: Iterator[Prepared]) -> dict[str, NDArray[Any]]:
    batch = next(batches, None)
    if batch is None:
        raise ValueError(f"layer {layer.name!r} has {len(layer.spans)} batches; its material ends before them")
    return batch.take()


@contextmanager
def _opened(prepared: Iterable[Prepared]) -> Generator[tuple[dict[str, NDArray[Any]], Iterator[Prepared]]]:
    """The layer's own part, overwritten afterwards as far as Python lets us, and the batches still to come."""
    batches = iter(prepared)
    first = next(batches, None)
    if first is None:
        raise ValueError("no offline material was given; run the offline step of this layer first")
    head = first.take()
    try:
        yield head, batches
    finally:
        for array in head.values():
            if array.flags.writeable:
                array.fill(0)


def _size(span: slice) -> int:
    return span.stop - span.start


def _check_shares(layer: ReluLayer, **arrays: Words) -> None:
    for name, array in arrays.items():
        if array.shape != (layer.count,) or array.dtype != np.uint64:
            raise ValueError(
                f"the {name} of layer {layer.name!r} is {array.dtype} of shape {array.shape}; "
                f"it must be uint64 of shape ({layer.count},)"
            )
        # a share past the modulus would get past the circuit's single conditional subtraction
        if int(array.max()) >= layer.modulus.order:
            raise ValueError(f"the {name} of layer {layer.name!r} holds a value that is not in {layer.modulus}")


def _garbler(engine: Garbler | Evaluator, layer: ReluLayer) -> Garbler:
    if not isinstance(engine, Garbler):
        raise TypeError("this party garbles the layer; it needs the session's Garbler, got its Evaluator")
    _claim(engine, layer)
    return engine


def _evaluator(engine: Garbler | Evaluator, layer: ReluLayer) -> Evaluator:
    if not isinstance(engine, Evaluator):
        raise TypeError("this party evaluates the layer; it needs the session's Evaluator, got its Garbler")
    _claim(engine, layer)
    return engine


def _claim(engine: Garbler | Evaluator, layer: ReluLayer) -> None:
    if layer.name in engine.layers:
        raise RuntimeError(f"layer {layer.name!r} was prepared before in this session; start another session for it")
    engine.layers.add(layer.name)
