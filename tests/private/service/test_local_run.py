"""Two processes over TLS: same result as the plain interpreter, declared equals counted, and failures end cleanly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.programs import random_inputs, random_program

from deepreshape.private.arith.ring import Ring
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program.ops import ProgramError
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.service.local_run import run_local
from deepreshape.private.transport.tls import Limits

SEED = 13
"""Of a program that has ReLUs, truncations without one, and a residual."""


@pytest.mark.parametrize("garbler", ["server", "client"])
def test_two_processes_agree_with_plain(garbler: Role) -> None:
    program = random_program(SEED)
    told: list[tuple[int, int]] = []
    report = run_local(
        program,
        random_inputs(program, 2, 1),
        ReluConfig(garbler=garbler, batch=16),
        progress=lambda *now: told.append(now),
    )
    assert told == sorted(told)
    assert told[-1] == (2 * report["bytes"]["offline"], 2 * report["bytes"]["offline"])
    assert report["agree"]
    assert report["declared_bytes_match"]
    assert report["relus"] == program.relus > 0
    assert sum(layer["relus"] for layer in report["layers"]) == program.relus
    for phase in ("offline", "online"):
        assert report["seconds"][phase] > 0
        assert report["bytes"][phase] == sum(layer["bytes"][phase] for layer in report["layers"])
    assert report["rounds"] == sum(layer["rounds"] for layer in report["layers"])
    assert all(mib > 10 for mib in report["peak_rss_mib"].values())
    assert np.array(report["outputs"]).shape == (2, 3)


def test_what_cannot_run_is_refused_before_a_process_starts() -> None:
    program = random_program(SEED)
    with pytest.raises(ProgramError, match="only 127 fits"):
        run_local(replace(program, modulus=Ring(8)), random_inputs(program, 1, 1))
    with pytest.raises(OverflowError, match="input bound"):
        run_local(program, random_inputs(program, 1, 1) + 99)


def test_a_party_that_fails_ends_both() -> None:
    program = random_program(SEED)
    with pytest.raises(ProtocolError, match=r"the (client|server) failed: \w+Error: "):
        run_local(program, random_inputs(program, 1, 1), limits=Limits(frame_bytes=5000))
