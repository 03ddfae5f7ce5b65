"""Squares with both their truncations by oblivious transfer, in one round trip; ``arith/square.py`` is the arithmetic.

Model: semi-honest. Before: x = x_client + x_server mod 2^l, x_client known offline. After: shares of
((x + t) / 2^s1)^2 / 2^s2 + c, rounded, of which the client's is r, what it chose offline as its blind of the next
linear layer. t and c are the server's: it adds t to its share before, and c to its share of the result. Nobody garbles,
and there is no homomorphic product. l1 = l - s1, k = l1 - 1, w = s1 + s2 as there.

*The offline product* v + t = T_client u mod 2^k takes k transfers, in which the client chooses by the bits b_i of
T_client (Gilboa, CRYPTO 1999). Transfer i has blinds P0_i and P1_i of k - i bits, hashes of the labels. The server
takes u = P1_0 - P0_0, so that its first correction is none, and sends for all others

    m_i = u - P1_i + P0_i mod 2^(k - i).

The client has P of b_i, and so P0_i + b_i u = P_b + b_i m_i; v is their sum, each times 2^i, and -t that of all P0_i.

    offline  client -> server   the choices: T_client under random ones
             server -> client   m_1 to m_(k-1); the transfer back of the wrap, if it takes bytes
    online   server -> client   delta, k bits; d, 1 bit
             client -> server   e, w bits; msg, l bits

*Security.* The blinds hash labels of correlated transfers under a public key that belongs to (session, layer, batch, i)
alone (``labels.py``). Of each pair the client knows one blind, and the other is pseudorandom to it: so is every m_i,
and so is u, the difference of two blinds of which it knows one; hence it sees nothing in delta = T_server - u mod 2^k.
The server's blinds P0_i and u are functions of its own labels, and the choices are masked. So u is uniform modulo 2^k
given the client's view, and (u, t) are uniform given the server's inputs as v is: the conditions of
``arith/square.py``, which proves the rest, with Q_0 and Q_1 the blinds of the transfer back, of which the server's
choice rho is random. A second delta under one u, or a second answer under one r, would show a difference: what is kept
is used once, the store marks it before the first online byte, and r is fixed before that byte.

Outside its range the result is silently off (``arith/square.py``): :meth:`Squares.max_input` is what a program must
promise, by calibration; neither party can see it happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from deepreshape.private.arith.ring import Ring, Words, to_bits
from deepreshape.private.arith.square import Squaring
from deepreshape.private.crypto.bit_fields import pack, packed_bytes, unpack
from deepreshape.private.crypto.labels import Context, hash_labels, permute_bits
from deepreshape.private.crypto.ot.cot import Cot
from deepreshape.private.crypto.ot.silent import SILENT
from deepreshape.private.program.ops import Square
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.base import (
    Declared,
    Effort,
    Integers,
    Message,
    Offline,
    Online,
    Places,
    Prepared,
    Run,
    Step,
    check_shares,
    claim,
)
from deepreshape.private.protocols.garbled.label_transfer import wipe
from deepreshape.private.protocols.transfers.transfer_ends import (
    COTS,
    Batches,
    Reservation,
    TransferEnds,
    TransferProtocol,
)
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.ledger import Phase

WRAP = "square, wrap"
"""Tweak of the transfer back; those of the product are numbered."""


@dataclass(frozen=True, eq=False)
class SquaringLayer(Batches):
    """``count`` squares, ``batch`` of them at a time.

    Attributes:
        name: of the operation; unique in a run.
        squaring: the arithmetic.
        count, batch: how many.
        places: which of the operation's elements they are.
        elements: how many elements the operation has.
    """

    name: str
    squaring: Squaring
    count: int
    batch: int
    places: Places
    elements: int

    @property
    def modulus(self) -> Ring:
        """That of its shares."""
        return self.squaring.modulus

    @property
    def corrections(self) -> list[int]:
        """Bits of m_1 to m_(k-1)."""
        return list(range(self.squaring.product - 1, 0, -1))

    @property
    def sent(self) -> list[int]:
        """Bits of delta and d."""
        return [self.squaring.product, 1]

    @property
    def answered(self) -> list[int]:
        """Bits of e and msg."""
        return [self.squaring.message, self.squaring.modulus.bits]

    @property
    def client_widths(self) -> list[int]:
        """Bits of what the client keeps: T_client, v, Q_0, Q_1, r."""
        constants = self.squaring
        return [constants.first, constants.product, constants.message, constants.message, constants.modulus.bits]

    @property
    def server_widths(self) -> list[int]:
        """Bits of what the server keeps: u, t, rho, Q_rho."""
        return [self.squaring.product, self.squaring.product, 1, self.squaring.message]


@dataclass(frozen=True, eq=False, repr=False)
class Constants:
    """The server's t and c of a layer, by square: uint64 (count,)."""

    shift: Words
    constant: Words


@final
@dataclass(frozen=True)
class Squares(TransferProtocol[SquaringLayer]):
    """See the module.

    Args:
        cot: what makes the transfers.
        served: at the server, by layer; :meth:`serving` makes it.
    """

    cot: Cot = SILENT
    served: Mapping[str, Constants] = field(default_factory=dict[str, Constants], repr=False)

    kinds = "square", "square"
    session = b"deepreshape square"
    by_shares = True
    by_coins = True

    @classmethod
    def steps(cls, op: Square, program: Program, config: ReluConfig) -> Iterator[Step]:
        """One step, or none if the operation has ReLUs only."""
        source = program.values[op.inputs[0]]
        places = op.positions(source)
        if places.size:
            squaring = op.squaring(program.modulus)
            layer = SquaringLayer(op.name, squaring, places.size, config.batch, places, source.size)
            yield Step(op.name, cls(COTS[config.cot]), layer, places, places)

    def serving(self, layers: Sequence[SquaringLayer], program: Program, *, keep: bool, workers: int) -> Squares:
        served: dict[str, Constants] = {}
        for layer in layers:
            modulus, constants = layer.squaring.modulus, program.weights[layer.name]
            each = layer.elements // len(constants.bias)
            spread = (
                modulus.encode(np.repeat(part, each)[layer.places]) for part in (constants.weight, constants.bias)
            )
            served[layer.name] = Constants(*spread)
        return Squares(self.cot, served)

    def reservation(self, layers: Sequence[SquaringLayer]) -> Reservation:
        there = sum(layer.count * layer.squaring.product for layer in layers)
        return Reservation(self.cot, there, sum(layer.count for layer in layers))

    def offline(
        self, run: Run, setup: TransferEnds, layer: SquaringLayer, share: Words | None, blind: Words | None
    ) -> Offline:
        claim(setup.layers, layer.name)
        if share is None or blind is None:
            return (yield from _server_offline(run, setup, layer))
        check_shares(layer.name, layer.squaring.modulus, layer.count, share=share, blind=blind)
        return (yield from _client_offline(run, setup, layer, share, blind))

    def online(self, run: Run, layer: SquaringLayer, prepared: Iterator[Prepared], share: Words | None) -> Online:
        kept = layer.taken(prepared)
        if share is None:
            result = yield from _client_online(run, layer, kept)
        else:
            check_shares(layer.name, layer.squaring.modulus, layer.count, share=share)
            result = yield from _server_online(run, layer, kept, share, self.served[layer.name])
        wipe(kept)
        return result

    def declared(self, layer: SquaringLayer) -> Declared:
        product, corrections = layer.squaring.product, layer.nbytes(layer.corrections)
        chosen = sum(self.cot.chosen_bytes(product * size) for size in layer.sizes)
        back = sum(self.cot.random_bytes(size) for size in layer.sizes)
        transfers = layer.count * (product + 1)
        return Declared(
            ((Message("client", chosen),), (Message("server", corrections + back),)),
            ((Message("server", layer.nbytes(layer.sent)),), (Message("client", layer.nbytes(layer.answered)),)),
            (layer.nbytes(layer.client_widths), layer.nbytes(layer.server_widths)),
            {"offline": {"squares": layer.count, "transfers": transfers}, "online": {"squares": layer.count}},
            waiting=16 * layer.count + corrections,
            transient=64 * product * min(layer.batch, layer.count),
            resident=16 * layer.count,
        )

    def work(self, layer: SquaringLayer) -> Mapping[Phase, Sequence[Effort]]:
        transfers = layer.count * (layer.squaring.product + 1)
        stored = sum(self.declared(layer).stored)
        make, take = {"square.client.offline": transfers}, {"square.server.offline": transfers}
        online = Effort({"square.server.online": layer.count}, {"square.client.online": layer.count}, len(layer.spans))
        return {
            "offline": [Effort(make, take, len(layer.spans)), Effort(aside={"store.write": stored})],
            "online": [online, Effort()],
        }

    def replay(self, layer: SquaringLayer, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        assert coins is not None  # noqa: S101 - by_coins
        return layer.squaring.rounded(x, client, coins & np.uint64((1 << layer.squaring.product) - 1))

    def max_input(self, layer: SquaringLayer) -> int:
        return layer.squaring.limit


def _claimed(run: Run, setup: TransferEnds, layer: SquaringLayer, number: int) -> Context:
    """Where batch ``number`` is, taken for good under this party's Delta."""
    context = Context(run.id, layer.name, number)
    setup.sender.delta.claim(context)
    return context


def _blinds(labels: Words, context: Context, layer: SquaringLayer, bit: int) -> Words:
    """The blinds of transfer ``bit`` of the product, of k - ``bit`` bits."""
    hashed = hash_labels(labels, context, f"square {bit}")[:, 0]
    return hashed & np.uint64((1 << (layer.squaring.product - bit)) - 1)


def _back(labels: Words, context: Context, layer: SquaringLayer) -> Words:
    """The blinds of the transfer back, Q, of w bits."""
    hashed = hash_labels(labels, context, WRAP)[:, 0]
    return hashed & np.uint64((1 << layer.squaring.message) - 1)


def _client_offline(run: Run, setup: TransferEnds, layer: SquaringLayer, share: Words, blind: Words) -> Offline:
    squaring, delta = layer.squaring, setup.sender.delta.words
    product, low = squaring.product, np.uint64((1 << squaring.product) - 1)
    roots, blinds = squaring.client_root(share), np.zeros(layer.count, np.uint64)
    contexts = [_claimed(run, setup, layer, number) for number in range(len(layer.sizes))]
    for context, span, size in zip(contexts, layer.spans, layer.sizes, strict=True):
        choices = to_bits(roots[span], product)
        labels = setup.receiver.chosen(run.channel, choices.reshape(-1)).reshape(product, size, 2)
        for bit in range(product):
            blinds[span] += _blinds(labels[bit], context, layer, bit) << np.uint64(bit)
    yield None
    for context, span, size in zip(contexts, layer.spans, layer.sizes, strict=True):
        labels = setup.sender.random(run.channel, size)
        zero, one = (_back(either, context, layer) for either in (labels, labels ^ delta))
        received = run.channel.receive(Frame.ROWS, packed_bytes(layer.corrections, size))
        part, root = blinds[span], roots[span]
        for bit, correction in enumerate(unpack(received, layer.corrections, size), 1):
            part += (correction & -((root >> np.uint64(bit)) & np.uint64(1))) << np.uint64(bit)
        fields = root, part & low, zero, one, blind[span]
        yield layer.packed(pack(zip(fields, layer.client_widths, strict=True)))


def _server_offline(run: Run, setup: TransferEnds, layer: SquaringLayer) -> Offline:
    product, delta = layer.squaring.product, setup.sender.delta.words
    low, waiting = np.uint64((1 << product) - 1), list[tuple[Words, Words, np.ndarray]]()
    contexts = [_claimed(run, setup, layer, number) for number in range(len(layer.sizes))]
    for context, size in zip(contexts, layer.sizes, strict=True):
        labels = setup.sender.chosen(run.channel, product * size).reshape(product, size, 2)
        blind, part, corrections = np.zeros(size, np.uint64), np.zeros(size, np.uint64), list[Words]()
        for bit in range(product):
            zero, one = (_blinds(either, context, layer, bit) for either in (labels[bit], labels[bit] ^ delta))
            part -= zero << np.uint64(bit)
            if bit:
                corrections.append((blind + zero - one) & (low >> np.uint64(bit)))
            else:
                blind = (one - zero) & low
        waiting.append((blind, part & low, pack(zip(corrections, layer.corrections, strict=True))))
    yield None
    for context, size, (blind, part, message) in zip(contexts, layer.sizes, waiting, strict=True):
        labels = setup.receiver.random(run.channel, size)
        run.channel.send(Frame.ROWS, message)
        fields = blind, part, permute_bits(labels).astype(np.uint64), _back(labels, context, layer)
        yield layer.packed(pack(zip(fields, layer.server_widths, strict=True)))


def _client_online(run: Run, layer: SquaringLayer, kept: Sequence[np.ndarray]) -> Online:
    squaring, answers = layer.squaring, list[np.ndarray]()
    coins = np.zeros(layer.count, np.uint64)
    for span, size, packed in zip(layer.spans, layer.sizes, kept, strict=True):
        received = run.channel.receive(Frame.ROWS, packed_bytes(layer.sent, size))
        delta, opened = unpack(received, layer.sent, size)
        root, part, zero, one, blind = unpack(packed, layer.client_widths, size)
        coins[span] = product = squaring.client_product(root, part, delta)
        share, half = squaring.client_square(root, product)
        zero, one = np.where(opened, one, zero), np.where(opened, zero, one)
        answers.append(pack(zip(squaring.answer(share, half, zero, one, blind), layer.answered, strict=True)))
    yield None
    for answer in answers:
        run.channel.send(Frame.SHARES, answer)
    if run.observe:
        everywhere = np.zeros(layer.elements, np.uint64)
        everywhere[layer.places] = coins
        run.show_coins(layer.name, everywhere)
    return None


def _server_online(
    run: Run, layer: SquaringLayer, kept: Sequence[np.ndarray], share: Words, constants: Constants
) -> Online:
    squaring, result = layer.squaring, np.empty(layer.count, np.uint64)
    states: list[tuple[Words, np.ndarray, Words]] = []
    for span, size, packed in zip(layer.spans, layer.sizes, kept, strict=True):
        blind, part, rho, known = unpack(packed, layer.server_widths, size)
        root = squaring.server_root(squaring.modulus.add(share[span], constants.shift[span]))
        squared, half = squaring.server_square(root, part)
        message = squaring.delta(root, blind), half ^ rho
        run.channel.send(Frame.ROWS, pack(zip(message, layer.sent, strict=True)))
        states.append((squared, half, known))
    yield None
    for span, size, state in zip(layer.spans, layer.sizes, states, strict=True):
        received = run.channel.receive(Frame.SHARES, packed_bytes(layer.answered, size))
        result[span] = squaring.result(*state, *unpack(received, layer.answered, size))
    return squaring.modulus.add(result, constants.constant)
