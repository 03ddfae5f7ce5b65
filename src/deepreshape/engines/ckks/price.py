"""What an inference under CKKS will take, before it runs: counts from the circuit, seconds from a fitted model.

An operation on polynomials of degree N with k primes costs, in units of N log2 N: a rotation, the relinearisation of a
square and a key c2 k (k + 1) + c1 k, since key switching decomposes into k digits of k + 1 primes; an encoded vector or
a product c1 k + c0. :func:`measure` times the library and fits the constants; :data:`REFERENCE` is what
``benchmarks/ckks.py`` fitted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any

import numpy as np

from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.circuit import LeveledCircuit
from deepreshape.engines.ckks.exchange import upload_bytes
from deepreshape.engines.ckks.parameters import CkksParameters
from deepreshape.engines.ckks.scheme import SQUARE, CkksEvaluator, Holder, Scheme

__all__ = ["OPERATIONS", "CkksPrice", "measure_operations", "price_circuit", "reference_operations"]

OPERATIONS = ("rotate", "square", "multiply", "encode", "key")
SAMPLES = ((8192, 3, 30, 60), (8192, 1, 40, 60), (16384, 11, 31, 50), (16384, 5, 40, 60), (32768, 15, 49, 60))
"""Degree, levels, bits and special bits at which the library is timed."""
Constants = Mapping[str, tuple[float, float]]
"""By operation, its two constants, in nanoseconds for each unit of N log2 N."""


@dataclass(frozen=True)
class CkksPrice:
    """What an inference takes.

    Attributes:
        seconds: of one core at the server, for one ciphertext, weights encoded anew.
        seconds_kept: the same with the encoded weights kept from the one before.
        setup_seconds: of one core, of both, to make, send and read the evaluation keys once.
        keys, up, down: bytes on the wire.
        memory: bytes that the keys take at the server while it computes.
        kept_memory: and the encoded weights, where they are kept.
    """

    seconds: float
    seconds_kept: float
    setup_seconds: float
    keys: int
    up: int
    down: int
    memory: int
    kept_memory: int


@cache
def reference_operations() -> Constants:
    """The constants that come with the package."""
    text = files("deepreshape.engines.ckks").joinpath("reference.json").read_text()
    return {name: (float(pair[0]), float(pair[1])) for name, pair in json.loads(text)["operations"].items()}


def price_circuit(circuit: LeveledCircuit, operations: Constants | None = None) -> CkksPrice:
    """Counts of a circuit times the model's seconds."""
    constants, degree = operations or reference_operations(), circuit.parameters.degree

    def took(operation: str, level: int) -> float:
        return _modelled(constants[operation], operation, degree, level + 1)

    work = circuit.work()
    rotations, squares, products, encodings = (
        sum(count * took(operation, level) for level, count in work[counted])
        for operation, counted in (
            ("rotate", "rotate"),
            ("square", "square"),
            ("multiply", "multiply"),
            ("encode", "multiply"),
        )
    )
    public, scheme = circuit.public, Scheme(circuit.parameters)
    names, primes = len(public.key_names), len(scheme.primes)
    return CkksPrice(
        seconds=rotations + squares + products + encodings,
        seconds_kept=rotations + squares + products,
        setup_seconds=names * took("key", circuit.parameters.levels),
        keys=upload_bytes(public),
        up=wire.fresh_bytes(scheme),
        down=wire.answer_bytes(scheme),
        memory=names * 16 * degree * primes * (primes + 1),
        kept_memory=sum(8 * degree * (level + 1) * count for level, count in work["multiply"]),
    )


def measure_operations(tell: Callable[[str], object] | None = None) -> tuple[Constants, list[dict[str, Any]]]:
    """The constants of this machine, and the times that they were fitted to."""
    rows: list[dict[str, Any]] = []
    for degree, levels, bits, special in SAMPLES:
        if tell:
            tell(f"N = {degree:,}, {levels} levels")
        rows += _timed(CkksParameters(degree, bits, levels, special, 0))
    constants: dict[str, tuple[float, float]] = {}
    for operation in OPERATIONS:
        timings = [row for row in rows if row["operation"] == operation]
        # weighed by the time itself, so that all sizes count alike
        shares = np.array([_terms(operation, row["primes"]) for row in timings])
        scales = np.array([row["degree"] * log2(row["degree"]) / (1e9 * row["seconds"]) for row in timings])
        (first, second), *_ = np.linalg.lstsq(shares * scales[:, None], np.ones(len(timings)), rcond=None)
        constants[operation] = (float(first), float(second))
    for row in rows:
        row["modelled"] = _modelled(constants[row["operation"]], row["operation"], row["degree"], row["primes"])
    return constants, rows


def _terms(operation: str, primes: int) -> tuple[float, float]:
    return (primes, 1.0) if operation in ("multiply", "encode") else (primes * (primes + 1), primes)


def _modelled(constants: tuple[float, float], operation: str, degree: int, primes: int) -> float:
    terms = _terms(operation, primes)
    return max(0.0, degree * log2(degree) * (constants[0] * terms[0] + constants[1] * terms[1]) / 1e9)


def _timed(parameters: CkksParameters) -> list[dict[str, Any]]:
    """Seconds of each operation at the top, the middle and near the bottom."""
    scheme = Scheme(parameters)
    holder, evaluator = Holder(scheme), CkksEvaluator(scheme)
    values = np.random.default_rng(0).normal(size=parameters.slots)
    timed_keys = {
        name: _least(lambda name=name: wire.key(scheme, name, holder.evaluation_key(name)), 2)
        for name in (SQUARE, "rotate-1")
    }
    key, data = timed_keys["rotate-1"]
    read, _ = _least(lambda: wire.read_key(scheme, "rotate-1", data), 2)
    rows = [_row("key", parameters, parameters.levels, key + read)]
    for name, (_, saved) in timed_keys.items():
        evaluator.add_key(name, wire.read_key(scheme, name, saved))
    top = wire.read_fresh(scheme, wire.fresh(scheme, holder.encrypt(values)))
    for level in sorted({parameters.levels, (parameters.levels + 1) // 2, 1}):
        x = evaluator.lower(top, level)
        encode, plain = _least(lambda x=x: scheme.encode(values, x.level, scheme.scale), 3)

        def product(x: Any = x, plain: Any = plain) -> None:
            evaluator.add(evaluator.multiply(x, plain, x.scale), x)

        seconds = {
            "encode": encode,
            "multiply": _least(product, 5)[0],
            "rotate": _least(lambda x=x: evaluator.rotate(x, 1), 3)[0],
            "square": _least(lambda x=x: evaluator.square(x), 3)[0],
        }
        rows += [_row(operation, parameters, level, took) for operation, took in seconds.items()]
    return rows


def _row(operation: str, parameters: CkksParameters, level: int, seconds: float) -> dict[str, Any]:
    return {"operation": operation, "degree": parameters.degree, "primes": level + 1, "seconds": seconds}


def _least(work: Callable[[], Any], times: int) -> tuple[float, Any]:
    """The least CPU seconds, and the last result."""
    best, result = float("inf"), None
    for _ in range(times):
        since = time.process_time()
        result = work()
        best = min(best, time.process_time() - since)
    return best, result
