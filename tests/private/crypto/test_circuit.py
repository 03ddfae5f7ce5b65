"""Adders, comparisons and schedules in the clear, against integers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.circuits import evaluate_plain, run_words

from deepreshape.private.arith.ring import PRIME_32, Bits, Field, Ring, to_bits
from deepreshape.private.crypto.circuit import Builder, Circuit
from deepreshape.private.crypto.gc.relu_circuits import relu_circuit


@pytest.mark.parametrize("widths", [(1, 1), (3, 3), (4, 2), (4, 1)])
@pytest.mark.parametrize("carry_out", [True, False])
def test_adder(widths: tuple[int, int], carry_out: bool) -> None:
    build = Builder()
    words = [build.input("garbler", "a", widths[0]), build.input("evaluator", "b", widths[1])]
    circuit = build.build(build.add(words[0], words[1], carry_out=carry_out))
    a, b = (axis.reshape(-1) for axis in np.meshgrid(*(np.arange(1 << w, dtype=np.uint64) for w in widths)))
    total = (a + b) & np.uint64((1 << (widths[0] + carry_out)) - 1)
    np.testing.assert_array_equal(run_words(circuit, (a, widths[0]), (b, widths[1])), total)
    assert circuit.and_gates == widths[0] - (not carry_out)


@pytest.mark.parametrize("constant", range(1, 16))
def test_every_bit_of_a_comparison(constant: int) -> None:
    build = Builder()
    whole, below = build.at_least(build.input("garbler", "a", 4), constant)
    wires = [*below, whole]
    circuit = build.build([wire for wire in wires if wire is not None])
    a = np.arange(16, dtype=np.uint64)
    rows = iter(evaluate_plain(circuit, to_bits(a, 4)))
    for low, wire in enumerate(wires):
        expected = a % (1 << low) >= constant % (1 << low)
        np.testing.assert_array_equal(next(rows) if wire is not None else np.ones(16), expected)


@pytest.mark.parametrize("constant", [0, 16])
def test_a_comparison_that_is_always_true_is_refused(constant: int) -> None:
    build = Builder()
    with pytest.raises(ValueError, match=f"at least {constant}"):
        build.at_least(build.input("garbler", "a", 4), constant)


@pytest.mark.parametrize("modulus", range(2, 17))
def test_modular_adder(modulus: int) -> None:
    build = Builder()
    bits = (modulus - 1).bit_length()
    word, other = build.input("garbler", "a", bits), build.input("evaluator", "b", bits)
    circuit = build.build(build.add_mod(word, other, modulus))
    a, b = (axis.reshape(-1) for axis in np.meshgrid(*2 * [np.arange(modulus, dtype=np.uint64)]))
    np.testing.assert_array_equal(run_words(circuit, (a, bits), (b, bits)), (a + b) % np.uint64(modulus))


def in_slots(circuit: Circuit, inputs: Bits) -> Bits:
    """The schedule in the clear, as an engine would walk it."""
    schedule = circuit.schedule
    rows = np.zeros((schedule.slots, inputs.shape[1]), np.uint8)
    rows[: circuit.width] = inputs
    for step in schedule.steps:
        a, b = rows[step.a] ^ step.invert_a, rows[step.b] ^ step.invert_b
        rows[step.out] = a & b if step.op == "and" else a ^ b
    return np.stack([rows[slot] ^ inverted for slot, inverted in schedule.outputs])


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    build = Builder()
    wires = build.input("garbler", "a", draw(st.integers(1, 3))) + build.input(
        "evaluator", "b", draw(st.integers(1, 3))
    )
    for _ in range(draw(st.integers(0, 25))):
        a, b = draw(st.sampled_from(wires)), draw(st.sampled_from(wires))
        op = draw(st.sampled_from(["and", "xor", "not", "or"]))
        wires.append(build.not_(a) if op == "not" else {"and": build.and_, "xor": build.xor, "or": build.or_}[op](a, b))
    return build.build(draw(st.lists(st.sampled_from(wires), min_size=1, max_size=6)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(circuit=circuits())
def test_schedule_computes_what_the_circuit_does(circuit: Circuit) -> None:
    inputs = to_bits(np.arange(1 << circuit.width, dtype=np.uint64), circuit.width)
    np.testing.assert_array_equal(in_slots(circuit, inputs), evaluate_plain(circuit, inputs))
    every = replace(circuit, outputs=tuple(range(circuit.width + len(circuit.gates))))
    np.testing.assert_array_equal(in_slots(every, inputs), evaluate_plain(every, inputs))


def test_slots_are_taken_over_and_not_is_gone() -> None:
    circuit = relu_circuit(Field(PRIME_32), 0)
    assert circuit.schedule.slots < 110 < circuit.width + len(circuit.gates)
    assert {step.op for step in circuit.schedule.steps} == {"and", "xor"}


def test_misuse_is_refused() -> None:
    build = Builder()
    build.not_(build.input("garbler", "a", 1)[0])
    with pytest.raises(ValueError, match="declare all inputs first"):
        build.input("evaluator", "b", 1)
    with pytest.raises(ValueError, match="24 input wires, got 3 rows"):
        evaluate_plain(relu_circuit(Ring(8), 0), np.zeros((3, 1), np.uint8))
