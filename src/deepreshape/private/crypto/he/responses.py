"""The server's work on one linear layer: encoded weights, and responses to the client's ciphertexts.

It knows no channel. ``packing.py`` says where what stands; ``bfv.py`` why the client learns W r - s and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.bounds import largest_sum
from deepreshape.private.crypto.he.bfv import Encoded, Responder, encode
from deepreshape.private.crypto.he.packing import Layout
from deepreshape.private.crypto.he.residues import Buffer, Residues, uniform
from deepreshape.private.crypto.he.seal_container import SEED_BYTES
from deepreshape.private.errors import ProtocolError

Rows = list[list[Encoded]]


class EncodedWeights:
    """The server's weights of one layer, encoded on first use. Sessions under the same parameters may share them.

    Args:
        layout: as both parties derive it.
        weights: ``weight_shape`` signed integers.
        keep: hold what is encoded: ``declared.encoded_bytes`` of memory. Otherwise each use encodes afresh.

    Raises:
        ValueError: if the shape differs or a weight is wider than declared.
    """

    def __init__(self, layout: Layout, weights: NDArray[np.integer], *, keep: bool = False) -> None:
        layer = layout.layer
        if weights.shape != layer.weight_shape:
            raise ValueError(f"weights of shape {weights.shape}; the layer wants {layer.weight_shape}")
        if max(int(weights.max()), -int(weights.min())) > 2**layer.weight_bits:
            raise ValueError(f"a weight exceeds 2^{layer.weight_bits}, which the layer declares as the largest")
        if largest_sum(weights) > layer.weight_sum:
            raise ValueError(
                f"absolute weights of one output sum to more than the 2^{layer.sum_bits} that are declared"
            )
        self.layout = layout
        self._weights = layout.split_weights(weights.astype(np.int16 if layer.weight_bits < 15 else np.int64))
        self._kept: dict[int, Rows] | None = {} if keep else None

    def block(self, numbers: range) -> NDArray[np.integer]:
        """The weights that lead to these responses of a band, as :meth:`Layout.split_weights` has them."""
        channels = self.layout.out_channels
        return self._weights[numbers.start * channels : numbers.stop * channels]

    def rows(self, number: int) -> Rows:
        """The encoded plaintexts that lead to one response of a band: of each of its output tiles, by input tile."""
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        encoded = encode_rows(self.layout, self.block(range(number, number + 1)))
        if self._kept is not None:
            self._kept[number] = encoded
        return encoded


def encode_rows(layout: Layout, block: NDArray[np.integer]) -> Rows:
    """The encoded plaintexts that lead to one response of a band, from its weights."""
    tiles = (block[start : start + layout.out_tile] for start in range(0, len(block), layout.out_tile))
    return [[encode(layout.parameters, layout.plaintext(tile, at)) for at in range(layout.inputs)] for tile in tiles]


def respond(
    responder: Responder, weights: EncodedWeights, ciphertexts: Sequence[Buffer]
) -> tuple[list[bytes], Residues]:
    """The server's work on one layer, from the client's ciphertexts to the responses, without any channel.

    Returns:
        The responses, and the server's share s of ``output_shape``, uniform below t.

    Raises:
        ProtocolError: if their number is wrong or one is malformed.
    """
    numbers = range(weights.layout.responses)
    bands, share = respond_in_part(responder, weights.layout, ciphertexts, numbers, map(weights.rows, numbers))
    return [response for band in bands for response in band], share


def respond_in_part(
    responder: Responder,
    layout: Layout,
    ciphertexts: Sequence[Buffer],
    numbers: range,
    rows: Iterable[Rows],
) -> tuple[list[list[bytes]], Residues]:
    """Some responses of each band of :func:`respond`; ``rows`` are the encoded weights that lead to each.

    Returns:
        The responses of each band, and the server's share of their channels.

    Raises:
        ProtocolError: as :func:`respond`.
    """
    modulus, inputs = responder.parameters.modulus, layout.inputs
    if len(ciphertexts) != layout.bands * inputs:
        raise ProtocolError(f"{len(ciphertexts)} ciphertexts; the layer wants {layout.bands * inputs}")
    if len({bytes(data[-SEED_BYTES:]) for data in ciphertexts}) < len(ciphertexts):
        raise ProtocolError("two ciphertexts of a layer have the same seed")
    received = [responder.receive(data, layout.interleave) for data in ciphertexts]
    channels, *image = layout.layer.output_shape
    first, last = numbers.start * layout.out_channels, min(numbers.stop * layout.out_channels, channels)
    share = uniform(responder.rng, (last - first) * math.prod(image), modulus).reshape(last - first, *image)
    blind = (np.uint64(modulus) - share) % np.uint64(modulus)
    slices = list(layout.slices())
    responses: list[list[bytes]] = [[] for _ in range(layout.bands)]
    for number, tiles in zip(numbers, rows, strict=True):
        for band, sent in enumerate(responses):
            places, lines = slices[band * layout.responses + number]
            piece = np.ascontiguousarray(blind[places.start - first : places.stop - first, lines]).reshape(-1)
            leaves = [zip(received[band * inputs : (band + 1) * inputs], row, strict=True) for row in tiles]
            sent.append(responder.respond(leaves, piece, layout.form, layout.positions(places, lines)))
    return responses, share
