"""What the server does: a circuit on a client's ciphertext."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.circuit import LeveledCircuit, LinearStep, SquareStep, Term
from deepreshape.engines.ckks.packing import DenseReduction, Diagonals
from deepreshape.engines.ckks.scheme import Cipher, CkksEvaluator
from deepreshape.private.program.ops import INPUT

__all__ = ["EncodedCircuit"]

Real = NDArray[np.float64]


class EncodedCircuit:
    """A circuit with its encoded plaintexts.

    Args:
        circuit: of a network.
        keep: plaintexts from the first evaluation on; they are encoded anew each time otherwise.
    """

    def __init__(self, circuit: LeveledCircuit, *, keep: bool = False) -> None:
        self.circuit = circuit
        self._keep = keep
        self._plain: dict[tuple[int, int], Any] = {}

    @property
    def kept_bytes(self) -> int:
        """What all encoded plaintexts take in memory."""
        degree = self.circuit.parameters.degree
        return sum(8 * degree * (level + 1) * count for level, count in self.circuit.work()["multiply"])

    def evaluate(self, evaluator: CkksEvaluator, x: Cipher, progress: Callable[[str], object] | None = None) -> Cipher:
        """The answer's ciphertext, at level 0. ``progress`` is called with the name of each step that is done."""
        values = {INPUT: x}
        for step in self.circuit.steps:
            run = self._linear if isinstance(step, LinearStep) else self._square
            values[step.name] = run(evaluator, step, values)  # pyright: ignore[reportArgumentType]
            if progress:
                progress(step.name)
        return values[self.circuit.steps[-1].name]

    def _square(self, evaluator: CkksEvaluator, step: SquareStep, values: dict[str, Cipher]) -> Cipher:
        squared = evaluator.rescale(evaluator.square(values[step.source]), evaluator.scheme.scale)
        evaluator.add_vector(squared, self._spread(step.constant))
        return squared

    def _linear(self, evaluator: CkksEvaluator, step: LinearStep, values: dict[str, Cipher]) -> Cipher:
        scheme = evaluator.scheme
        prime = scheme.primes[step.level]
        # so that a square that follows ends, rescaled, at exactly the scale of values at rest
        after = math.sqrt(scheme.scale * scheme.primes[step.level - 1]) if step.squared else scheme.scale
        products = (
            self._product(evaluator, term, evaluator.lower(values[term.source], step.level), after * prime)
            for term in step.terms
        )
        result = evaluator.rescale(_total(evaluator, products), after)
        evaluator.add_vector(result, self._spread(step.bias))
        return result

    def _product(self, evaluator: CkksEvaluator, term: Term, x: Cipher, scale: float) -> Cipher:
        match term.product:
            case Diagonals() as matrix:
                return self._diagonals(evaluator, matrix, x, scale)
            case DenseReduction() as matrix:
                return self._reduction(evaluator, matrix, x, scale)
            case vector:
                return self._times(evaluator, x, vector, scale)

    def _diagonals(self, evaluator: CkksEvaluator, matrix: Diagonals, x: Cipher, scale: float) -> Cipher:
        babies: dict[tuple[int, int], Cipher] = {}
        row = x
        for down in range(matrix.baby_rows):
            row = self._rotate(evaluator, row, matrix.row) if down else row
            babies[down, 0] = row
            for column in range(1, matrix.columns[1] + 1):
                babies[down, column] = self._rotate(evaluator, babies[down, column - 1], 1)
            for column in range(-1, matrix.columns[0] - 1, -1):
                babies[down, column] = self._rotate(evaluator, babies[down, column + 1], matrix.slots - 1)
        total: Cipher | None = None
        last = 0
        for giant, terms in matrix.giants:
            part = _total(evaluator, (self._times(evaluator, babies[baby], vector, scale) for baby, vector in terms))
            if total is not None:
                evaluator.add(part, self._rotate(evaluator, total, last - giant))
            total, last = part, giant
        if total is None:
            raise ValueError("a layer whose weights are all zero")
        return self._rotate(evaluator, total, last) if last else total

    def _reduction(self, evaluator: CkksEvaluator, matrix: DenseReduction, x: Cipher, scale: float) -> Cipher:
        total = self._times(evaluator, x, matrix.vectors[0], scale)
        for vector in matrix.vectors[1:]:
            x = self._rotate(evaluator, x, 1)
            evaluator.add(total, self._times(evaluator, x, vector, scale))
        for step in matrix.halvings:
            evaluator.add(total, self._rotate(evaluator, total, step))
        return total

    def _rotate(self, evaluator: CkksEvaluator, x: Cipher, step: int) -> Cipher:
        return evaluator.rotate(x, step * self.circuit.batch)

    def _spread(self, vector: Real) -> Real:
        """Each value for all images."""
        return np.repeat(vector, self.circuit.batch)

    def _times(self, evaluator: CkksEvaluator, x: Cipher, vector: Real, scale: float) -> Cipher:
        key = id(vector), x.level
        plain = self._plain.get(key)
        if plain is None:
            plain = evaluator.scheme.encode(self._spread(vector), x.level, scale / x.scale)
            if self._keep:
                self._plain[key] = plain
        return evaluator.multiply(x, plain, scale)


def _total(evaluator: CkksEvaluator, products: Iterable[Cipher]) -> Cipher:
    """The sum of at least one product, in the first one's place."""
    rest = iter(products)
    total = next(rest)
    for product in rest:
        evaluator.add(total, product)
    return total
