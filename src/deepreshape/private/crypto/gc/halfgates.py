"""Half-gates garbling of one circuit over many instances at once.

Model: semi-honest parties. Construction: two ciphertexts an AND gate (half-gates: Zahur, Rosulek and Evans, EUROCRYPT
2015), XOR and NOT for nothing (free-XOR: Kolesnikov and Schneider, ICALP 2008), the active row picked by the permute
bit (point-and-permute: Beaver, Micali and Rogaway, STOC 1990). Assumption: the hash of ``labels.py`` is circular
correlation robust, under keys that no two gates or sides share. Garbled circuits go out before the inputs are chosen,
as in DELPHI; that this is safe for inputs which depend on them rests on the ideal cipher, not on that robustness alone.

Here is what may be garbled and evaluated, and how often; the gates themselves are worked through by the ``backend``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepreshape.private.arith.ring import Words
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.circuit import Circuit
from deepreshape.private.crypto.labels import Context, Delta

Labels = Words | Sequence[Words]

TABLE_BYTES = 32
"""Two ciphertexts of 16 bytes an AND gate."""


def table_shape(circuit: Circuit, count: int) -> tuple[int, int, int, int]:
    """Shape of the tables of ``count`` instances."""
    return circuit.and_gates, 2, count, 2


def garble(
    circuit: Circuit, delta: Delta, zero_labels: Labels, context: Context, out: Words | None = None
) -> tuple[Words, Words]:
    """Garble as many instances as there are labels.

    Args:
        circuit: what to garble.
        delta: the session's; it claims ``context``.
        zero_labels: labels of zero for every input wire, uint64 of shape (circuit.width, n, 2) or pieces that follow
            one another, uniform but for those that the evaluator derives too.
        context: where this is; both parties know it.
        out: uint64 to write the tables into, at least as many as they have; for a garbler of many batches that is done
            with one before it garbles the next, and need not ask for fresh memory.

    Returns:
        The tables, to be evaluated once: two evaluations would reveal Delta. The labels of zero of every output, uint64
        of shape (outputs, n, 2); their permute bits decode the outputs.

    Raises:
        RuntimeError: if the context was used under this Delta.
    """
    wires = _wires(circuit, zero_labels)
    delta.claim(context)
    shape = table_shape(circuit, len(wires[0]))
    size = int(np.prod(shape))
    tables = (np.empty(size, np.uint64) if out is None else out[:size]).reshape(shape)
    keys = context.keys(2 * circuit.and_gates)
    labels = engine().garble(circuit, delta.words, wires, keys, tables)
    for label, (_, inverted) in zip(labels, circuit.schedule.outputs, strict=True):
        if inverted:
            label ^= delta.words
    return tables, labels


def evaluate(circuit: Circuit, tables: Words, labels: Labels, context: Context) -> Words:
    """Evaluate a garbled batch on one label for every input wire.

    Args:
        circuit: what was garbled.
        tables: the peer's, of :func:`table_shape`. The caller sees to it that they are evaluated once.
        labels: uint64 of shape (circuit.width, n, 2), or pieces that follow one another.
        context: where this is, as when it was garbled.

    Returns:
        The active label of every output, uint64 of shape (outputs, n, 2).
    """
    wires = _wires(circuit, labels)
    wanted = table_shape(circuit, len(wires[0]))
    if tables.shape != wanted:
        raise ValueError(f"tables have shape {tables.shape}; this circuit and these labels want {wanted}")
    return engine().evaluate(circuit, tables, wires, context.keys(2 * circuit.and_gates))


def _wires(circuit: Circuit, labels: Labels) -> list[Words]:
    """The labels of each wire, (n, 2), where they lie."""
    pieces = [labels] if isinstance(labels, np.ndarray) else labels
    wires = [np.ascontiguousarray(wire, np.uint64) for piece in pieces for wire in piece]
    if len(wires) != circuit.width or {wire.shape for wire in wires} != {(wires[0].size // 2, 2)}:
        shapes = ", ".join(str(piece.shape) for piece in pieces)
        raise ValueError(f"labels have shape {shapes}; this circuit wants ({circuit.width}, n, 2)")
    return wires
