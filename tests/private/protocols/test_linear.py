"""Linear layers under encryption: exact modulo t, with exactly the bytes that were declared."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.convolutions import exact_product, random_case

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he.bfv import ClientKey, Responder
from deepreshape.private.crypto.he.packing import (
    Convolution,
    Layout,
    choose_parameters,
    lay_out,
    merge_groups,
    split_groups,
)
from deepreshape.private.crypto.he.parameters import Parameters, known_parameters
from deepreshape.private.crypto.he.responses import EncodedWeights, respond
from deepreshape.private.errors import ProtocolError
from deepreshape.private.protocols.linear import (
    receive_input,
    receive_keys,
    receive_share,
    send_input,
    send_keys,
    send_responses,
)
from deepreshape.private.transport.memory import memory_pair

RANDOM = Randomness()
PRIME = 2061584302081
MODULI = [2**37, 2**41, PRIME]
client_key = cache(ClientKey)


def run(layout: Layout, weights, mask, rng=RANDOM):
    """Both roles, step by step; returns u, s and the two ledgers' rows."""
    here, there = memory_pair()
    key = client_key(layout.parameters)
    with here.ledger.at("", "setup"), there.ledger.at("", "setup"):
        send_keys(here, key)
        responder = receive_keys(there, layout.parameters, rng)
    with here.ledger.at("layer", "offline"), there.ledger.at("layer", "offline"):
        send_input(here, key, layout, mask)
        received = receive_input(there, layout)
        responses, server_share = respond(responder, EncodedWeights(layout, weights), received)
        send_responses(there, responses)
        client_share = receive_share(here, key, layout)
    return client_share, server_share, here.ledger.traffic, there.ledger.traffic


def check(layout: Layout, seed: int = 0):
    layer, modulus = layout.layer, layout.parameters.modulus
    weights, mask = random_case(layer, modulus, seed)
    client_share, server_share, here, there = run(layout, weights, mask)
    assert client_share.shape == server_share.shape == layer.output_shape
    assert int(client_share.max()) < modulus
    assert int(server_share.max()) < modulus
    opened = (client_share.astype(object) + server_share.astype(object)) % modulus
    assert (opened == exact_product(layer, weights, mask, modulus)).all()

    out, back = layout.declared.traffic["offline"]
    row = here["layer", "offline"]
    assert (row.sent, row.received) == (out, back)
    assert (row.frames_sent, row.frames_received) == layout.declared.ciphertexts
    assert row.rounds == 1
    assert (there["layer", "offline"].sent, there["layer", "offline"].received) == (back, out)
    assert here["", "setup"].sent == layout.parameters.setup_bytes


@st.composite
def layers(draw):
    kernel = draw(st.sampled_from([1, 2, 3, 5]))
    padding = draw(st.integers(0, kernel - 1))
    least = max(1, kernel - 2 * padding)
    return Convolution(
        in_channels=draw(st.integers(1, 7)),
        height=draw(st.integers(least, 11)),
        width=draw(st.integers(least, 11)),
        out_channels=draw(st.integers(1, 7)),
        kernel=kernel,
        stride=draw(st.integers(1, 3)),
        padding=padding,
        weight_bits=draw(st.sampled_from([1, 8, 16])),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(layers(), st.sampled_from(MODULI), st.integers(0, 9))
def test_small_convolutions(layer, modulus, seed):
    parameters = choose_parameters(modulus, [layer])
    check(lay_out(layer, parameters), seed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(layers(), st.data())
def test_every_layout_is_right(layer, data):
    """Not only the layouts that the search likes: any split, band height, tiling and interleaving that fits."""
    interleave = 1 << data.draw(st.integers(0, 2))
    parameters = Parameters(2**37, (60, 60), galois_keys=2)
    split = data.draw(st.sampled_from(sorted({1, layer.stride})))
    band_rows = data.draw(st.integers(1, layer.output_shape[1]))
    probe = Layout(layer, parameters, split, band_rows, 1, 1)
    in_tile = data.draw(st.integers(1, probe.channels))
    out_tile = data.draw(st.integers(1, layer.out_channels))
    layout = Layout(layer, parameters, split, band_rows, in_tile, out_tile, interleave)
    assume(layout.fits)
    check(layout)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 60), st.sampled_from(MODULI))
def test_matrix_products(inputs, outputs, modulus):
    layer = Convolution.matrix(inputs, outputs, weight_bits=12)
    check(lay_out(layer, choose_parameters(modulus, [layer])))


@pytest.mark.parametrize(
    "layer",
    [
        Convolution(64, 8, 8, 64, kernel=3, padding=1),
        Convolution(3, 90, 100, 2, kernel=3, padding=1),  # larger than a polynomial: bands
        Convolution(2, 67, 131, 3, kernel=5, stride=2, padding=2),
        Convolution(2, 30, 9, 2, kernel=7, stride=3, padding=3),
    ],
)
def test_large_and_odd(layer):
    check(lay_out(layer, choose_parameters(2**37, [layer])))


def test_full_polynomial():
    """No spare coefficient: 8 * 4 * 16 * 16 = 8192, so every wrap-around is exercised."""
    layout = Layout(Convolution(8, 15, 15, 4, kernel=2, padding=1), Parameters(2**37, (60, 60)), 1, 16, 8, 4)
    assert layout.in_tile * layout.out_tile * layout.pitch == layout.parameters.degree
    check(layout)


class Constant:
    """A source of one byte only: all that is drawn is at an end of its range, or next to it."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    def bytes(self, n: int, /):
        return np.full(n, self.byte, np.uint8)


@st.composite
def bounded(draw):
    """A layer with a bound on sums that binds or does not, and the weights that are worst under its bounds."""
    layer = draw(layers())
    taps = layer.in_channels * layer.kernel**2
    sum_bits = draw(st.integers(layer.weight_bits, layer.weight_bits + taps.bit_length()))
    layer = replace(layer, sum_bits=sum_bits, copies=draw(st.sampled_from([1, 3, 64])))
    rows = np.zeros((layer.out_channels, taps), np.int64)
    rows[:, : layer.weight_sum >> layer.weight_bits] = draw(st.sampled_from([-1, 1])) << layer.weight_bits
    assert int(np.abs(rows).sum(1).max()) == layer.weight_sum
    return layer, rows.reshape(layer.weight_shape)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(bounded(), st.sampled_from([2**30, *MODULI]), st.sampled_from([0, 254]))
def test_the_worst_weights_that_the_bounds_allow_decrypt(case, modulus, byte):
    """The largest mask too, and floods next to an end of their range."""
    layer, weights = case
    mask = np.full(layer.input_shape, modulus - 1, np.uint64)
    layout = lay_out(layer, choose_parameters(modulus, [layer]))
    client_share, server_share, _, _ = run(layout, weights, mask, Constant(byte))
    opened = (client_share.astype(object) + server_share.astype(object)) % modulus
    assert (opened == exact_product(layer, weights, mask, modulus)).all()


@settings(max_examples=6, deadline=None, derandomize=True)
@given(bounded(), st.sampled_from([2, 8]), st.sampled_from([0, 254]))
def test_packed_responses_of_the_worst_weights_decrypt(case, interleave, byte):
    layer, weights = case
    parameters = Parameters(2**37, (60, 60), galois_keys=3)
    out_tile = -(-layer.out_channels // 3)
    layout = Layout(layer, parameters, 1, layer.output_shape[1], layer.in_channels, out_tile, interleave)
    assume(layout.fits)
    mask = np.full(layer.input_shape, 2**37 - 1, np.uint64)
    client_share, server_share, _, _ = run(layout, weights, mask, Constant(byte))
    opened = (client_share.astype(object) + server_share.astype(object)) % 2**37
    assert (opened == exact_product(layer, weights, mask, 2**37)).all()


def test_a_wide_layout_that_cannot_be_flooded_hides_no_narrower_one():
    """The first layout that the search meets holds 64 output channels in a response, which no two primes can flood."""
    layer = Convolution(128, 32, 32, 128, 3, 1, 1, weight_bits=11, sum_bits=21)
    parameters = Parameters(2**31, (60, 60))
    with pytest.raises(ValueError, match="noise budget too small"):
        Layout(layer, parameters, 1, 1, 1, 64).form  # noqa: B018
    assert lay_out(layer, parameters).form.flood_bits == 82
    assert len(choose_parameters(2**31, [layer]).prime_bits) == 2


@settings(max_examples=30, deadline=None, derandomize=True)
@given(bounded())
def test_flood_covers_all_weights_of_a_response(case):
    """Errors are dense, so every weight of every plaintext behind a response counts, not only one channel's.

    The 2^-40 are a layer's of the network, so all its copies share them.
    """
    layer, weights = case
    layout = lay_out(layer, Parameters(2**37, (60, 60, 60)))
    largest = layout.split_weights(weights)
    noise = max(
        layout.parameters.noise_bound(
            sum(
                int(np.abs(layout.plaintext(largest[h * layout.out_tile : (h + 1) * layout.out_tile], g)).sum())
                for g in range(layout.inputs)
            )
        )
        for h in range(layout.outputs)
    )
    assert noise * layer.copies * int(np.prod(layer.output_shape)) <= 2 ** (layout.form.flood_bits + 1 - 40)


def test_tiling_of_the_reference_layer():
    """64x8x8 -> 64: few ciphertexts each way and well below 3 MB."""
    layer = Convolution(64, 8, 8, 64, kernel=3, padding=1)
    cost = lay_out(layer, choose_parameters(2**37, [layer])).declared
    sent, returned = cost.ciphertexts
    assert sent * returned == cost.products
    assert sent + returned <= 16
    assert sum(cost.traffic["offline"]) < 1_400_000


def test_stride_two_pointwise_keeps_a_quarter():
    strided = Convolution(64, 32, 32, 64, stride=2)
    dense = Convolution(64, 16, 16, 64)
    parameters = choose_parameters(2**37, [strided])
    assert lay_out(strided, parameters).declared.traffic == lay_out(dense, parameters).declared.traffic
    assert lay_out(strided, parameters).split == 2


def test_kept_encodings_answer_the_same():
    layer = Convolution(3, 6, 6, 3, kernel=3, padding=1)
    layout = lay_out(layer, choose_parameters(2**37, [layer]))
    weights, mask = random_case(layer, 2**37)
    key = ClientKey(layout.parameters)
    responder = Responder(layout.parameters, key.public_key())
    kept = EncodedWeights(layout, weights, keep=True)
    sent = [key.encrypt(polynomial) for polynomial in layout.polynomials(mask)]
    expected = exact_product(layer, weights, mask, 2**37)
    for _ in range(2):
        responses, share = respond(responder, kept, sent)
        opened = np.zeros(layer.output_shape, np.uint64)
        for response, (channels, rows) in zip(responses, layout.slices(), strict=True):
            plaintext = key.decrypt(response, layout.form, layout.positions(channels, rows))
            opened[channels, rows] = plaintext.reshape(opened[channels, rows].shape)
        assert (((opened + share) % np.uint64(2**37)).astype(object) == expected).all()


def test_zero_weights():
    layer = Convolution(2, 4, 4, 2, kernel=3, padding=1)
    layout = lay_out(layer, choose_parameters(2**37, [layer]))
    client_share, server_share, _, _ = run(layout, np.zeros(layer.weight_shape, np.int64), random_case(layer, 2**37)[1])
    assert not ((client_share + server_share) % np.uint64(2**37)).any()


def test_shares_are_uniform_and_fresh():
    """Even where W r is zero, each share alone looks uniform, and no two runs share one."""
    layer = Convolution(2, 16, 16, 4, kernel=3, padding=1)
    layout = lay_out(layer, choose_parameters(2**37, [layer]))
    shares = [
        share
        for _ in range(2)
        for share in run(layout, np.zeros(layer.weight_shape, int), np.zeros(layer.input_shape, np.uint64))[:2]
    ]
    assert np.unique(np.stack(shares)).size > 4 * 1024 - 3
    for share in shares:
        assert abs(float((share >> np.uint64(36)).mean()) - 0.5) < 0.1
        assert abs(float((share & np.uint64(1)).mean()) - 0.5) < 0.1


class Zeros:
    """A source whose masks are all zero; arrays do as well as bytes."""

    def bytes(self, n: int, /):
        return np.zeros(n, np.uint8)


def test_share_of_zero():
    """The mask -s stays below t when s is 0."""
    layer = Convolution(2, 4, 4, 2, kernel=3, padding=1)
    layout = lay_out(layer, choose_parameters(2**37, [layer]))
    weights, mask = random_case(layer, 2**37)
    client_share, server_share, _, _ = run(layout, weights, mask, Zeros())
    assert not server_share.any()
    assert (client_share.astype(object) == exact_product(layer, weights, mask, 2**37)).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kernel": 3, "padding": 3}, "padding must be in"),
        ({"kernel": 9}, "kernel is larger"),
        ({"stride": 0}, "at least 1"),
    ],
)
def test_impossible_layers(arguments, says):
    with pytest.raises(ValueError, match=says):
        Convolution(1, 8, 8, 1, **arguments)


def test_wrong_weights_and_masks():
    layer = Convolution(1, 4, 4, 1, weight_bits=3)
    layout = lay_out(layer, choose_parameters(2**37, [layer]))
    key = ClientKey(layout.parameters)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 1, 1\)"):
        EncodedWeights(layout, np.ones((2, 1, 1, 1), np.int64))
    with pytest.raises(ValueError, match=r"exceeds 2\^3"):
        EncodedWeights(layout, np.full((1, 1, 1, 1), -9))
    summed = Convolution.matrix(4, 1, weight_bits=3, sum_bits=4)
    with pytest.raises(ValueError, match=r"sum to more than the 2\^4"):
        EncodedWeights(lay_out(summed, layout.parameters), np.full((1, 4, 1, 1), 5))
    with pytest.raises(ValueError, match=r"wants \(1, 4, 4\)"):
        send_input(memory_pair()[0], key, layout, np.zeros((1, 4, 5), np.uint64))


def test_too_wide_is_refused():
    with pytest.raises(ValueError, match="noise budget too small by about"):
        choose_parameters(2**55, [Convolution(512, 8, 8, 64, kernel=3, padding=1, weight_bits=40)])


def test_malformed_ciphertexts_reach_no_product():
    layer = Convolution(1, 4, 4, 1)
    layout = lay_out(layer, choose_parameters(2**37, [layer]))
    key = ClientKey(layout.parameters)
    responder = Responder(layout.parameters, key.public_key())
    weights = EncodedWeights(layout, np.ones(layer.weight_shape, np.int64))
    good = key.encrypt(np.zeros(layout.parameters.degree, np.uint64))
    for count in (0, 2):
        with pytest.raises(ProtocolError, match=f"{count} ciphertexts; the layer wants 1"):
            respond(responder, weights, [good] * count)
    twice = Layout(Convolution(2, 4, 4, 1), layout.parameters, 1, 4, 1, 1)
    with pytest.raises(ProtocolError, match="have the same seed"):
        respond(responder, EncodedWeights(twice, np.ones((1, 2, 1, 1), np.int64)), [good] * 2)
    with pytest.raises(ProtocolError, match="bytes"):
        respond(responder, weights, [os.urandom(10)])
    with pytest.raises(ProtocolError, match="not below its prime"):
        respond(responder, weights, [b"\xff" * layout.parameters.fresh_bytes])


@pytest.mark.parametrize(
    "layer", [Convolution(5, 6, 6, 7, 3, 2, 1), Convolution(40, 4, 4, 9), Convolution(3, 9, 5, 4, 3, 1, 1)]
)
def test_the_layout_is_the_cheapest_of_all(layer: Convolution):
    parameters = replace(next(iter(known_parameters(1 << 20))), galois_keys=2)
    costs: list[int] = []
    for split, band_rows, interleave in product({1, layer.stride}, range(1, layer.output_shape[1] + 1), (1, 2, 4)):
        probe = Layout(layer, parameters, split, band_rows, 1, 1, interleave)
        for in_tile in range(1, probe.channels + 1):
            block = replace(probe, in_tile=in_tile).block
            out_tile = min(parameters.degree // block, layer.out_channels)
            if out_tile:
                out_tile = -(-layer.out_channels // -(-layer.out_channels // out_tile))
                with suppress(ValueError):
                    costs.append(replace(probe, in_tile=in_tile, out_tile=out_tile).cost)
    assert lay_out(layer, parameters).cost == min(costs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 40),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0), (5, 3, 4)]),
)
def test_joined_groups_compute_what_the_groups_do(groups, channels, size, place):
    kernel, stride, padding = place
    fan_in, outs = channels
    assume(min(size) + 2 * padding >= kernel)
    group = Convolution(fan_in, *size, outs, kernel, stride, padding, 4)
    layer = merge_groups(group, groups)
    count = layer.copies
    assert count * layer.in_channels == groups * fan_in
    assert layer.weight_sum >= group.weight_sum
    if count < groups:
        assert lay_out(layer, next(iter(known_parameters(1 << 20)))).declared.ciphertexts == (1, 1)
    rng = np.random.default_rng(groups)
    weights = rng.integers(-16, 17, (groups * outs, fan_in, kernel, kernel))
    x = rng.integers(0, 99, (groups, fan_in, *size))
    apart = [
        exact_product(group, filters, part, 2**20) for filters, part in zip(np.split(weights, groups), x, strict=True)
    ]
    parts = zip(split_groups(weights, layer), x.reshape(count, *layer.input_shape), strict=True)
    together = [exact_product(layer, filters, part, 2**20) for filters, part in parts]
    assert np.array_equal(np.concatenate(apart), np.concatenate(together))


def test_a_norm_of_many_channels_takes_few_ciphertexts():
    """A convolution of 512 groups of one channel, which is what a batch norm before a ReLU becomes."""
    layer = merge_groups(Convolution(1, 8, 8, 1), 512)
    assert (layer.in_channels, layer.copies) == (8, 64)
    assert merge_groups(Convolution(1, 4, 4, 1, 3, 1, 1), 512).copies == 32  # 16 x 16 blocks of 5 x 5, padding shared
    assert merge_groups(Convolution(64, 8, 8, 64), 2).copies == 2  # a group fills polynomials of its own
