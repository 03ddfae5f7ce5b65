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
from deepreshape.private.errors import ProtocolError


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
        self._kept: dict[int, list[Encoded]] | None = {} if keep else None

    def block(self, tiles: range) -> NDArray[np.integer]:
        """The weights that lead to these output tiles, as :meth:`Layout.split_weights` has them."""
        out_tile = self.layout.out_tile
        return self._weights[tiles.start * out_tile : tiles.stop * out_tile]

    def row(self, tile: int) -> list[Encoded]:
        """The encoded plaintexts that take each input tile to one output tile."""
        if self._kept is not None and tile in self._kept:
            return self._kept[tile]
        encoded = encode_row(self.layout, self.block(range(tile, tile + 1)))
        if self._kept is not None:
            self._kept[tile] = encoded
        return encoded


def encode_row(layout: Layout, block: NDArray[np.integer]) -> list[Encoded]:
    """The encoded plaintexts that take each input tile to one output tile, whose weights are ``block``."""
    return [encode(layout.parameters, layout.plaintext(block, tile)) for tile in range(layout.inputs)]


def respond(
    responder: Responder, weights: EncodedWeights, ciphertexts: Sequence[Buffer]
) -> tuple[list[bytes], Residues]:
    """The server's work on one layer, from the client's ciphertexts to the responses, without any channel.

    Returns:
        The responses, and the server's share s of ``output_shape``, uniform below t.

    Raises:
        ProtocolError: if their number is wrong or one is malformed.
    """
    tiles = range(weights.layout.outputs)
    bands, share = respond_tiles(responder, weights.layout, ciphertexts, tiles, map(weights.row, tiles))
    return [response for band in bands for response in band], share


def respond_tiles(
    responder: Responder,
    layout: Layout,
    ciphertexts: Sequence[Buffer],
    tiles: range,
    rows: Iterable[list[Encoded]],
) -> tuple[list[list[bytes]], Residues]:
    """The part of :func:`respond` that concerns some output tiles; ``rows`` are the encoded weights of each.

    Returns:
        The responses of each band, and the server's share of the tiles' channels.

    Raises:
        ProtocolError: as :func:`respond`.
    """
    modulus, inputs = responder.parameters.modulus, layout.inputs
    if len(ciphertexts) != layout.bands * inputs:
        raise ProtocolError(f"{len(ciphertexts)} ciphertexts; the layer wants {layout.bands * inputs}")
    received = [responder.receive(data) for data in ciphertexts]
    channels, *image = layout.layer.output_shape
    first, last = tiles.start * layout.out_tile, min(tiles.stop * layout.out_tile, channels)
    share = uniform(responder.rng, (last - first) * math.prod(image), modulus).reshape(last - first, *image)
    blind = (np.uint64(modulus) - share) % np.uint64(modulus)
    slices = list(layout.slices())
    responses: list[list[bytes]] = [[] for _ in range(layout.bands)]
    for tile, row in zip(tiles, rows, strict=True):
        for band, sent in enumerate(responses):
            places, lines = slices[band * layout.outputs + tile]
            piece = np.ascontiguousarray(blind[places.start - first : places.stop - first, lines]).reshape(-1)
            pairs = zip(received[band * inputs : (band + 1) * inputs], row, strict=True)
            sent.append(responder.respond(pairs, piece, layout.form, layout.positions(places, lines)))
    return responses, share
