"""SPU's log, read."""

from __future__ import annotations

import pytest

from deepreshape.engines.spu.profile import Kernel, PartyRun, parse

STAMP = "2026-01-01 00:00:00.000 [info] [api.cc:printProfilingData:172] "
LINES = [
    "[Profiling] SPU execution inference completed, input processing took 2.5e-06s, execution took 0.21s, "
    "output processing took 3e-06s, total time 0.25s.",
    "HAL profiling: total time 0.2",
    "- f_less, executed 1 times, duration 0.1s, send bytes 9 recv bytes 8, send actions 7, recv actions 6",
    "MPC profiling: total time 0.2",
    "- mmul_sv, executed 9 times, duration 0.0625s, send bytes 1000 recv bytes 1, send actions 10, recv actions 9",
    "- msb_a2b, executed 1 times, duration 1.5e-01s, send bytes 500 recv bytes 1, send actions 18, recv actions 1",
    "- mul_a1b, executed 1 times, duration 0.05s, send bytes 50 recv bytes 1, send actions 2, recv actions 1",
    "Link details: total send bytes 1600, recv bytes 99, send actions 31, recv actions 38",
]


def log(*lines: str) -> str:
    return "\n".join(STAMP + line for line in lines)


def test_kernels_of_the_lowest_layer_are_read() -> None:
    (run,) = parse(log("CheetahDot uses 3@2 modulus", *LINES))
    assert run == PartyRun(
        0.25,
        1600,
        31,
        {
            "mmul_sv": Kernel(9, 0.0625, 1000, 10),
            "msb_a2b": Kernel(1, 0.15, 500, 18),
            "mul_a1b": Kernel(1, 0.05, 50, 2),
        },
    )
    assert run.relu == Kernel(2, pytest.approx(0.2), 550, 20)


def test_runs_stay_apart() -> None:
    assert [len(run.kernels) for run in parse(log(*LINES, *LINES[:4], LINES[5], LINES[7]))] == [3, 1]
    assert parse("") == []


def test_a_log_that_was_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="within the profile of run 2"):
        parse(log(*LINES, *LINES[:5]))
