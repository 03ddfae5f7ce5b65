"""Protocols that differ layer by layer in one run: it equals the plain program, sends what is declared, binds both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.programs import TWO_RELUS, check_declared, random_inputs, random_program, run_both, settled, with_signs

from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.ot.base import send_base
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.parties.plan import WORD, Plan
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.ops import Flatten, Linear, Relu, Sign, Square, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import Assignment, ReluConfig, Role, read_relus
from deepreshape.private.protocols.choose import Protocols
from deepreshape.private.protocols.square import Squares
from deepreshape.private.protocols.transfers.relu_ot import ReluOt
from deepreshape.private.transport.channel import Channel

WORDS = ("gc-full", "gc-sign", "ot:chain", "ot:tree", "gc-stochastic:drop=2", "ot:drop=2,neg-pass")


@pytest.mark.parametrize("garbler", ["server", "client"])
@pytest.mark.parametrize("prime", [False, True])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_a_mixed_run_equals_plain_with_the_same_shares(
    garbler: Role, prime: bool, seed: int, data: st.DataObject
) -> None:
    program = random_program(seed, prime=prime, linear=3)
    layers = len(program.nonlinear)
    assume(layers > 1)
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=layers, max_size=layers))
    assume(len(set(words)) > 1)
    relu = settled(Assignment(tuple(map(ReluConfig.parse, words))), garbler, 7)
    x = random_inputs(program, 1, seed)
    run = run_both(program, x[0], garbler, relu=relu)
    expected = plain.run(program, x, client=run.client_shares, protocols=Protocols(relu))
    assert np.array_equal(run.output, expected[0])
    check_declared(program, garbler, (run.client, run.server), run.stored, relu)


def several() -> Program:
    """Signs, squares with ReLUs among them, squares alone, and ReLUs."""
    rng = np.random.default_rng(8)
    mask = np.array([True, False, True, False])
    ops = (
        Flatten("flat", ("input",)),
        Linear("first", ("flat",), 4, 3, 3),
        Sign("sign", ("first",), 12),
        Linear("second", ("sign",), 4, 3, 3),
        Square("mixed", ("second",), 1, 1, 0, mask),
        Square("square", ("mixed",), 1, 1),
        Relu("relu", ("square",), 1),
    )
    weights = {
        "first": Weights(rng.integers(-8, 9, (4, 6)), rng.integers(-9, 10, 4)),
        "sign": Weights(np.zeros(4, np.int64), np.zeros(4, np.int64)),
        "second": Weights(rng.integers(-8, 9, (4, 4)), rng.integers(-9, 10, 4)),
        "mixed": Weights(np.zeros(4, np.int64), np.zeros(4, np.int64)),
        "square": Weights(np.zeros(4, np.int64), np.zeros(4, np.int64)),
    }
    return Program(Ring(34), (2, 3), 0, 9, ops, weights)


def test_signs_squares_and_relus_each_have_theirs() -> None:
    program = several()
    assert program.nonlinear == ("sign", "mixed", "relu")
    relu = read_relus("gc-full@1+ot:tree,cot=iknp@1+gc-sign@1")
    plan = Plan(program.public(), relu)
    kinds = {name: [type(step.protocol).__name__ for step in flight] for name, flight in plan.by_operation.items()}
    assert kinds["sign"] == ["GarbledSign"]
    assert kinds["mixed"] == ["Squares", "ReluOt"]
    assert kinds["relu"] == ["ReluSign"]
    assert {str(step.protocol.cot) for step in plan.steps if isinstance(step.protocol, Squares | ReluOt)} == {str(IKNP)}
    x = random_inputs(program, 1, 3)
    run = run_both(program, x[0], relu=relu)
    assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=plan.protocols)[0])
    check_declared(program, "server", (run.client, run.server), run.stored, relu)


def test_no_two_pairs_of_base_transfers_of_a_run_have_one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where signs are garbled beside ReLUs; configs of one protocol share a pair each way."""
    ids: list[bytes] = []

    def recorded(channel: Channel, session: bytes, rng: Randomness) -> list[tuple[bytes, bytes]]:
        ids.append(session)
        return send_base(channel, session, rng)

    monkeypatch.setattr("deepreshape.private.crypto.ot.iknp.send_base", recorded)
    for program, word, pairs in (
        (TWO_RELUS, "gc-full@1+gc-sign@1", 3),
        (TWO_RELUS, "gc-sign@1+gc-stochastic:drop=2@1", 2),
        (with_signs(TWO_RELUS), "gc-sign", 3),
    ):
        ids.clear()
        run_both(program, random_inputs(program, 1, 1)[0], relu=read_relus(word))
        assert len(set(ids)) == len(ids) == pairs, word


def test_an_assignment_for_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^ot@1\+gc-sign@2 is for 3 layers with ReLUs or signs; this network has 2"):
        Plan(TWO_RELUS, read_relus("ot@1+gc-sign@2"))


def test_layers_without_relus_have_no_config() -> None:
    masks = [None, np.zeros(6, np.bool_), np.ones(6, np.bool_)]
    ops = [
        Relu(f"r{at}", (before,), 1, mask)
        for at, (before, mask) in enumerate(zip(["f", "r0", "r1"], masks, strict=True))
    ]
    program = Program(Ring(20), (2, 3), 4, 99, (Flatten("f", ("input",)), *ops))
    assert program.nonlinear == ("r0", "r2")
    flights = Plan(program, read_relus("ot@1+gc-sign@1")).by_operation
    assert [type(flight[-1].protocol).__name__ for flight in flights.values()] == ["ReluOt", "Truncation", "ReluSign"]


def test_both_parties_compare_the_whole_list() -> None:
    short, other = (Plan(TWO_RELUS, read_relus(word)).agreed["relu"] for word in ("ot@1+gc-sign@1", "gc-sign@1+ot@1"))
    assert (short, other) == ("ot@1+gc-sign@1", "gc-sign@1+ot@1")
    ops = [Relu(f"r{at}", (f"r{at - 1}" if at else "f",)) for at in range(60)]
    long = Program(Ring(20), (2, 3), 4, 99, (Flatten("f", ("input",)), *ops))
    words = ["+".join(["ot:tree@1", "gc-sign@1"] * 29 + [last]) for last in ("ot@2", "gc-full@2")]
    agreed = [Plan(long, read_relus(word)).agreed["relu"] for word in words]
    assert all(WORD < len(str(word)) <= 10 * WORD for word in agreed)
    assert str(agreed[0])[:WORD] != str(agreed[1])[:WORD]  # what differs is seen in a message that is cut short
