"""What an inference under CKKS will take."""

import json
from pathlib import Path

import pytest
from support.ckks import INPUT_SHAPE, residual, single

from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.price import OPERATIONS, price_circuit, reference_operations
from deepreshape.engines.ckks.scheme import Scheme

ROWS = Path(__file__).parents[3] / "benchmarks" / "results" / "ckks-operations.jsonl"


def test_bytes_are_those_of_the_wire_and_seconds_follow_the_counts():
    circuit = compiled(residual(), INPUT_SHAPE)
    price, scheme = price_circuit(circuit), Scheme(circuit.parameters)
    assert price.keys == len(circuit.public.key_names) * wire.key_bytes(scheme)
    assert (price.up, price.down) == (wire.fresh_bytes(scheme), wire.answer_bytes(scheme))
    only = dict.fromkeys(OPERATIONS, (0.0, 0.0))
    one = price_circuit(circuit, only | {"rotate": (1.0, 0.0)})
    work = circuit.work()["rotate"]
    units = sum(count * (level + 1) * (level + 2) for level, count in work)
    assert one.seconds == one.seconds_kept == pytest.approx(8192 * 13 * units / 1e9)
    assert price_circuit(circuit, only | {"encode": (1.0, 0.0)}).seconds_kept == 0
    assert price_circuit(compiled(single(), INPUT_SHAPE)).seconds < price.seconds


def test_the_model_fits_the_times_that_it_came_from():
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    assert {row["operation"] for row in rows} == set(OPERATIONS) == set(reference_operations())
    for row in rows:
        assert row["modelled"] == pytest.approx(row["seconds"], rel=0.35), row
