"""Two processes over TLS: same result as the plain interpreter, declared equals counted, and failures end cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.programs import random_inputs, random_program

from deepreshape.private.arith.ring import Ring
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program.ops import ProgramError
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.service import local_run
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


FULL = """
import resource, runpy, sys
if sys.argv[1] == {role!r}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_party_whose_disk_is_full_is_the_one_that_is_named(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever ends first; and the reason is not lost, though not a byte can be written."""
    code = FULL.format(role=role, module=local_run.__name__)
    monkeypatch.setattr(local_run, "command", lambda _, *words: [sys.executable, "-c", code, *map(str, words)])
    program = random_program(SEED)
    line = rf"^the {role} failed: StoreError: batch [0-9a-f]{{16}}: File too large; \d+ MiB are free in "
    with pytest.raises(ProtocolError, match=line):
        run_local(program, random_inputs(program, 1, 1))


ENDLESS = """
from support.programs import random_inputs, random_program
from deepreshape.cli.console import NOTHING_KEPT, stoppable
from deepreshape.private.service import local_run
from deepreshape.private.service.local_run import run_local
import typer
program = random_program(13)
try:
    stoppable(lambda: run_local(program, random_inputs(program, 2000, 1)), NOTHING_KEPT)
except typer.Exit as end:
    raise SystemExit(end.exit_code)
"""


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_nothing_behind(by: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while not list(tmp_path.glob("*/client/store/spent")):  # it is at work
            time.sleep(0.05)
            assert run.poll() is None
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        run.send_signal(by)
        _, told = run.communicate(timeout=60)
    assert (run.returncode, told) == (128 + by, "stopped; nothing was kept\n")
    assert not list(tmp_path.iterdir())
    assert len(children) == 2
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_party_that_fails_ends_both() -> None:
    program = random_program(SEED)
    with pytest.raises(ProtocolError, match=r"the (client|server) failed: \w+Error: "):
        run_local(program, random_inputs(program, 1, 1), limits=Limits(frame_bytes=5000))
