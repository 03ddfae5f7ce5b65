"""Trees, sums of table entries and bit streams: NumPy and every compiled engine give the same, and what they should."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import Engine
from deepreshape.private.crypto.backend.numpy import Reference


def compiled() -> list[Engine]:
    try:
        from deepreshape.private.crypto.backend.fused import Fused, widths
    except ImportError:
        return []
    return [Fused(lanes, 1) for lanes in widths()]


ENGINES = [Reference(), *compiled()]
PERMUTE = np.uint64(1 << 63)

pytestmark = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: f"{engine.name} {engine.about}")


def fixed(number: int) -> Randomness:
    return Randomness(bytes([number]) * 32)


def difference(rng: Randomness) -> np.ndarray:
    delta = rng.words(2)
    delta[0] |= PERMUTE
    return delta


def times(bits: np.ndarray, delta: np.ndarray) -> np.ndarray:
    return np.negative(bits.astype(np.int64)).view(np.uint64)[..., None] & delta


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 9])
def test_trees_are_those_of_the_reference(engine: Engine, depth: int):
    rng = fixed(depth)
    roots, delta, key, sides = rng.labels(7), difference(rng), rng.bytes(16), rng.bytes(7 * depth).reshape(7, -1) & 1
    leaves, sums = engine.grow(roots, delta, depth, key)
    wanted = Reference().grow(roots, delta, depth, key)
    np.testing.assert_array_equal(leaves, wanted[0])
    np.testing.assert_array_equal(sums, wanted[1])
    known = sums ^ times(sides, delta)
    known[:, -1, 0] &= ~PERMUTE
    np.testing.assert_array_equal(engine.regrow(known, sides, key), Reference().regrow(known, sides, key))


def test_a_tree_is_right_in_all_leaves_but_the_one_off_every_side(engine: Engine):
    rng, depth = fixed(1), 6
    delta, key = difference(rng), rng.bytes(16)
    sides = (np.arange(64)[:, None] >> np.arange(depth) & 1).astype(np.uint8)  # every path there is
    leaves, sums = engine.grow(rng.labels(64), delta, depth, key)
    assert not (leaves[:, 0] & PERMUTE).any()
    known = sums ^ times(sides, delta)
    known[:, -1, 0] &= ~PERMUTE
    again = engine.regrow(known, sides, key).reshape(64, 64, 2)
    hole = 63 - np.arange(64)
    choices = (np.arange(64) == hole[:, None]).astype(np.uint8)
    np.testing.assert_array_equal(leaves.reshape(64, 64, 2) ^ again, times(choices, delta))
    np.testing.assert_array_equal(again[..., 0] & PERMUTE != 0, choices)


def test_a_wrong_sum_is_not_passed_over(engine: Engine):
    rng, depth = fixed(2), 4
    delta, key, sides = difference(rng), rng.bytes(16), np.zeros((1, 4), np.uint8)
    leaves, sums = engine.grow(rng.labels(1), delta, depth, key)
    sums[0, 2, 1] ^= np.uint64(1)
    assert (leaves != engine.regrow(sums, sides, key)).any(axis=1).sum() > 1


@pytest.mark.parametrize("first", [0, 16, 48])
def test_sums_of_table_entries_are_those_that_the_counter_mode_says(engine: Engine, first: int):
    rng, count = fixed(3), 64
    table, key, before = rng.labels(128), rng.bytes(16), rng.labels(count)
    stream = Cipher(algorithms.AES(key.tobytes()), modes.ECB()).encryptor()  # noqa: S305
    blocks = [stream.update(block.to_bytes(16, "little")) for block in range((first + count) * 10 // 4)]
    indices = np.frombuffer(b"".join(blocks), np.uint32).reshape(-1, 10)[first:] % 128
    out = before.copy()
    engine.gather(out, table, key, first)
    np.testing.assert_array_equal(out, before ^ np.bitwise_xor.reduce(table[indices], axis=1))


@pytest.mark.parametrize("bits", [1, 2, 13, 32, 37, 57, 63, 64])
@pytest.mark.parametrize("count", [1, 63, 64, 1001])
def test_a_stream_of_bits_holds_the_low_bits_in_order(engine: Engine, bits: int, count: int):
    values = fixed(4).words(count)
    low = [int(value) % (1 << bits) for value in values]
    number = sum(value << bits * i for i, value in enumerate(low))
    stream = engine.pack(values, bits)
    assert stream.tobytes() == number.to_bytes(-(-bits * count // 8), "little")
    assert engine.unpack(stream, bits, count).tolist() == low


def test_columns_hash_under_keys_of_their_own(engine: Engine):
    rng = fixed(5)
    for count in (1, 5, 16, 33):
        labels, keys, delta = rng.labels(3 * count).reshape(3, count, 2), rng.bytes(48).reshape(3, 16), rng.words(2)
        hashed = engine.hash_columns(labels, keys, delta)
        for column, label, key in zip(hashed, labels, keys, strict=True):
            np.testing.assert_array_equal(column, Reference().hash(label ^ delta, key))


def test_sums_over_seeds_by_the_bits_of_their_numbers(engine: Engine):
    rng = fixed(6)
    seeds, keys = rng.labels(16 * 256).reshape(16, 256, 2), rng.bytes(48).reshape(3, 16)
    columns, sums = engine.fold(seeds, keys)
    for number, key in enumerate(keys):
        hashed = Reference().hash(seeds.reshape(-1, 2), key).reshape(16, 256, 2)
        np.testing.assert_array_equal(sums[:, number], np.bitwise_xor.reduce(hashed, axis=1))
        for bit in range(8):
            chosen = hashed[:, np.arange(256) >> bit & 1 == 1]
            np.testing.assert_array_equal(columns[:, bit, number], np.bitwise_xor.reduce(chosen, axis=1))
