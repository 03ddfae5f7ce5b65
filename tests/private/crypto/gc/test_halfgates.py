"""Half-gates: every wire against the circuit in the clear, and every byte against a slow second implementation."""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from support.circuits import evaluate_decoded, evaluate_plain, garble_decoded
from support.two_parties import fixed

from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, PRIME_32, Bits, Field, Modulus, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.circuit import Builder, Circuit
from deepreshape.private.crypto.gc.halfgates import garble, table_shape
from deepreshape.private.crypto.gc.relu_circuits import relu_circuit
from deepreshape.private.crypto.labels import Context, Delta, hash_labels, pick

HERE = Context(b"session", "stage1.relu", 0)


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
    circuit, delta = gate(invert_a, invert_b), Delta(fixed(1))
    labels, _ = draw(circuit, 64, fixed(2))  # 64 instances: all four pairs of permute bits occur
    bits = np.array([[0, 1, 0, 1] * 16, [0, 0, 1, 1] * 16], np.uint8)
    out = evaluate_decoded(circuit, garble_decoded(circuit, delta, labels, HERE), pick(labels, delta.words, bits), HERE)
    np.testing.assert_array_equal(out[0], (bits[0] ^ invert_a) & (bits[1] ^ invert_b))


MODULI: list[Modulus] = [
    *map(Ring, (2, 5, 16, 32, 37)),
    *map(Field, (3, 7, 13, CIRCA_PRIME, PRIME_32, DELPHI_PRIME)),
]


@pytest.mark.parametrize("modulus", MODULI, ids=str)
def test_every_wire_holds_its_value(modulus: Modulus) -> None:
    circuit, delta = all_wires(relu_circuit(modulus, 0)), Delta(fixed(1))
    labels, bits = draw(circuit, 37, fixed(2))
    out = evaluate_decoded(circuit, garble_decoded(circuit, delta, labels, HERE), pick(labels, delta.words, bits), HERE)
    np.testing.assert_array_equal(out, evaluate_plain(circuit, bits))


class Slow:
    """Half-gates as the paper writes them, one gate and instance at a time, on Python integers."""

    def __init__(self, delta: int, context: Context, gates: int) -> None:
        self.delta = delta
        self.keys = [key.tobytes() for key in context.keys(2 * gates)]

    def hash(self, key: bytes, label: int) -> int:
        low, high = label & (2**64 - 1), label >> 64
        mixed = (low ^ high) | low << 64
        block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(mixed.to_bytes(16, "little"))  # noqa: S305
        return int.from_bytes(block, "little") ^ mixed

    @staticmethod
    def permute_bit(label: int) -> int:
        return label >> 63 & 1

    def garble(self, circuit: Circuit, labels: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        tables: list[tuple[int, int]] = []
        wires = list(labels)
        for g in circuit.gates:
            a, b = wires[g.a], wires[g.b]
            if g.op == "xor":
                wires.append(a ^ b)
            elif g.op == "not":
                wires.append(a ^ self.delta)
            else:
                first, second = self.keys[2 * len(tables) : 2 * len(tables) + 2]
                p, q = self.permute_bit(a), self.permute_bit(b)
                a0, a1 = self.hash(first, a), self.hash(first, a ^ self.delta)
                b0, b1 = self.hash(second, b), self.hash(second, b ^ self.delta)
                row_g, row_e = a0 ^ a1 ^ q * self.delta, b0 ^ b1 ^ a
                tables.append((row_g, row_e))
                wires.append((a0 ^ p * row_g) ^ (b0 ^ q * (row_e ^ a)))
        return tables, [self.permute_bit(wires[wire]) for wire in circuit.outputs]


def as_ints(labels: Words) -> list[int]:
    return [int.from_bytes(label.tobytes(), "little") for label in labels.reshape(-1, 2)]


@pytest.mark.parametrize("modulus", [Ring(8), Field(13), Field(CIRCA_PRIME)], ids=str)
def test_tables_equal_those_of_the_slow_implementation(modulus: Modulus) -> None:
    circuit, delta = relu_circuit(modulus, 1), Delta(fixed(1))
    labels, _ = draw(circuit, 3, fixed(2))
    slow = Slow(as_ints(delta.words)[0], HERE, circuit.and_gates)
    tables, decode = garble_decoded(circuit, delta, labels, HERE)
    for instance in range(3):
        expected, bits = slow.garble(circuit, as_ints(labels[:, instance]))
        assert as_ints(tables[:, :, instance]) == [row for pair in expected for row in pair]
        assert decode[:, instance].tolist() == bits


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    prime=st.sampled_from([3, 5, 7, 11, 13]),
    shift=st.integers(0, 1),
    count=st.integers(1, 20),
    seed=st.binary(min_size=32, max_size=32),
)
def test_evaluation_is_the_circuit(prime: int, shift: int, count: int, seed: bytes) -> None:
    circuit, rng = relu_circuit(Field(prime), min(shift, prime.bit_length() - 2)), Randomness(seed)
    delta = Delta(rng)
    labels, bits = draw(circuit, count, rng)
    out = evaluate_decoded(circuit, garble_decoded(circuit, delta, labels, HERE), pick(labels, delta.words, bits), HERE)
    np.testing.assert_array_equal(out, evaluate_plain(circuit, bits))


def test_a_wrong_context_or_table_gives_nothing() -> None:
    circuit, delta = relu_circuit(Ring(16), 0), Delta(fixed(1))
    labels, bits = draw(circuit, 50, fixed(2))
    garbled = garble_decoded(circuit, delta, labels, HERE)
    active = pick(labels, delta.words, bits)
    expected = evaluate_plain(circuit, bits)
    tables, decode = garbled
    elsewhere = evaluate_decoded(circuit, (tables, decode), active, replace(HERE, batch=1))
    assert 0.3 < (elsewhere != expected).mean() < 0.7
    tables[5] ^= np.uint64(2**63)
    assert (evaluate_decoded(circuit, (tables, decode), active, HERE) != expected).any()


def test_hash_is_that_of_the_gates_under_other_keys() -> None:
    labels = fixed(1).labels(6).reshape(2, 3, 2)
    hashes = hash_labels(labels, HERE, "rows")
    slow = Slow(0, HERE, 0)
    key = HERE.keys(1, "rows")[0].tobytes()
    assert as_ints(hashes) == [slow.hash(key, label) for label in as_ints(labels)]
    elsewhere = [(HERE, "other rows"), (replace(HERE, batch=1), "rows"), (replace(HERE, layer="rows"), "rows")]
    every = [hashes, *(hash_labels(labels, *where) for where in elsewhere)]
    assert len({value for one in every for value in as_ints(one)}) == 6 * len(every)
    gates = {gate.tobytes() for gate in HERE.keys(1000)}
    assert key not in gates
    with pytest.raises(ValueError, match="that of the gates themselves"):
        hash_labels(labels, HERE, "")


def test_a_context_is_garbled_once_under_a_delta() -> None:
    circuit, delta = gate(False, False), Delta(fixed(1))
    labels, _ = draw(circuit, 1, fixed(2))
    garble_decoded(circuit, delta, labels, HERE)
    with pytest.raises(RuntimeError, match=r"batch 0 of layer 'stage1.relu' was garbled before"):
        garble_decoded(circuit, delta, labels, Context(b"session", "stage1.relu", 0))
    garble_decoded(circuit, delta, labels, replace(HERE, batch=1))
    garble_decoded(circuit, Delta(fixed(3)), labels, HERE)


def test_tables_are_one_contiguous_array_of_32_bytes_a_gate() -> None:
    circuit = relu_circuit(Ring(32), 0)
    labels, _ = draw(circuit, 10, fixed(2))
    tables, _ = garble_decoded(circuit, Delta(fixed(1)), labels, HERE)
    assert tables.shape == table_shape(circuit, 10)
    assert tables.flags.c_contiguous
    assert tables.nbytes == 10 * 93 * 32


def test_tables_go_where_they_are_told() -> None:
    circuit, room = relu_circuit(Ring(8), 0), np.zeros(21 * 4 * 5 + 3, np.uint64)
    labels, _ = draw(circuit, 5, fixed(2))
    tables, outputs = garble(circuit, Delta(fixed(1)), labels, HERE, room)
    expected, same = garble(circuit, Delta(fixed(1)), labels, HERE)
    assert np.shares_memory(tables, room)
    np.testing.assert_array_equal(tables, expected)
    np.testing.assert_array_equal(outputs, same)


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wants \(24, n, 2\)"):
        garble_decoded(relu_circuit(Ring(8), 0), Delta(fixed(1)), np.zeros((23, 4, 2), np.uint64), HERE)
    pieces = [np.zeros((23, 4, 2), np.uint64), np.zeros((1, 5, 2), np.uint64)]
    with pytest.raises(ValueError, match=r"shape \(23, 4, 2\), \(1, 5, 2\); this circuit wants \(24, n, 2\)"):
        garble_decoded(relu_circuit(Ring(8), 0), Delta(fixed(1)), pieces, HERE)


def test_tables_of_another_shape_are_refused() -> None:
    circuit = gate(False, False)
    garbled = np.zeros((1, 2, 3, 2), np.uint64), np.zeros((1, 4), np.uint8)
    with pytest.raises(ValueError, match=r"tables have shape \(1, 2, 3, 2\).* want \(1, 2, 4, 2\)"):
        evaluate_decoded(circuit, garbled, np.zeros((2, 4, 2), np.uint64), HERE)


def test_labels_may_come_in_pieces() -> None:
    circuit = relu_circuit(Ring(8), 0)
    labels, bits = draw(circuit, 5, fixed(2))
    whole, delta = garble_decoded(circuit, Delta(fixed(1)), labels, HERE), Delta(fixed(1))
    parts = garble_decoded(circuit, delta, [labels[:8], labels[8:9], labels[9:]], HERE)
    active = pick(labels, delta.words, bits)
    expected = evaluate_decoded(circuit, whole, active, HERE)
    np.testing.assert_array_equal(evaluate_decoded(circuit, parts, [active[:1], active[1:]], HERE), expected)
    np.testing.assert_array_equal(expected, evaluate_plain(circuit, bits))
