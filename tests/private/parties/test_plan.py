"""The order of the offline phase: who waits for what, and how much of it lies in memory meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from support.programs import check_declared, random_inputs, run_both

from deepreshape.private.arith.ring import Ring
from deepreshape.private.parties.client import check_input
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.ops import Add, Conv2d, Op, Raise, Relu, Truncate, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols import steps
from deepreshape.private.protocols.choose import Protocols


def residual(blocks: int) -> Program:
    """Blocks of two convolutions with ReLUs and an add around them, and a truncation behind the last."""
    rng = np.random.default_rng(1)
    ops: list[Op] = []
    last, names = "input", []
    for block in range(blocks):
        first, second = f"{block}.one", f"{block}.two"
        ops += [
            Conv2d(first, (last,), 1, 1, 2, 2),
            Relu(f"{block}.inner", (first,), 2),
            Conv2d(second, (f"{block}.inner",), 1, 1, 2, 2),
            Raise(f"{block}.raise", (last,), 2),
            Add(f"{block}.add", (second, f"{block}.raise")),
            Relu(f"{block}.outer", (f"{block}.add",), 2),
        ]
        names += [first, second]
        last = f"{block}.outer"
    ops += [Conv2d("end", (last,), 2, 1, 2, 2), Truncate("cut", ("end",), 2)]
    draw = {name: Weights(rng.integers(-4, 5, (1, 1, 1, 1)), rng.integers(-9, 10, 1)) for name in names}
    draw["end"] = Weights(rng.integers(-4, 5, (2, 1, 1, 1)), rng.integers(-9, 10, 2))
    return Program(Ring(30), (1, 2, 2), 4, 7, tuple(ops), draw)


def flights_of(program: Program) -> list[list[str]]:
    """The ReLUs that are prepared side by side."""
    stage = Plan(program.public()).steps.offline[-1]
    return [[step.name for step in flight] for flight in stage.flights]


def names(groups: list[list[Conv2d]]) -> list[list[str]]:
    return [[op.name for op in group] for group in groups]


@pytest.mark.parametrize("garbler", ["server", "client"])
def test_waits_do_not_grow_with_depth(garbler: Role) -> None:
    waits = set()
    for blocks in (1, 4):
        program = residual(blocks)
        report = Plan(program.public(), ReluConfig(garbler=garbler, batch=7)).declared()
        waits.add(sum(row.rounds for row in report.rows if row.phase != "online"))
        x = random_inputs(program, 1, blocks)
        run = run_both(program, x[0], garbler)
        assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols())[0])
        check_declared(program, garbler, (run.client, run.server), run.stored)
    # the homomorphic layers, the base transfers of truncation and those of the circuits, and the circuits
    assert waits == {4}


def test_only_what_has_no_mask_between_waits() -> None:
    half = np.array([True, False, False, True]).reshape(1, 2, 2)
    convolutions = [Conv2d(name, (source,), 1, 1, 2, 0) for name, source in [("a", "input"), ("b", "a"), ("d", "c")]]
    chain: tuple[Op, ...] = (*convolutions[:2], Relu("c", ("b",), 0, half), convolutions[2])
    assert names(Plan(Program(Ring(20), (1, 2, 2), 4, 7, chain)).levels) == [["a"], ["b"], ["d"]]  # c passes b on
    chain = (*convolutions[:2], Relu("c", ("b",), 2, half), convolutions[2])
    assert names(Plan(Program(Ring(20), (1, 2, 2), 4, 7, chain)).levels) == [["a", "d"], ["b"]]
    assert len(Plan(residual(3).public()).levels) == 1


@pytest.mark.parametrize("garbler", ["server", "client"])
def test_labels_that_wait_in_memory_are_bounded(garbler: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    program = residual(2)
    assert len(flights_of(program)) == 1
    each = 16 * 30 * 4
    for room, expected in ((each - 1, 4), (each, 4), (2 * each, 2), (3 * each, 2)):
        monkeypatch.setattr(steps, "FLIGHT_BYTES", room)
        flights = flights_of(program)
        assert len(flights) == expected
        assert [name for flight in flights for name in flight] == [
            op.name for op in program.ops if isinstance(op, Relu)
        ]
        assert all(len(flight) * each <= max(room, each) for flight in flights)
    monkeypatch.setattr(steps, "FLIGHT_BYTES", 2 * each)
    x = random_inputs(program, 1, 5)
    run = run_both(program, x[0], garbler)
    assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols())[0])
    check_declared(program, garbler, (run.client, run.server), run.stored)


def test_an_input_beyond_what_the_program_takes_is_named_with_its_size():
    plan = Plan(residual(1).public())
    x = np.full((1, 2, 2), -7)
    check_input(plan, x)
    with pytest.raises(
        ValueError, match=r"^the input reaches 1\.25; this program takes absolute values up to 0\.4375$"
    ):
        check_input(plan, x - 13)
    with pytest.raises(ValueError, match=r"^the input is int64 \(1, 2\); it must be int64 \(1, 2, 2\)$"):
        check_input(plan, x[:, 0])
