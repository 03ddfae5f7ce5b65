"""Windows of sign tests: exact where only repeated bits go, and the search keeps its promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import random_inputs, random_program

from deepreshape.private.arith.drelu import Window
from deepreshape.private.arith.ring import DELPHI_PRIME, Field, Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import interpret as plain
from deepreshape.private.program import sign_bits
from deepreshape.private.program.encoding import digest, from_bytes, to_bytes
from deepreshape.private.program.ops import Conv2d, Flatten, Linear, Relu, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.program.sign_bits import calibrate, program_accuracy, windowed
from deepreshape.private.protocols.choose import Protocols, relu_protocol

CALIBRATED = ReluConfig("gc-stochastic", window=True)


def network(modulus: Ring | Field) -> Program:
    """Two convolutions with ReLUs and a classifier of three classes."""
    rng = np.random.default_rng(1)
    weights = {
        "one": Weights(rng.integers(-60, 61, (4, 1, 3, 3)), rng.integers(-500, 500, 4)),
        "two": Weights(rng.integers(-60, 61, (4, 4, 3, 3)), rng.integers(-500, 500, 4)),
        "head": Weights(rng.integers(-60, 61, (3, 64)), rng.integers(-500, 500, 3)),
    }
    ops = (
        Conv2d("one", ("input",), 4, 3, 6, 6, padding=1),
        Relu("one.relu", ("one",), 6),
        Conv2d("two", ("one.relu",), 4, 3, 6, 6, padding=1),
        Relu("two.relu", ("two",), 6),
        Flatten("flat", ("two.relu",)),
        Linear("head", ("flat",), 3, 6, 6),
    )
    loose = Program(modulus, (1, 4, 4), 8, 255, ops, weights)
    bounds = loose.bounds()
    tight = {"one.relu": bounds["one"].bit_length() + 1, "two.relu": bounds["two"].bit_length() + 1}
    return replace(
        loose, ops=tuple(replace(op, high=tight.get(op.name, 0)) if isinstance(op, Relu) else op for op in ops)
    )


def data(program: Program, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, with the exact program's own classes as labels."""
    inputs = random_inputs(program, count, 5)
    return inputs, plain.run(program, inputs).argmax(1)


def windows(program: Program) -> list[tuple[int, int]]:
    return [(op.low, op.high) for op in program.ops if isinstance(op, Relu)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(limit=st.integers(1, 2**40), low=st.integers(0, 45))
def test_a_window_always_has_room_for_its_limit(limit: int, low: int) -> None:
    relu = Relu("r", ("input",), 0, None, 0, limit.bit_length() + 1)
    program = Program(Ring(limit.bit_length() + 2), (1,), 8, limit, (relu,))
    ((low, high),) = windows(windowed(program, {"r": low}))
    window = Window(Ring(limit.bit_length() + 2), low, high)
    assert window.max_input >= limit
    protocol = relu_protocol(CALIBRATED)
    layer = protocol.layer(Ring(63), replace(relu, low=low, high=high), 1)
    program.check({"r": protocol.max_input(layer)})


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_dropping_repeated_high_bits_is_exact(seed: int) -> None:
    program = random_program(seed)
    bounds = program.bounds()
    tight = windowed(
        replace(
            program,
            ops=tuple(
                replace(op, high=bounds[op.inputs[0]].bit_length() + 2) if isinstance(op, Relu) else op
                for op in program.ops
            ),
        ),
        {op.name: 0 for op in program.ops if isinstance(op, Relu)},
    )
    inputs = random_inputs(program, 3, seed)
    shares = {name: program.modulus.random(value.shape, Randomness()) for name, value in program.values.items()}
    whole = plain.run(program, inputs, client=shares, protocols=Protocols(ReluConfig("gc-sign")))
    for protocol in ("gc-sign", "gc-stochastic"):
        narrow = ReluConfig(protocol, window=True)
        assert np.array_equal(plain.run(tight, inputs, client=shares, protocols=Protocols(narrow)), whole)


@pytest.mark.parametrize("modulus", [Ring(30), Field(DELPHI_PRIME)], ids=str)
@pytest.mark.parametrize("max_loss", [0.0, 4.0, 100.0])
def test_the_search_loses_no_more_than_it_may(modulus: Ring | Field, max_loss: float) -> None:
    program = network(modulus)
    inputs, labels = data(program)
    calibration = calibrate(program, inputs, labels, protocols=Protocols(CALIBRATED), max_loss=max_loss)
    assert calibration.exact == 100
    assert calibration.exact - calibration.reached <= max_loss
    assert program_accuracy(calibration.program, inputs, labels, protocols=Protocols(CALIBRATED)) == calibration.reached
    lows = [low for low, _ in windows(calibration.program)]
    assert min(lows) > 0
    if max_loss == 100 and isinstance(modulus, Ring):
        assert all(high - low <= 3 for low, high in windows(calibration.program))


def test_more_loss_allows_fewer_bytes_and_a_search_can_be_repeated() -> None:
    program = network(Ring(30))
    inputs, labels = data(program)
    programs = [
        calibrate(program, inputs, labels, protocols=Protocols(CALIBRATED), max_loss=loss).program
        for loss in (0.0, 10.0, 10.0)
    ]
    assert digest(programs[1]) == digest(programs[2])
    plans = [Plan(one.public(), relu=relu) for one, relu in zip(programs, (CALIBRATED,) * 2, strict=False)]
    sizes = [plan.declared().bytes for plan in plans]
    assert sizes[1] < sizes[0]


def test_the_loss_is_that_of_windows_and_not_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nothing is left out of is judged as the rest is: with the same shares, which round."""
    rounds: list[tuple[object, bytes]] = []

    def note(program: Program, *given: np.ndarray, protocols: Protocols | None = None, seed: bytes = b"") -> float:
        rounds.append((protocols, seed))
        lows = [low for low, _ in windows(program)]
        return 80.0 if any(lows) else 81.0

    monkeypatch.setattr(sign_bits, "program_accuracy", note)
    program, protocols = network(Ring(30)), Protocols(CALIBRATED)
    result = calibrate(program, *data(program), protocols=protocols, max_loss=1)
    assert set(rounds) == {(protocols, bytes(32))}
    assert (result.exact, result.reached) == (81.0, 80.0)
    assert min(low for low, _ in windows(result.program)) > 0


def test_the_exact_signs_lose_nothing() -> None:
    program = network(Ring(30))
    inputs, labels = data(program)
    assert program_accuracy(program, inputs, labels) == 100


def test_data_that_does_not_fit_is_refused() -> None:
    program = network(Ring(30))
    inputs, labels = data(program, 3)
    with pytest.raises(ValueError, match="3 inputs with 2 labels and 1 points"):
        calibrate(program, inputs, labels[:2], protocols=Protocols(CALIBRATED), max_loss=1)
    with pytest.raises(ValueError, match="-1 points"):
        calibrate(program, inputs, labels, protocols=Protocols(CALIBRATED), max_loss=-1)


def test_windows_survive_bytes_and_bad_ones_are_refused() -> None:
    program = windowed(network(Ring(30)), {"one.relu": 5, "two.relu": 7})
    assert windows(from_bytes(to_bytes(program))) == windows(program)
    assert digest(windowed(program, {"one.relu": 4, "two.relu": 7})) != digest(program)
    relu = program.ops[1]
    assert isinstance(relu, Relu)
    for low, high, message in ((3, 4, "it needs two bits"), (0, 31, "bit 30 is none of"), (5, 0, "it needs two bits")):
        with pytest.raises(ValueError, match=f"^one.relu: .*{message}"):
            replace(program, ops=(program.ops[0], replace(relu, low=low, high=high)), weights={}, limits={})
