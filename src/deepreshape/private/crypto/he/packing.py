"""How a linear layer is laid out in polynomials, so that a few products of polynomials compute it.

*Encoding*, after Cheetah (Huang, Lu, Hong and Ding, 2022): a product of two polynomials is a sum of products of
coefficients, which a convolution also is. Pixel (c, i, j) of an input tile sits at exponent c S + i R + j; the weight
of output channel m, input channel c and tap (a, b) at m C S - c S + (P - a) R + (P - b), modulo X^N = -1; then
coefficient m C S + i s R + j s of the product is output (m, i, j) at stride s. No rotation is needed. Two economies on
the published layout:

- Rows have pitch R = width + P and channels have pitch S = (height + P) R: the padding after a row is also the padding
  before the next one, and likewise between channels, so zeros are stored once. An exponent that reads outside a channel
  falls on such zeros, and the blocks of the output channels of one tile cannot meet while
  (output channels) * (input channels) * S <= N.
- A plaintext holds several output channels, so few responses carry many of them.

*Interleaving.* One response has N coefficients to send of c1, and of an input tile of C channels only 1 / C of them are
outputs. So T neighbouring channels of the input, a power of two, stand side by side: (c, i, j) at exponent
(floor(c / T) S + i R + j) T + c mod T, weights and outputs alike with exponents T times as far apart. Outputs then fall
on exponents that are 0 modulo T, and ``galois.py`` packs T responses in one. It costs the server T - 1 switches of
keys, and the client one key a session for every doubling of T. The search takes T for each layer, and the number of
keys for all of them.

*Stride.* With kernel >= stride the direct form wastes no products: they cost the same whichever coefficients are
read. What it wastes is room when S is near N. The alternative is the polyphase form: stride^2 subsampled images as
channels, a smaller kernel and stride 1. It leaves out phases that no tap reads: a 1x1 kernel of stride 2 keeps a
quarter. The search takes whichever is cheaper.

*Bands.* An image too large for one polynomial is cut into bands of output rows, each with the input rows it reads; all
bands use the same encoded weights.

*Groups.* Each group of a grouped convolution is a layer of its own, or as many as fill one polynomial together are one
layer with zeros between them (:func:`merge_groups`): depthwise convolutions, and batch norms that no convolution
absorbs.

A matrix-vector product is the 1x1 convolution of a 1x1 image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.bounds import SUM_BITS
from deepreshape.private.crypto.he.galois import residue, switches
from deepreshape.private.crypto.he.parameters import (
    DEGREE,
    MOST_GALOIS_KEYS,
    Parameters,
    ResponseFormat,
    known_parameters,
)
from deepreshape.private.crypto.he.residues import Residues
from deepreshape.private.transport.ledger import Phase

PRODUCT_COST = 2560
"""What the tile search pays for one plaintext product, in bytes on the wire: about 0.5 ms of work with a fresh
encoding, which is what 2.5 KiB take on a link of 40 Mbit/s."""
SWITCH_COST = 8704
"""What it pays for one switch of keys, with the transforms around it: about 1.7 ms."""
CIPHERTEXT_COST = 10240
"""What it pays for one ciphertext either way: about 2 ms of encryption and receipt, or of flooding and decryption."""


@dataclass(frozen=True)
class Convolution:
    """The public facts of a linear layer: (in_channels, height, width) -> (out_channels, out_height, out_width).

    Args:
        weight_bits: weights are integers of absolute value at most 2^weight_bits.
        sum_bits: the absolute weights of one output channel sum to at most 2^sum_bits.
        copies: how many like this one, each with weights of its own, are one layer of the network, which hides what
            all of them reveal together.

    Raises:
        ValueError: if a size is out of range, or the padding is not smaller than the kernel.
    """

    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    weight_bits: int = 8
    sum_bits: int = SUM_BITS
    copies: int = 1

    def __post_init__(self) -> None:
        least = (self.in_channels, self.height, self.width, self.out_channels, self.kernel, self.stride)
        if min(*least, self.weight_bits, self.sum_bits, self.copies) < 1:
            raise ValueError(f"{self}: sizes must be at least 1")
        if not 0 <= self.padding < self.kernel:
            raise ValueError(f"{self}: padding must be in [0, kernel)")
        if min(self.height, self.width) + 2 * self.padding < self.kernel:
            raise ValueError(f"{self}: the kernel is larger than the padded image")

    @classmethod
    def matrix(cls, inputs: int, outputs: int, weight_bits: int = 8, sum_bits: int = SUM_BITS) -> Convolution:
        """A matrix-vector product."""
        return cls(inputs, 1, 1, outputs, weight_bits=weight_bits, sum_bits=sum_bits)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.in_channels, self.height, self.width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.in_channels, self.kernel, self.kernel

    @property
    def weight_sum(self) -> int:
        """Bound on the sum of the absolute weights of one output channel."""
        return min(self.in_channels * self.kernel**2 << self.weight_bits, 1 << self.sum_bits)

    @cached_property
    def output_shape(self) -> tuple[int, int, int]:
        rows, columns = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (self.height, self.width))
        return self.out_channels, rows, columns


@dataclass(frozen=True)
class LayoutCost:
    """What one layer, or one of its copies, will cost, known beforehand from public facts.

    ``traffic`` gives bytes (client to server, server to client) by phase; ``ciphertexts`` those sent and those
    returned; ``encoded_bytes`` is what the server's cache of encoded weights holds if it keeps one.
    """

    traffic: dict[Phase, tuple[int, int]]
    products: int
    switches: int
    ciphertexts: tuple[int, int]
    encoded_bytes: int


@dataclass(frozen=True)
class Layout:
    """One way to lay a layer out in polynomials.

    Args:
        split: 1 for the direct form, the stride for the polyphase form.
        band_rows: output rows per band.
        in_tile: input channels (after the split) per client polynomial.
        out_tile: output channels per product.
        interleave: channels side by side, and products packed in one response: T.
    """

    layer: Convolution
    parameters: Parameters
    split: int
    band_rows: int
    in_tile: int
    out_tile: int
    interleave: int = 1

    @property
    def tiling(self) -> tuple[int, int, int, int, int]:
        """What distinguishes it from other layouts of the layer."""
        return self.split, self.band_rows, self.in_tile, self.out_tile, self.interleave

    @cached_property
    def phases(self) -> list[int]:
        """Residues modulo ``split`` of the rows (and columns) that some tap reads."""
        return sorted({(a - self.layer.padding) % self.split for a in range(self.layer.kernel)})

    @cached_property
    def pad(self) -> int:
        return -(-self.layer.padding // self.split)

    @cached_property
    def kernel(self) -> int:
        return (self.layer.kernel - 1 - self.layer.padding) // self.split + self.pad + 1

    @cached_property
    def stride(self) -> int:
        return self.layer.stride // self.split

    @cached_property
    def channels(self) -> int:
        return self.layer.in_channels * len(self.phases) ** 2

    @cached_property
    def bands(self) -> int:
        return -(-self.layer.output_shape[1] // self.band_rows)

    @cached_property
    def lead(self) -> int:
        """Rows of padding that the encoding supplies; bands bring their own."""
        return self.pad if self.bands == 1 else 0

    @cached_property
    def rows(self) -> int:
        """Rows per channel in a polynomial, padding included."""
        if self.bands == 1:
            return -(-self.layer.height // self.split) + self.pad
        return (self.band_rows - 1) * self.stride + self.kernel

    @cached_property
    def columns(self) -> int:
        return -(-self.layer.width // self.split) + self.pad

    @cached_property
    def pitch(self) -> int:
        """Coefficients per channel: S."""
        return self.rows * self.columns

    @cached_property
    def block(self) -> int:
        """Coefficients from one output channel of a tile to the next."""
        return -(-self.in_tile // self.interleave) * self.pitch * self.interleave

    @cached_property
    def fits(self) -> bool:
        return self.out_tile * self.block <= self.parameters.degree

    @cached_property
    def inputs(self) -> int:
        """Client polynomials per band."""
        return -(-self.channels // self.in_tile)

    @cached_property
    def outputs(self) -> int:
        """Output tiles per band."""
        return -(-self.layer.out_channels // self.out_tile)

    @cached_property
    def responses(self) -> int:
        """Per band."""
        return -(-self.outputs // self.interleave)

    @cached_property
    def out_channels(self) -> int:
        """Output channels per response, if it is full."""
        return self.out_tile * self.interleave

    @cached_property
    def products(self) -> int:
        return self.bands * self.inputs * self.outputs

    @cached_property
    def switches(self) -> int:
        """Switches of keys."""
        sizes = _pieces(self.outputs, self.interleave)
        return self.bands * sum(count * switches(size, self.interleave) for size, count in sizes)

    @cached_property
    def exponents(self) -> NDArray[np.intp]:
        """Where the weights of a tile go: (out_tile, in_tile, kernel, kernel)."""
        m, c, a, b = np.ogrid[: self.out_tile, : self.in_tile, : self.kernel, : self.kernel]
        places = -(c // self.interleave) * self.pitch + (self.lead - a) * self.columns + (self.pad - b)
        return m * self.block + places * self.interleave - c % self.interleave

    @cached_property
    def form(self) -> ResponseFormat:
        """How responses are flooded and sent.

        Raises:
            ValueError: if the noise budget does not suffice.
        """
        copies = self.layer.copies
        revealed = copies * math.prod(self.layer.output_shape)
        weight_sum = self.out_tile * self.layer.weight_sum
        responses = copies * self.bands * self.responses
        return self.parameters.response_format(weight_sum, revealed, responses, self.interleave)

    @cached_property
    def declared(self) -> LayoutCost:
        channels, rows, columns = self.layer.output_shape
        back = sum(
            count_c * count_r * self.parameters.response_bytes(self.form, size_c * size_r * columns)
            for size_c, count_c in _pieces(channels, self.out_channels)
            for size_r, count_r in _pieces(rows, self.band_rows)
        )
        return LayoutCost(
            traffic={"offline": (self.bands * self.inputs * self.parameters.fresh_bytes, back)},
            products=self.products,
            switches=self.switches,
            ciphertexts=(self.bands * self.inputs, self.bands * self.responses),
            encoded_bytes=self.inputs * self.outputs * self.parameters.encoded_bytes,
        )

    @cached_property
    def cost(self) -> int:
        """What the search minimises: bytes both ways, and work at what it takes of a link."""
        work = PRODUCT_COST * self.products + SWITCH_COST * self.switches
        return sum(self.declared.traffic["offline"]) + work + CIPHERTEXT_COST * sum(self.declared.ciphertexts)

    def polynomials(self, image: Residues) -> Iterator[Residues]:
        """The (N,) client polynomials of an ``input_shape`` image: band by band, tile by tile."""
        layer, split = self.layer, self.split
        high, wide = -(-layer.height // split), -(-layer.width // split)
        whole = np.zeros((layer.in_channels, high * split, wide * split), np.uint64)
        whole[:, : layer.height, : layer.width] = image
        grid = whole.reshape(layer.in_channels, high, split, wide, split)[:, :, self.phases][..., self.phases]
        split_image = grid.transpose(0, 2, 4, 1, 3).reshape(self.channels, high, wide)
        above = self.pad - self.lead
        step = self.band_rows * self.stride
        padded = np.zeros(
            (self.channels, (self.bands - 1) * step + max(self.rows, above + high), self.columns), np.uint64
        )
        padded[:, above : above + high, :wide] = split_image
        for band in range(self.bands):
            tall = padded[:, band * step : band * step + self.rows]
            for first in range(0, self.channels, self.in_tile):
                tile = tall[first : first + self.in_tile].reshape(-1, self.pitch)
                polynomial = np.zeros((self.parameters.degree // self.interleave, self.interleave), np.uint64)
                for place in range(min(self.interleave, len(tile))):
                    channels = tile[place :: self.interleave].reshape(-1)
                    polynomial[: len(channels), place] = channels
                yield polynomial.reshape(-1)

    def plaintext(self, block: NDArray[np.integer], tile_in: int) -> NDArray[np.int64]:
        """The (N,) server polynomial that takes one input tile to one output tile.

        ``block`` is the output tile's part of what :meth:`split_weights` gives.
        """
        block = block[:, tile_in * self.in_tile : (tile_in + 1) * self.in_tile]
        exponent = self.exponents[: block.shape[0], : block.shape[1]]
        polynomial = np.zeros(self.parameters.degree, np.int64)
        # Two taps share an exponent only if neither ever reads a pixel. A negative one counts from the end: X^N = -1.
        polynomial[exponent] = np.where(exponent < 0, -block, block)
        return polynomial

    def split_weights(self, weights: NDArray[np.integer]) -> NDArray[np.integer]:
        """``weight_shape`` weights as those of this form: (out_channels, channels, kernel, kernel) of the layout."""
        layer, count = self.layer, len(self.phases)
        shape = (layer.out_channels, layer.in_channels, count, count, self.kernel, self.kernel)
        taps = np.zeros(shape, weights.dtype)
        place = [divmod(a - layer.padding, self.split) for a in range(layer.kernel)]
        for a, (row, row_phase) in enumerate(place):
            for b, (column, column_phase) in enumerate(place):
                at = self.phases.index(row_phase), self.phases.index(column_phase), row + self.pad, column + self.pad
                taps[:, :, *at] = weights[:, :, a, b]
        return taps.reshape(layer.out_channels, self.channels, self.kernel, self.kernel)

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """The output channels and rows that each response holds, in the order in which they are sent."""
        channels, rows, _ = self.layer.output_shape
        for row in range(0, rows, self.band_rows):
            for first in range(0, channels, self.out_channels):
                yield (
                    slice(first, min(first + self.out_channels, channels)),
                    slice(row, min(row + self.band_rows, rows)),
                )

    def positions(self, channels: slice, rows: slice) -> NDArray[np.intp]:
        """The coefficients that hold these outputs, flattened."""
        places = [divmod(channel, self.out_tile) for channel in range(channels.start, channels.stop)]
        first = np.array(
            [place * self.block + residue(tile % self.interleave, self.interleave) for tile, place in places]
        )
        i, j = np.ogrid[: rows.stop - rows.start, : self.layer.output_shape[2]]
        pixel = (i * (self.stride * self.columns) + j * self.stride) * self.interleave
        return (first[:, None, None] + pixel).reshape(-1).astype(np.intp)


def _pieces(total: int, size: int) -> list[tuple[int, int]]:
    """Cutting ``total`` into pieces of ``size``: (size, how many), the last one perhaps smaller."""
    whole, rest = divmod(total, size)
    return [(size, whole), (rest, 1)] if rest else [(size, whole)]


def lay_out(layer: Convolution, parameters: Parameters) -> Layout:
    """The cheapest layout: bytes both ways plus :data:`PRODUCT_COST` for every product.

    Raises:
        ValueError: if a single row does not fit a polynomial, or the noise budget suffices for no layout.
    """
    layout = cheapest(layer, parameters)
    if isinstance(layout, str):
        raise ValueError(layout)
    return layout


def cheapest(layer: Convolution, parameters: Parameters) -> Layout | str:
    """What :func:`lay_out` returns, or the reason why there is none."""
    without = replace(parameters, galois_keys=0)
    layouts = [_cheapest(layer, without, 1 << level) for level in range(parameters.galois_keys + 1)]
    usable = [layout for layout in layouts if isinstance(layout, Layout)]
    if not usable:
        return layouts[0]
    return replace(min(usable, key=lambda layout: layout.cost), parameters=parameters)


@lru_cache(maxsize=4096)
def _cheapest(layer: Convolution, parameters: Parameters, interleave: int) -> Layout | str:
    """The cheapest layout that interleaves so many channels, or why there is none: that takes as long to find."""
    if 2 ** (layer.weight_bits + 1) >= parameters.modulus:
        return f"weights of {layer.weight_bits} bits and a sign do not fit modulus {parameters.modulus}"
    best: tuple[int, int, Layout] | None = None
    refusal = 0, f"one band of rows does not fit a polynomial of {parameters.degree} coefficients"
    # the way back takes most of the time to work out, so what is cheapest without it comes first
    for least, place, tiling in sorted(_tilings(layer, parameters, interleave)):
        if best and least >= best[0]:
            break
        layout = Layout(layer, parameters, *tiling)
        try:
            cost = layout.cost
        except ValueError as error:
            refusal = max(refusal, (place, str(error)))
            continue
        if best is None or (cost, place) < best[:2]:
            best = cost, place, layout
    return best[2] if best else f"{layer}: {refusal[1]}"


def _tilings(
    layer: Convolution, parameters: Parameters, interleave: int
) -> Iterator[tuple[int, int, tuple[int, int, int, int, int]]]:
    """Every layout worth a look: what it costs without the way back, a number of its own, and its arguments."""
    channels_out, out_rows, _ = layer.output_shape
    numbers, fresh = count(1), parameters.fresh_bytes
    for split in sorted({1, layer.stride}):
        for band_rows in _parts(out_rows):
            probe = Layout(layer, parameters, split, band_rows, 1, 1)
            room, channels, bands = parameters.degree // (probe.pitch * interleave), probe.channels, probe.bands
            for blocks in _parts(-(-channels // interleave)):
                if blocks > room:
                    break
                in_tile = min(blocks * interleave, channels)
                out_tiles = -(-channels_out // min(room // blocks, channels_out))
                out_tile = -(-channels_out // out_tiles)  # spread them evenly
                inputs, outputs = -(-channels // in_tile), -(-channels_out // out_tile)
                least = bands * inputs * (fresh + CIPHERTEXT_COST + PRODUCT_COST * outputs)
                yield least, next(numbers), (split, band_rows, in_tile, out_tile, interleave)


@lru_cache(maxsize=1024)
def _parts(total: int) -> list[int]:
    """The sizes of the largest part of ``total``, cut evenly into 1, 2, 3 ... parts; smallest first."""
    return sorted({-(-total // parts) for parts in range(1, total + 1)})


def choose_parameters(modulus: int, layers: Iterable[Convolution]) -> Parameters:
    """The parameters under which all layers together, and the keys, are cheapest.

    Sets of primes are tried by the bytes of a ciphertext, and numbers of keys from none, each until more costs more.

    Raises:
        ValueError: if a layer cannot be flooded and decrypted under any of the known parameters.
    """
    demands = Counter[Convolution]()
    for layer in layers:
        demands[layer] += layer.copies
    # what sums up most needs the widest primes: it refuses first
    hardest = sorted(demands, key=lambda layer: layer.weight_sum, reverse=True)

    def cost(parameters: Parameters) -> int:
        return parameters.setup_bytes + sum(demands[layer] * lay_out(layer, parameters).cost for layer in hardest)

    refusal = f"no parameters are known for a plaintext modulus of {modulus.bit_length()} bits"
    best: tuple[int, Parameters] | None = None
    for primes in known_parameters(modulus):
        chosen: tuple[int, Parameters] | None = None
        try:
            for keys in range(MOST_GALOIS_KEYS + 1):
                parameters = replace(primes, galois_keys=keys)
                price = cost(parameters)
                if chosen and price >= chosen[0]:
                    break
                chosen = price, parameters
        except ValueError as error:
            refusal = str(error)
            continue
        if best and chosen and chosen[0] >= best[0]:
            break
        best = chosen
    if not best:
        raise ValueError(refusal)
    return best[1]


def merge_groups(layer: Convolution, groups: int) -> Convolution:
    """A grouped convolution as one of its copies: in as few of them as is cheap.

    A ciphertext costs the same however little is in it, and a group with few channels of a small map fills none. Groups
    that fill one polynomial together become one, with zeros for the weights between them.

    Args:
        layer: one group.
        groups: how many there are.
    """
    pitch = (layer.height + layer.padding) * (layer.width + layer.padding)
    each = layer.in_channels * layer.out_channels * pitch
    most = max(math.isqrt(DEGREE // each), 1)
    many = max(n for n in range(1, min(groups, most) + 1) if groups % n == 0)
    return replace(
        layer,
        in_channels=many * layer.in_channels,
        out_channels=many * layer.out_channels,
        sum_bits=max((layer.weight_sum - 1).bit_length(), 1),  # zeros add nothing
        copies=groups // many,
    )


def split_groups(weights: NDArray[np.integer], layer: Convolution) -> NDArray[np.integer]:
    """The weights of each of the copies that :func:`merge_groups` makes of a convolution.

    Args:
        weights: (out, in / groups, kernel, kernel) of the whole convolution.
        layer: what :func:`merge_groups` returned.

    Returns:
        (copies, *layer.weight_shape).
    """
    _, fan_in, *kernel = weights.shape
    many = layer.in_channels // fan_in
    grouped = weights.reshape(-1, many, layer.out_channels // many, fan_in, *kernel)
    dense = np.zeros((*grouped.shape[:3], many, *grouped.shape[3:]), weights.dtype)
    for place in range(many):
        dense[:, place, :, place] = grouped[:, place]
    return dense.reshape(-1, *layer.weight_shape)
