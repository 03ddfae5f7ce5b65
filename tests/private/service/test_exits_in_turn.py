"""Exits asked in turn: who is asked what, and which answer counts."""

from typing import Any

import numpy as np
import pytest
from support.few_digits import digits, trained

from deepreshape.models import attach_exits
from deepreshape.private.program import interpret
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import Program
from deepreshape.private.service import exits_in_turn
from deepreshape.private.service.exits_in_turn import run_in_turn


@pytest.fixture(scope="module")
def programs() -> dict[int, Program]:
    lowered = lower(attach_exits(trained(), (1, 2)), digits())
    return {at: lowered.program.up_to(name) for at, name in zip((1, 2, 3), lowered.program.outputs, strict=True)}


def test_an_exit_is_asked_only_what_exits_before_left_open(
    programs: dict[int, Program], monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[Program, np.ndarray]] = []

    def plain(program: Program, inputs: np.ndarray, *_: Any, **__: Any) -> dict[str, Any]:
        asked.append((program, inputs))
        return {"outputs": interpret.run(program, inputs).tolist()}

    monkeypatch.setattr(exits_in_turn, "run_local", plain)
    bound, shape = programs[1].input_bound, programs[1].input_shape
    inputs = np.random.default_rng(0).integers(-bound // 2, bound // 2, (5, *shape))
    answers = [program.decode(interpret.run(program, inputs))[0].reshape(5, -1) for program in programs.values()]
    taken = [np.array([True, False, False, True, False]), np.array([False, True, False])]
    given = iter([*taken, np.zeros(2, bool)])
    done = run_in_turn(programs, inputs, lambda _: next(given))
    assert done.ends.tolist() == [0, 2, 1, 0, 2]
    assert done.reached == (5, 3, 2)
    assert [program for program, _ in asked] == list(programs.values())
    assert all(
        np.array_equal(x, inputs[rows])
        for (_, x), rows in zip(asked, ([0, 1, 2, 3, 4], [1, 2, 4], [1, 4]), strict=True)
    )
    assert all(np.array_equal(done.logits[i], answers[end][i]) for i, end in enumerate(done.ends))
    asked.clear()
    early = run_in_turn(programs, inputs, lambda logits: np.ones(len(logits), bool))
    assert early.reached == (5, 0, 0)
    assert early.reports[1:] == (None, None)
    assert len(asked) == 1
