"""Circuits in the clear, what garbled ones are held against, and garbled ones whose outputs are decoded."""

from __future__ import annotations

import numpy as np

from deepreshape.private.arith.ring import Bits, Words, from_bits, to_bits
from deepreshape.private.crypto.circuit import Circuit
from deepreshape.private.crypto.gc.halfgates import Labels, evaluate, garble
from deepreshape.private.crypto.labels import Context, Delta, permute_bits


def evaluate_plain(circuit: Circuit, inputs: Bits) -> Bits:
    """The circuit, gate by gate.

    Args:
        circuit: what to evaluate.
        inputs: zeros and ones, uint8 of shape (circuit.width, n).

    Returns:
        The outputs, uint8 of shape (len(circuit.outputs), n).
    """
    if inputs.shape[0] != circuit.width:
        raise ValueError(f"the circuit has {circuit.width} input wires, got {inputs.shape[0]} rows")
    wires = list(inputs)
    for gate in circuit.gates:
        a, b = wires[gate.a], wires[gate.b]
        wires.append(a & b if gate.op == "and" else a ^ b if gate.op == "xor" else a ^ 1)
    return np.stack([wires[wire] for wire in circuit.outputs])


def run_words(circuit: Circuit, *words: tuple[Words, int]) -> Words:
    """The circuit's output word, from its input words (n,) and their widths."""
    return from_bits(evaluate_plain(circuit, np.concatenate([to_bits(word, width) for word, width in words])))


def garble_decoded(circuit: Circuit, delta: Delta, zero_labels: Labels, context: Context) -> tuple[Words, Bits]:
    """Tables, and the permute bits of the output labels of zero, (outputs, n)."""
    tables, outputs = garble(circuit, delta, zero_labels, context)
    return tables, permute_bits(outputs)


def evaluate_decoded(circuit: Circuit, garbled: tuple[Words, Bits], labels: Labels, context: Context) -> Bits:
    """The values of the outputs, (outputs, n), from what :func:`garble_decoded` gives."""
    tables, decode = garbled
    return permute_bits(evaluate(circuit, tables, labels, context)) ^ decode
