"""Half-gates: every wire against the circuit in the clear, and every byte against a slow second implementation."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.private.arith.ring import (
    CIRCA_PRIME,
    DELPHI_PRIME,
    PRIME_32,
    Bits,
    Field,
    Modulus,
    Randomness,
    Ring,
    Words,
)
from deepreshape.private.crypto.circuit import Builder, Circuit, evaluate_plain, relu
from deepreshape.private.crypto.gc.halfgates import Garbled, evaluate, garble, table_shape
from deepreshape.private.crypto.labels import Context, Delta, hash_labels, pick

HERE = Context(b"session", "stage1.relu", 0)


def fixed(number: int = 1) -> Randomness:
    return Randomness(bytes([number]) * 32)


def draw(circuit: Circuit, count: int, rng: Randomness) -> tuple[Words, Bits]:
    """Labels of zero and input bits."""
    cells = circuit.width * count
    return rng.labels(cells).reshape(-1, count, 2), rng.bytes(cells).reshape(-1, count) & np.uint8(1)


def all_wires(circuit: Circuit) -> Circuit:
    return replace(circuit, outputs=tuple(range(circuit.width + len(circuit.gates))))


def gate(invert_a: bool, invert_b: bool) -> Circuit:
    build = Builder()
    (a,), (b,) = build.input("garbler", "a", 1), build.input("evaluator", "b", 1)
    return build.build([build.and_(build.not_(a) if invert_a else a, build.not_(b) if invert_b else b)])


@pytest.mark.parametrize("invert_a", [False, True])
@pytest.mark.parametrize("invert_b", [False, True])
def test_and_gate_under_all_inversions(invert_a: bool, invert_b: bool) -> None:
    circuit, offset = gate(invert_a, invert_b), Delta(fixed())
    labels, _ = draw(circuit, 64, fixed(2))  # 64 instances: all four pairs of colours occur
    bits = np.array([[0, 1, 0, 1] * 16, [0, 0, 1, 1] * 16], np.uint8)
    out = evaluate(circuit, garble(circuit, offset, labels, HERE), pick(labels, offset.words, bits), HERE)
    np.testing.assert_array_equal(out[0], (bits[0] ^ invert_a) & (bits[1] ^ invert_b))


MODULI: list[Modulus] = [
    *map(Ring, (2, 5, 16, 32, 37)),
    *map(Field, (3, 7, 13, CIRCA_PRIME, PRIME_32, DELPHI_PRIME)),
]


@pytest.mark.parametrize("modulus", MODULI, ids=str)
def test_every_wire_holds_its_value(modulus: Modulus) -> None:
    circuit, offset = all_wires(relu(modulus, 0)), Delta(fixed())
    labels, bits = draw(circuit, 37, fixed(2))
    out = evaluate(circuit, garble(circuit, offset, labels, HERE), pick(labels, offset.words, bits), HERE)
    np.testing.assert_array_equal(out, evaluate_plain(circuit, bits))


class Slow:
    """Half-gates as the paper writes them, one gate and instance at a time, on Python integers."""

    def __init__(self, offset: int, context: Context, gates: int) -> None:
        self.offset = offset
        self.keys = [key.tobytes() for key in context.keys(2 * gates)]

    def hash(self, key: bytes, label: int) -> int:
        low, high = label & (2**64 - 1), label >> 64
        mixed = (low ^ high) | low << 64
        block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(mixed.to_bytes(16, "little"))  # noqa: S305
        return int.from_bytes(block, "little") ^ mixed

    @staticmethod
    def colour(label: int) -> int:
        return label >> 63 & 1

    def garble(self, circuit: Circuit, labels: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        tables: list[tuple[int, int]] = []
        wires = list(labels)
        for g in circuit.gates:
            a, b = wires[g.a], wires[g.b]
            if g.op == "xor":
                wires.append(a ^ b)
            elif g.op == "not":
                wires.append(a ^ self.offset)
            else:
                first, second = self.keys[2 * len(tables) : 2 * len(tables) + 2]
                p, q = self.colour(a), self.colour(b)
                a0, a1 = self.hash(first, a), self.hash(first, a ^ self.offset)
                b0, b1 = self.hash(second, b), self.hash(second, b ^ self.offset)
                row_g, row_e = a0 ^ a1 ^ q * self.offset, b0 ^ b1 ^ a
                tables.append((row_g, row_e))
                wires.append((a0 ^ p * row_g) ^ (b0 ^ q * (row_e ^ a)))
        return tables, [self.colour(wires[wire]) for wire in circuit.outputs]


def as_ints(labels: Words) -> list[int]:
    return [int.from_bytes(label.tobytes(), "little") for label in labels.reshape(-1, 2)]


@pytest.mark.parametrize("modulus", [Ring(8), Field(13), Field(CIRCA_PRIME)], ids=str)
def test_tables_equal_those_of_the_slow_implementation(modulus: Modulus) -> None:
    circuit, offset = relu(modulus, 1), Delta(fixed())
    labels, _ = draw(circuit, 3, fixed(2))
    slow = Slow(as_ints(offset.words)[0], HERE, circuit.and_gates)
    tables, decode = garble(circuit, offset, labels, HERE).take()
    for instance in range(3):
        expected, colours = slow.garble(circuit, as_ints(labels[:, instance]))
        assert as_ints(tables[:, :, instance]) == [row for pair in expected for row in pair]
        assert decode[:, instance].tolist() == colours


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    prime=st.sampled_from([3, 5, 7, 11, 13]),
    shift=st.integers(0, 1),
    count=st.integers(1, 20),
    seed=st.binary(min_size=32, max_size=32),
)
def test_evaluation_is_the_circuit(prime: int, shift: int, count: int, seed: bytes) -> None:
    circuit, rng = relu(Field(prime), min(shift, prime.bit_length() - 2)), Randomness(seed)
    offset = Delta(rng)
    labels, bits = draw(circuit, count, rng)
    out = evaluate(circuit, garble(circuit, offset, labels, HERE), pick(labels, offset.words, bits), HERE)
    np.testing.assert_array_equal(out, evaluate_plain(circuit, bits))


def test_a_wrong_context_or_table_gives_nothing() -> None:
    circuit, offset = relu(Ring(16), 0), Delta(fixed())
    labels, bits = draw(circuit, 50, fixed(2))
    garbled = garble(circuit, offset, labels, HERE)
    active = pick(labels, offset.words, bits)
    expected = evaluate_plain(circuit, bits)
    tables, decode = garbled.take()
    elsewhere = evaluate(circuit, Garbled(tables, decode), active, replace(HERE, batch=1))
    assert 0.3 < (elsewhere != expected).mean() < 0.7
    tables[5] ^= np.uint64(2**63)
    assert (evaluate(circuit, Garbled(tables, decode), active, HERE) != expected).any()


def test_no_key_repeats_over_many_sessions_layers_and_batches() -> None:
    keys = [
        key.tobytes()
        for session in (b"", b"a", b"ab", b"b")
        for layer in ("", "a", "ab", "b", "a\0")
        for batch in range(12)
        for key in Context(session, layer, batch).keys(64)
    ]
    assert len(set(keys)) == len(keys)


def test_pads_are_the_hash_of_the_gates_under_keys_of_their_own() -> None:
    labels = fixed().labels(6).reshape(2, 3, 2)
    pads = hash_labels(labels, HERE, "rows")
    slow = Slow(0, HERE, 0)
    key = HERE.keys(1, "rows")[0].tobytes()
    assert as_ints(pads) == [slow.hash(key, label) for label in as_ints(labels)]
    elsewhere = [(HERE, "other rows"), (replace(HERE, batch=1), "rows"), (replace(HERE, layer="rows"), "rows")]
    every = [pads, *(hash_labels(labels, *where) for where in elsewhere)]
    assert len({pad for one in every for pad in as_ints(one)}) == 6 * len(every)
    gates = {gate.tobytes() for gate in HERE.keys(1000)}
    assert key not in gates
    with pytest.raises(ValueError, match="that of the gates themselves"):
        hash_labels(labels, HERE, "")


def test_a_context_is_garbled_once_under_an_offset() -> None:
    circuit, offset = gate(False, False), Delta(fixed())
    labels, _ = draw(circuit, 1, fixed(2))
    garble(circuit, offset, labels, HERE)
    with pytest.raises(RuntimeError, match=r"batch 0 of layer 'stage1.relu' was garbled before"):
        garble(circuit, offset, labels, Context(b"session", "stage1.relu", 0))
    garble(circuit, offset, labels, replace(HERE, batch=1))
    garble(circuit, Delta(fixed(3)), labels, HERE)


def test_a_garbled_batch_is_used_once() -> None:
    circuit, offset = gate(False, False), Delta(fixed())
    labels, bits = draw(circuit, 1, fixed(2))
    garbled = garble(circuit, offset, labels, HERE)
    evaluate(circuit, garbled, pick(labels, offset.words, bits), HERE)
    with pytest.raises(RuntimeError, match="one evaluation"):
        evaluate(circuit, garbled, pick(labels, offset.words, bits), HERE)
    with pytest.raises(RuntimeError, match="one evaluation"):
        garbled.take()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_no_copy_gives_a_second_use(again: Callable[[object], object]) -> None:
    garbled = Garbled(np.zeros((1, 2, 1, 2), np.uint64), np.zeros((1, 1), np.uint8))
    for handle in (Delta(fixed()), garbled):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            again(handle)


def test_offset() -> None:
    assert all(int(Delta(fixed(i)).words[0]) >> 63 == 1 for i in range(20))
    others = np.bitwise_or.reduce([Delta(fixed(i)).words for i in range(20)])
    assert others.tolist() == [2**64 - 1] * 2
    offset = Delta(fixed())
    assert str(int(offset.words[1])) not in repr(offset)
    assert "tables" not in repr(Garbled(np.zeros((1, 2, 1, 2), np.uint64), np.zeros((1, 1), np.uint8)))


def test_pick_moves_labels_by_the_offset() -> None:
    labels, offset = fixed().labels(3), Delta(fixed(2)).words
    moved = pick(labels, offset, np.array([0, 1, 1], np.uint8))
    np.testing.assert_array_equal(moved, [labels[0], labels[1] ^ offset, labels[2] ^ offset])


def test_tables_are_one_contiguous_array_of_32_bytes_a_gate() -> None:
    circuit = relu(Ring(32), 0)
    labels, _ = draw(circuit, 10, fixed(2))
    tables, _ = garble(circuit, Delta(fixed()), labels, HERE).take()
    assert tables.shape == table_shape(circuit, 10)
    assert tables.flags.c_contiguous
    assert tables.nbytes == 10 * 93 * 32


def test_tables_go_into_the_room_that_is_given() -> None:
    circuit, room = relu(Ring(8), 0), np.zeros(21 * 4 * 5 + 3, np.uint64)
    labels, _ = draw(circuit, 5, fixed(2))
    tables, decode = garble(circuit, Delta(fixed()), labels, HERE, room).take()
    expected, same = garble(circuit, Delta(fixed()), labels, HERE).take()
    assert np.shares_memory(tables, room)
    np.testing.assert_array_equal(tables, expected)
    np.testing.assert_array_equal(decode, same)


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wants \(24, n, 2\)"):
        garble(relu(Ring(8), 0), Delta(fixed()), np.zeros((23, 4, 2), np.uint64), HERE)
    pieces = [np.zeros((23, 4, 2), np.uint64), np.zeros((1, 5, 2), np.uint64)]
    with pytest.raises(ValueError, match=r"shape \(23, 4, 2\), \(1, 5, 2\); this circuit wants \(24, n, 2\)"):
        garble(relu(Ring(8), 0), Delta(fixed()), pieces, HERE)


def test_tables_of_another_shape_are_refused() -> None:
    circuit = gate(False, False)
    garbled = Garbled(np.zeros((1, 2, 3, 2), np.uint64), np.zeros((1, 4), np.uint8))
    with pytest.raises(ValueError, match=r"tables have shape \(1, 2, 3, 2\).* want \(1, 2, 4, 2\)"):
        evaluate(circuit, garbled, np.zeros((2, 4, 2), np.uint64), HERE)


def test_labels_may_come_in_pieces() -> None:
    circuit = relu(Ring(8), 0)
    labels, bits = draw(circuit, 5, fixed(2))
    whole, offset = garble(circuit, Delta(fixed()), labels, HERE), Delta(fixed())
    parts = garble(circuit, offset, [labels[:8], labels[8:9], labels[9:]], HERE)
    active = pick(labels, offset.words, bits)
    expected = evaluate(circuit, whole, active, HERE)
    np.testing.assert_array_equal(evaluate(circuit, parts, [active[:1], active[1:]], HERE), expected)
    np.testing.assert_array_equal(expected, evaluate_plain(circuit, bits))


def test_pick_wants_one_bit_a_label_and_writes_where_it_is_told() -> None:
    labels, offset = fixed().labels(3), Delta(fixed(2)).words
    bits = np.array([0, 1, 1], np.uint8)
    expected = pick(labels, offset, bits)
    assert pick(labels, offset, bits, labels) is labels
    np.testing.assert_array_equal(labels, expected)
    with pytest.raises(ValueError, match="cannot pick from labels"):
        pick(labels, offset, bits[:2])
    with pytest.raises(ValueError, match="cannot pick from labels"):
        pick(labels, offset, bits, np.empty((6, 2), np.uint64)[::2])
