"""An operation and its protocol are enough: plan, both parties, costs and interpreter take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pytest
from support.programs import run_both

from deepreshape.private.arith.ring import Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import encoding
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.ops import Conv2d, Exact, Integers, Op, ProgramError, Rounding, Value, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols import choose
from deepreshape.private.protocols.base import (
    Declared,
    Effort,
    Message,
    Offline,
    Online,
    Prepared,
    Protocol,
    Run,
    Segment,
    Step,
)
from deepreshape.private.transport.channel import Frame


@dataclass(frozen=True)
class Halve(Op):
    """The elements at odd places, without their last bit, and one more by chance."""

    kind = "halve"

    def value(self, *sources: Value) -> Value:
        return Value((sources[0].size // 2,), sources[0].fraction)

    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        return inputs[0] + 1

    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        return rounding.rounded(self, inputs[0], inputs[0].reshape(len(inputs[0]), -1)[:, 1::2])


@final
class Halving(Protocol[int, None]):
    """The client sends its share of the result, less its blind, with a coin added; a layer is a number of elements."""

    kinds = "halve", "halve"
    setup_kind = "halve"
    by_coins = True

    @classmethod
    def steps(cls, op: Halve, program: Program, config: ReluConfig) -> Iterator[Step]:
        size = program.values[op.inputs[0]].size
        yield Step(op.name, cls(), size // 2, np.arange(1, size, 2))

    def setup(self, run: Run, layers: Sequence[int]) -> None: ...

    def setup_declared(self, layers: Sequence[int]) -> Segment:
        return ()

    def setup_work(self, layers: Sequence[int]) -> Sequence[Effort]:
        return ()

    def offline(self, run: Run, setup: None, layer: int, share: Words | None, mask: Words | None) -> Offline:
        if share is not None and mask is not None:
            yield Prepared({"difference": MODULUS.sub(share, mask), "coins": run.rng.words(layer)})

    def online(self, run: Run, layer: int, prepared: Iterator[Prepared], share: Words | None) -> Online:
        yield from ()
        if share is None:
            arrays = next(prepared).take()
            run.show_coins("half", arrays["coins"])
            run.channel.send(Frame.SHARES, MODULUS.pack(MODULUS.add(arrays["difference"], arrays["coins"] & ONE)))
            return None
        received = run.channel.receive(Frame.SHARES, MODULUS.element_bytes * layer)
        return MODULUS.add(share, MODULUS.unpack(received, layer))

    def declared(self, layer: int) -> Declared:
        sent = Message("client", MODULUS.element_bytes * layer)
        return Declared(((Message("client", 0),),), ((sent,),), (16 * layer, 0), {"online": {"relus": layer}})

    def work(self, layer: int) -> Mapping[Any, Sequence[Effort]]:
        return {"offline": [Effort()], "online": [Effort({"element": layer})]}

    def replay(self, layer: int, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        assert coins is not None
        assert x.shape[-1] == client.shape[-1] == coins.shape[-1] == layer
        return x + (coins & ONE).astype(np.int64)

    def max_input(self, layer: int) -> int:
        return 1000


MODULUS, ONE = Ring(20), np.uint64(1)
WEIGHTS = Weights(np.arange(-4, 4).reshape(2, 4, 1, 1), np.array([5, -6]))
PROGRAM = Program(
    MODULUS,
    (4, 2, 2),
    4,
    20,
    (Conv2d("conv", ("input",), 2, 1, 3, 0), Halve("half", ("conv",))),
    {"conv": WEIGHTS},
)
X = np.random.default_rng(0).integers(-20, 21, (1, 4, 2, 2))


@pytest.fixture
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoding.KINDS, Halve.kind, Halve)
    monkeypatch.setitem(choose.STEPS, Halve, Halving.steps)


@pytest.mark.usefixtures("_known")
def test_it_runs_counts_and_replays() -> None:
    run, plan = run_both(PROGRAM, X[0]), Plan(PROGRAM.public())
    exact = plain.run(PROGRAM, X)[0]
    coins = run.client_shares[plain.coins_of("half")] & ONE
    np.testing.assert_array_equal(run.output - exact, coins)
    replayed = plain.run(PROGRAM, X, client=run.client_shares, protocols=plan.protocols)
    np.testing.assert_array_equal(run.output, replayed[0])
    assert {row.kind for row in plan.declared().only(layer="half").rows} == {"halve"}
    online = plan.declared().only(layer="half", phase="online")
    assert (online.bytes, sum(row.relus for row in online.rows)) == (3 * 4, 4)
    for ledger in (run.client, run.server):
        traffic = ledger.traffic["half", "online"]
        assert traffic.sent + traffic.received == online.bytes
    assert plan.steps.stored == run.stored
    assert set(plan.by_shares) == {"conv", plain.coins_of("half")}
    with pytest.raises(ProgramError, match="conv: values may reach 205, which half takes, and only 7"):
        PROGRAM.check({"half": 7})


@pytest.mark.usefixtures("_known")
def test_drawn_coins_and_what_it_cannot_take() -> None:
    plan = Plan(PROGRAM.public())
    outputs = plain.run(PROGRAM, np.repeat(X, 50, 0), protocols=plan.protocols, rng=Randomness())
    difference = outputs - plain.run(PROGRAM, X)
    assert 60 < difference.sum() < 140
    assert set(difference.reshape(-1)) == {0, 1}
    wide = Weights(WEIGHTS.weight * 0, np.array([1001, 0]))
    with pytest.raises(OverflowError, match="conv: values from 0 to 1001 exceed what half can take by gc-full: 1000"):
        plain.run(Program(MODULUS, (4, 2, 2), 4, 20, PROGRAM.ops, {"conv": wide}), X, protocols=plan.protocols)


def test_an_operation_without_a_protocol_is_refused() -> None:
    with pytest.raises(ProgramError, match="half: there is no two-party protocol for operations of kind halve"):
        Plan(PROGRAM.public())
