"""SPU itself, where it is: set SPU_PYTHON to the interpreter of its environment (docs/engines.md)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import random_inputs, random_program

from deepreshape.engines.real import bound
from deepreshape.engines.spu import launch
from deepreshape.engines.spu.launch import SpuContext
from deepreshape.engines.spu.party import FRACTION, PARTIES, Party, Setting
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import to_bytes
from deepreshape.private.program.program import Program, from_fixed

SPU_PYTHON = Path(os.environ.get("SPU_PYTHON", "no-spu"))
SOURCE = Path(launch.__file__).parents[2]
SEED = 13
"""Of a program that has ReLUs, truncations without one, and a residual."""
needs_spu = pytest.mark.skipif(not SPU_PYTHON.is_file(), reason="SPU_PYTHON names no interpreter with SPU")
TWO = "127.0.0.1:1", "127.0.0.1:2"


@needs_spu
@pytest.mark.parametrize("protocol", PARTIES)
def test_outputs_are_within_the_bound_of_the_plain_program(protocol: str) -> None:
    program = random_program(SEED)
    inputs = random_inputs(program, 2, 1)
    expected = from_fixed(plain.run(program, inputs), program.values[program.outputs[0]].fraction)
    with SpuContext(program, protocol, SPU_PYTHON) as session:
        answers = [session.infer(x) for x in from_fixed(inputs, program.input_fraction)]
        logs = session.close()
    outputs = np.stack([answer.output for answer in answers])
    assert (np.abs(outputs - expected) <= bound(program, FRACTION)).all()
    assert [len(runs) for runs in logs] == [2] * PARTIES[protocol]
    for runs in logs:
        assert all(run.relu.seconds > 0 and run.sent >= run.relu.sent for run in runs)


@needs_spu
def test_a_party_that_fails_is_quoted_and_ends_all() -> None:
    program = random_program(SEED)
    with SpuContext(program, "cheetah", SPU_PYTHON) as session:
        with pytest.raises(RuntimeError, match=r"party 0 of cheetah failed: .* has shape \(7,\), the network takes"):
            session.infer(np.zeros(7))
        assert all(party.poll() is not None for party in session._running)


@needs_spu
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs to make network namespaces")
def test_two_hosts(tmp_path: Path) -> None:
    """Two network namespaces joined by a cable, each with its own file of the program."""
    program = random_program(SEED)
    x = random_inputs(program, 1, 1)
    (tmp_path / "server.program").write_bytes(to_bytes(program))
    (tmp_path / "client.program").write_bytes(to_bytes(program.public()))
    np.save(tmp_path / "x.npy", from_fixed(x[0], program.input_fraction))
    tag = f"dr{os.getpid()}"
    names = [f"{tag}c", f"{tag}s"]
    exit_codes = [ip(f"netns add {name}") for name in names]
    try:
        exit_codes.append(ip(f"link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}"))
        if any(exit_codes):
            pytest.skip("network namespaces cannot be made here")
        for rank, name in enumerate(names):
            assert not ip(f"-n {name} addr add 10.77.0.{rank + 1}/24 dev {name}")
            assert not ip(f"-n {name} link set {name} up")
            assert not ip(f"-n {name} link set lo up")
        with party(1, names[1], tmp_path) as server, party(0, names[0], tmp_path) as client:
            said, _ = client.communicate(f"{tmp_path / 'x.npy'}\n", timeout=60)
            assert client.returncode == server.wait(30) == 0
    finally:
        for name in names:
            ip(f"netns del {name}")
    expected = from_fixed(plain.run(program, x), program.values[program.outputs[0]].fraction)[0]
    output = np.array(json.loads(said)["output"])
    assert (np.abs(output - expected) <= bound(program, FRACTION)).all()


def ip(words: str) -> int:
    return subprocess.run(["ip", *words.split()], check=False, capture_output=True).returncode


def party(rank: int, namespace: str, folder: Path) -> subprocess.Popen[str]:
    program_file = folder / ("client.program", "server.program")[rank]
    words = f"--rank {rank} --hosts 10.77.0.1:7501,10.77.0.2:7502 --program {program_file} --log {folder / str(rank)}"
    command = ["ip", "netns", "exec", namespace, str(SPU_PYTHON), "-m", "deepreshape.engines.spu.party", *words.split()]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"rank": 0, "hosts": TWO, "protocol": "semi2k"}, "'semi2k' is not known; use one of cheetah, aby3"),
        ({"rank": 0, "hosts": TWO, "protocol": "aby3"}, "takes 3 addresses"),
        ({"rank": 2, "hosts": TWO, "protocol": "cheetah"}, "rank 2 of 127.0.0.1:1,127.0.0.1:2 does not fit cheetah"),
    ],
)
def test_wrong_settings_are_refused(setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Setting(**setting)


def test_weights_belong_to_the_server(tmp_path: Path) -> None:
    program: Program = random_program(SEED)
    with pytest.raises(ValueError, match="rank 0 was given weights"):
        Party(Setting(0, TWO, "cheetah"), program, tmp_path / "log")
    with pytest.raises(ValueError, match="the server was given a program without weights"):
        Party(Setting(1, TWO, "cheetah"), program.public(), tmp_path / "log")


def test_an_interpreter_without_spu_is_named() -> None:
    with pytest.raises(ValueError, match="there is no interpreter nowhere"):
        SpuContext(random_program(SEED), "cheetah", Path("nowhere"))
    if not SPU_PYTHON.is_file() or SPU_PYTHON.resolve() != Path(sys.executable).resolve():
        with pytest.raises(RuntimeError, match="has no SPU"):
            launch.spu_versions(Path(sys.executable))
