"""The bytes on the wire are under a baseline, ``tests/traces/wire.json``: a change of it is a change of the protocol.

An intended change is written by ``python tests/private/parties/test_trace.py`` and reviewed as the difference it makes.
What travels is recorded at the client's end of a channel in memory; random streams and the session are fixed here, and
nowhere else. The library for homomorphic encryption draws from the system, so runs with ciphertexts have no digest.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.programs import (
    ONE_SIGN,
    ONE_SQUARE,
    TWO_RELUS,
    every_kind,
    grouped,
    max_pool,
    random_inputs,
    settled,
    squares_and_relus,
)

from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.parties import client, server
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.preprocessing import InMemory
from deepreshape.private.program.ops import Flatten, Relu
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import Role, read_relus
from deepreshape.private.protocols.base import Run
from deepreshape.private.transport.channel import Frame, Payload, as_bytes
from deepreshape.private.transport.memory import MemoryChannel, memory_pair

BASELINE = Path(__file__).parents[2] / "traces" / "wire.json"
MIXED = "gc-sign@1+ot:tree@1"
MASK = np.arange(24).reshape(2, 3, 4) % 3 > 0
PROGRAMS = {
    "every kind": every_kind(),
    "groups": grouped(Ring(22)),
    "garbled": Program(Ring(16), (2, 3, 4), 4, 99, (Flatten("f", ("input",)), Relu("r", ("f",), 2, MASK.reshape(-1)))),
}


class Recorder:
    """The client's end of a channel, and what passes it."""

    def __init__(self, channel: MemoryChannel) -> None:
        self.channel = channel
        self.ledger = channel.ledger
        self.frames: list[str] = []
        self.digest = hashlib.sha256()

    def send(self, kind: Frame, payload: Payload) -> None:
        self._record("up", kind, as_bytes(payload))
        self.channel.send(kind, payload)

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        view = self.channel.receive(kind, nbytes)
        self._record("down", kind, view)
        return view

    def receive_into(self, kind: Frame, out: Payload) -> None:
        self.channel.receive_into(kind, out)
        self._record("down", kind, as_bytes(out))

    def _record(self, way: str, kind: Frame, payload: memoryview) -> None:
        layer = self.ledger.layer
        self.frames.append(f"{self.ledger.phase} {layer}: {kind.name} of {payload.nbytes} bytes {way}")
        self.digest.update(payload)


def trace(program: Program, garbler: Role, relu: str = "gc-full") -> dict[str, object]:
    """What passes in one run, in order."""
    plan = Plan(program.public(), settled(read_relus(relu), garbler, 10))
    model = server.Model(program, plan)
    near, far = memory_pair()
    recorder, id = Recorder(near), bytes(range(32))
    client_run, server_run = (
        Run(recorder, id, "client", Randomness(b"c" * 32)),
        Run(far, id, "server", Randomness(b"s" * 32)),
    )
    materials = InMemory(), InMemory()

    def serve() -> None:
        model.offline(server_run, materials[1])
        model.online(server_run, materials[1])

    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve)
        client.offline(client_run, plan, materials[0])
        client.online(client_run, plan, materials[0], random_inputs(program, 1, 1)[0])
        served.result()
    record: dict[str, object] = {"frames": recorder.frames}
    if plan.parameters is None:
        record["sha256"] = recorder.digest.hexdigest()
    return record


def traces() -> dict[str, object]:
    roles: tuple[Role, ...] = ("server", "client")
    garbled = {
        f"{name}, {relu}, {role} garbles": trace(PROGRAMS[name], role, relu)
        for name in PROGRAMS
        for relu in ("gc-full", "gc-sign", "gc-stochastic:drop=2")
        for role in roles
    }
    words = ("ot", "ot:tree", "ot:drop=2,neg-pass,cot=iknp")
    transferred = {f"{name}, {relu}": trace(PROGRAMS[name], "server", relu) for name in PROGRAMS for relu in words}
    squares = {"squares, silent": trace(ONE_SQUARE, "server"), "squares, iknp": trace(ONE_SQUARE, "server", words[-1])}
    signs = {f"signs, {role} garbles": trace(ONE_SIGN, role) for role in roles}
    signs |= {f"signs, {relu}": trace(ONE_SIGN, "server", relu) for relu in words}
    pools = {f"max pool, {relu}": trace(max_pool(), "server", relu) for relu in ("gc-full", "ot")}
    both = {"squares and ReLUs": trace(squares_and_relus(), "server")}
    mixed = {f"two layers, {MIXED}, {role} garbles": trace(TWO_RELUS, role, MIXED) for role in roles}
    return garbled | transferred | squares | both | signs | pools | mixed


def test_the_wire_is_as_it_was() -> None:
    assert traces() == json.loads(BASELINE.read_text())


def test_the_digest_sees_one_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    before = trace(PROGRAMS["garbled"], "server")
    monkeypatch.setattr(Ring, "pack", lambda self, a, pack=Ring.pack: bytes([pack(self, a)[0] ^ 1]) + pack(self, a)[1:])
    after = trace(PROGRAMS["garbled"], "server")
    assert before["frames"] == after["frames"]
    assert before["sha256"] != after["sha256"]


if __name__ == "__main__":
    BASELINE.write_text(json.dumps(traces(), indent=1) + "\n")
