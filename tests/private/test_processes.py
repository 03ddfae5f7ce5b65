"""Helper processes find this package, and nothing that lies in the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.programs import random_inputs, random_program

from deepreshape.private.crypto.he.bfv import ClientKey, Responder
from deepreshape.private.crypto.he.packing import Convolution, Layout
from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.crypto.he.responses import EncodedWeights, respond
from deepreshape.private.processes import SOURCE, command, safe_environment
from deepreshape.private.protocols.he_workers import Workers
from deepreshape.private.service.local_run import run_local

NAMES = ("zstandard", "json", "secrets", "numpy", "deepreshape")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, full of modules whose import leaves a file."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sprung"


def test_the_trap_works(trap: Path) -> None:
    subprocess.run([sys.executable, "-m", "timeit", "-n", "1", "import zstandard"], check=True, capture_output=True)
    assert trap.exists()


@pytest.mark.parametrize("python_path", ["", ":", ".", "relative:"])
def test_workers_import_nothing_from_the_current_folder(
    python_path: str, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path)
    parameters = Parameters(2**37, (60, 60))
    layout = Layout(Convolution(2, 5, 5, 7, 3, 1, 1), parameters, 1, 5, 1, 1)
    key = ClientKey(parameters)
    weights = EncodedWeights(layout, np.ones(layout.layer.weight_shape, np.int64))
    sent = [key.encrypt(each) for each in layout.polynomials(np.ones(layout.layer.input_shape, np.uint64))]
    responder = Responder(parameters, key.public_key())
    with Workers(2, responder) as workers:
        assert len(workers.respond(weights, sent)[0]) == len(respond(responder, weights, sent)[0])
    assert not trap.exists()


def test_a_local_run_imports_nothing_from_the_current_folder(trap: Path) -> None:
    program = random_program(13)
    assert run_local(program, random_inputs(program, 1, 1))["agree"]
    assert not trap.exists()


def test_this_copy_of_the_package_comes_first_and_the_users_own_paths_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/opt/theirs", "", "relative"]))
    assert safe_environment()["PYTHONPATH"] == os.pathsep.join([str(SOURCE), "/opt/theirs"])
    assert command("a.b", 1) == [sys.executable, "-P", "-m", "a.b", "1"]
