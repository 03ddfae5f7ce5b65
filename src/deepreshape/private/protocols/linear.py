"""A linear layer: offline under homomorphic encryption, online by the server alone.

*Protocol.* The client sends encryptions of r, its share of the input, coefficient-encoded (``packing.py``); the server
multiplies them by its encoded weights, and returns W r - s with s uniform modulo t, flooded and re-randomised
(``bfv.py`` states the assumptions and why the client learns nothing but W r - s). Semi-honest. The server keeps s and
adds it online to W x_server + b, which it computes in the clear: nothing of this travels online.

All layers whose r is known at the same time go side by side: the server reads all shares before it answers the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he.bfv import ClientKey, Responder
from deepreshape.private.crypto.he.packing import Layout, split_groups
from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.crypto.he.residues import Residues
from deepreshape.private.crypto.he.responses import EncodedWeights
from deepreshape.private.program.integer_linear import EXACT_BITS, on_shares
from deepreshape.private.program.ops import Weighted, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.protocols.base import (
    WORD_BYTES,
    Declared,
    Effort,
    Integers,
    Message,
    Offline,
    Online,
    Prepared,
    Protocol,
    Run,
    Segment,
)
from deepreshape.private.protocols.he_workers import Workers
from deepreshape.private.transport.channel import Channel, Frame
from deepreshape.private.transport.ledger import Phase

TYPICAL_WEIGHT = 0.25
"""A weight's usual size, as a part of the largest in its layer: says how many limbs a product in the clear takes."""


@dataclass(frozen=True)
class EncryptedLayer:
    """One linear operation.

    Attributes:
        name: of the operation.
        layout: of one of its copies under encryption.
        modulus: of the shares.
        fan_in: multiply-adds of an output in the clear.
        pixels: flat positions of the result's pixels that are wanted; None are all. The ciphertexts are the same: of
            what they hold, either party lets the rest go.
    """

    name: str
    layout: Layout
    modulus: Ring | Field
    fan_in: int
    pixels: tuple[int, ...] | None = None

    @property
    def copies(self) -> int:
        """How many like the layout's layer it is made of."""
        return self.layout.layer.copies

    @property
    def outputs(self) -> int:
        """Elements of the result."""
        return self.copies * self.layout.layer.output_shape[0] * self.places

    @property
    def places(self) -> int:
        """Pixels of the result."""
        return math.prod(self.layout.layer.output_shape[1:]) if self.pixels is None else len(self.pixels)

    def wanted(self, parts: Sequence[Words]) -> Words:
        """The elements of the result, flat, of the whole maps of all copies."""
        channels = self.copies * self.layout.layer.output_shape[0]
        whole = np.concatenate(parts).reshape(channels, -1)
        return (whole if self.pixels is None else whole[:, list(self.pixels)]).reshape(-1)

    @property
    def primes(self) -> str:
        """Under which name homomorphic work is measured."""
        return f"he{len(self.layout.parameters.prime_bits)}"


class ServedLayer(NamedTuple):
    """What the server has of a layer: its operation, its weights, and their encodings, one a copy."""

    op: Weighted
    weights: Weights
    input_shape: tuple[int, ...]
    encoded: list[EncodedWeights]


@final
@dataclass(frozen=True)
class HeLinear(Protocol[EncryptedLayer, "ClientKey | Workers"]):
    """See the module.

    Args:
        served: at the server, by layer; :meth:`serving` makes it.
        workers: how many processes answer at the server.
    """

    served: Mapping[str, ServedLayer] = field(default_factory=dict[str, ServedLayer], repr=False)
    workers: int = 1

    kinds = "he", "clear"
    setup_kind = "keys"
    decides = True

    def serving(self, layers: Sequence[EncryptedLayer], program: Program, *, keep: bool, workers: int) -> HeLinear:
        operations = {op.name: op for op in program.ops if isinstance(op, Weighted)}
        served: dict[str, ServedLayer] = {}
        for layer in layers:
            op, weights, convolution = operations[layer.name], program.weights[layer.name], layer.layout.layer
            weight = weights.weight.reshape(*weights.weight.shape[:2], convolution.kernel, convolution.kernel)
            encoded = [EncodedWeights(layer.layout, part, keep=keep) for part in split_groups(weight, convolution)]
            served[op.name] = ServedLayer(op, weights, program.values[op.inputs[0]].shape, encoded)
        return HeLinear(served, workers)

    def setup(self, run: Run, layers: Sequence[EncryptedLayer]) -> ClientKey | Workers:
        """The client's key, whose public parts it sends; the server's processes, which are to be ended (``with``)."""
        parameters = layers[0].layout.parameters
        if run.role == "server":
            return Workers(self.workers, receive_keys(run.channel, parameters, run.rng))
        key = ClientKey(parameters)
        send_keys(run.channel, key)
        return key

    def setup_declared(self, layers: Sequence[EncryptedLayer]) -> Segment:
        return (Message("client", layers[0].layout.parameters.setup_bytes),)

    def setup_work(self, layers: Sequence[EncryptedLayer]) -> Sequence[Effort]:
        primes, count = layers[0].primes, layers[0].layout.parameters.galois_keys
        client_work = {f"{primes}.keys": 1, f"{primes}.switching": count, "he.start": 1}
        return [Effort(client_work, {f"{primes}.receive": 1, f"{primes}.switching.receive": count})]

    def offline(
        self, run: Run, setup: ClientKey | Workers, layer: EncryptedLayer, share: Words | None, blind: Words | None
    ) -> Offline:
        """The client's part returns its share of the output, uint64 (outputs,); ``blind`` is not used."""
        if isinstance(setup, ClientKey):
            assert share is not None  # noqa: S101 - the client's
            for part in share.reshape(-1, *layer.layout.layer.input_shape):
                send_input(run.channel, setup, layer.layout, part)
            yield None
            parts = [receive_share(run.channel, setup, layer.layout) for _ in range(layer.copies)]
            return layer.wanted(parts)
        weights = self.served[layer.name].encoded
        received = [receive_input(run.channel, layer.layout) for _ in weights]
        yield None
        blinds: list[Words] = []
        for copy, ciphertexts in zip(weights, received, strict=True):
            responses, blind = setup.respond(copy, ciphertexts)
            send_responses(run.channel, responses)
            blinds.append(blind)
        yield Prepared({"share": layer.wanted(blinds)})
        return None

    def online(self, run: Run, layer: EncryptedLayer, prepared: Iterator[Prepared], share: Words | None) -> Online:
        """W x_server + b + s at the server; the client does nothing."""
        yield from ()
        if share is None:
            return None
        modulus, served = layer.modulus, self.served[layer.name]
        bias = modulus.encode(served.op.spread(served.weights.bias))
        product = modulus.add(on_shares(served.op, served.weights, share.reshape(served.input_shape), modulus), bias)
        return modulus.add(product.reshape(-1), next(prepared).take()["share"])

    def declared(self, layer: EncryptedLayer) -> Declared:
        layout = layer.layout
        up, down = (layer.copies * nbytes for nbytes in layout.declared.traffic["offline"])
        return Declared(
            ((Message("client", up),), (Message("server", down),)),
            ((Message("server", 0),),),
            (0, WORD_BYTES * layer.outputs),
            {
                "offline": {"he_products": layer.copies * layout.products},
                "online": {"macs": layer.outputs * layer.fan_in},
            },
            transient=2 * max(layout.declared.traffic["offline"]),
            resident=2 * WORD_BYTES * layer.copies * math.prod(layout.layer.weight_shape),
        )

    def work(self, layer: EncryptedLayer) -> Mapping[Phase, Sequence[Effort]]:
        layout, primes = layer.layout, layer.primes
        sent, returned = (layer.copies * count for count in layout.declared.ciphertexts)
        products, outputs = layer.copies * layout.products, layer.copies * math.prod(layout.layer.output_shape)
        answer = {
            f"{primes}.receive": sent,
            f"{primes}.encode": products / layout.bands,
            f"{primes}.product": products,
            f"{primes}.switch": layer.copies * layout.switches,
            f"{primes}.respond": returned,
            f"{primes}.reveal": outputs,
            "store.write": WORD_BYTES * layer.outputs,
        }
        take = {f"{primes}.decrypt": returned, f"{primes}.reveal.client": outputs}
        offline = [
            Effort({f"{primes}.encrypt": sent}, pieces=max(sent // layer.copies, 1)),
            Effort(answer, take, parallel=layout.responses),
        ]
        return {"offline": offline, "online": [Effort(_clear(layer))]}

    def replay(self, layer: EncryptedLayer, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        """Nothing depends on shares: the product is exact, and the interpreter's own."""
        return x

    def max_input(self, layer: EncryptedLayer) -> int:
        return (layer.layout.parameters.modulus - 1) // 2


def _clear(layer: EncryptedLayer) -> dict[str, float]:
    """The server's product with its own shares."""
    convolution, outputs = layer.layout.layer, layer.outputs
    room = EXACT_BITS - math.ceil(convolution.weight_bits + math.log2(layer.fan_in * TYPICAL_WEIGHT))
    limbs = -(-layer.modulus.bits // max(room, 1))
    return {
        "clear.mac": limbs * outputs * layer.fan_in,
        "clear.patch": limbs * layer.places * math.prod(convolution.weight_shape[1:]) * layer.copies,
        "clear.weight": layer.copies * convolution.out_channels * layer.fan_in,
        "element": outputs,
        "store.read": WORD_BYTES * outputs,
    }


def send_keys(channel: Channel, key: ClientKey) -> None:
    """Client, once a session: what the server re-randomises and packs responses with, ``setup_bytes`` in all."""
    channel.send(Frame.CIPHERTEXTS, key.public_key())
    for switching_key in key.galois_keys():
        channel.send(Frame.CIPHERTEXTS, switching_key)


def receive_keys(channel: Channel, parameters: Parameters, rng: Randomness | None = None) -> Responder:
    """Server, once a session."""
    public_key = channel.receive(Frame.CIPHERTEXTS, parameters.fresh_bytes)
    lengths = [parameters.switching_key_bytes] * parameters.galois_keys
    keys = [channel.receive(Frame.CIPHERTEXTS, nbytes) for nbytes in lengths]
    return Responder(parameters, public_key, keys, rng)


def send_input(channel: Channel, key: ClientKey, layout: Layout, share: Residues) -> None:
    """Client: send its encrypted share r, of ``input_shape``, one frame a ciphertext.

    Raises:
        ValueError: if its shape differs or a residue is not below t.
    """
    if share.shape != layout.layer.input_shape or int(share.max()) >= key.parameters.modulus:
        raise ValueError(
            f"a share of shape {share.shape}; the layer wants {layout.layer.input_shape}, below the modulus"
        )
    for polynomial in layout.polynomials(share):
        channel.send(Frame.CIPHERTEXTS, key.encrypt(polynomial))


def receive_input(channel: Channel, layout: Layout) -> list[memoryview]:
    """Server: the client's ciphertexts of one layer. It reads those of a whole flight before it answers the first."""
    count = layout.bands * layout.inputs
    return [channel.receive(Frame.CIPHERTEXTS, layout.parameters.fresh_bytes) for _ in range(count)]


def send_responses(channel: Channel, responses: Iterable[bytes]) -> None:
    """Server: what :func:`respond` made, one frame a response."""
    for response in responses:
        channel.send(Frame.CIPHERTEXTS, response)


def receive_share(channel: Channel, key: ClientKey, layout: Layout) -> Residues:
    """Client: its share u = W r - s modulo t, of ``output_shape``."""
    share = np.zeros(layout.layer.output_shape, np.uint64)
    for channels, rows in layout.slices():
        positions = layout.positions(channels, rows)
        nbytes = key.parameters.response_bytes(layout.form, len(positions))
        plain = key.decrypt(channel.receive(Frame.CIPHERTEXTS, nbytes), layout.form, positions)
        share[channels, rows] = plain.reshape(share[channels, rows].shape)
    return share
