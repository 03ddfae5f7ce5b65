"""The whole protocol under every fault of every frame: how both ends end, what is spent, and the next session."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
from support.programs import ONE_RELU, ONE_SQUARE, TWO_RELUS, random_inputs, with_signs
from support.relay import INSIDE_TLS, PATIENT, Attack, Fault, Keys, Outcome, Relay, Talk, converse, judge_by

from deepreshape.private.errors import LostBatchError, PrivateError
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.sessions import InferenceClient, serve
from deepreshape.private.parties.store import Store
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.relu_config import read_relus
from deepreshape.private.transport.tls import Endpoint, Limits

Kind = Literal["prepare", "query"]
X = random_inputs(ONE_RELU, 1, 1)
SQUARES, MIXED = "squares", "gc-sign@1+ot@1"
PROGRAMS = {"gc-full": ONE_RELU, "ot": with_signs(ONE_RELU), SQUARES: with_signs(ONE_SQUARE), MIXED: TWO_RELUS}
"""Signs are garbled beside the squares, and go by transfers beside the ReLUs."""


class Pair:
    """Two parties with stores."""

    def __init__(self, keys: Keys, folder: Path, relu: str) -> None:
        self.keys, self.folder = keys, folder
        program = PROGRAMS[relu]
        self.plan = Plan(program.public(), read_relus("gc-full" if relu == SQUARES else relu))
        self.model, self.expected = Model(program, self.plan), plain.run(program, X)[0]
        self.stores = {role: Store(folder / role) for role in ("client", "server")}
        self.batch = ""
        """Used last."""

    def meet(self, kind: Kind, limits: Limits = PATIENT, relay: Relay | None = None) -> tuple[Outcome, Outcome]:
        """One session; what client and server end with."""
        self.batch = min(self.fresh("client") & self.fresh("server") or self.fresh("client"), default="")

        def visit(endpoint: Endpoint, port: int) -> bytes:
            client = InferenceClient(endpoint, "127.0.0.1", port, self.plan, self.stores["client"])
            if kind == "prepare":
                return client.prepare().batch.encode()
            return client.infer(X[0], self.batch).output.tobytes()

        talk = Talk(visit, lambda channel: bytes([serve(channel, self.model, self.stores["server"]) > 0]))
        return converse(self.keys, limits, relay, frames=relay is not None, talk=talk)

    def fresh(self, role: str) -> frozenset[str]:
        return frozenset(path.name for path in (self.folder / role / "fresh").iterdir())

    def spent(self, role: str) -> frozenset[str]:
        with suppress(FileNotFoundError):
            return frozenset((self.folder / role / "spent").read_text().split())
        return frozenset()

    def check_clean(self) -> None:
        """Nothing half-written or half-read is left, nor a key without its batch, nor a spent batch."""
        for role in self.stores:
            for state in ("writing", "claimed"):
                assert not list((self.folder / role / state).iterdir())
            assert {path.stem for path in (self.folder / role / "keys").iterdir()} == self.fresh(role)
            assert not self.fresh(role) & self.spent(role)
        assert self.fresh("server") <= self.fresh("client")

    def query_well(self) -> None:
        """A query goes well, with a batch of both or a new one; halves that the client alone has go by the way."""
        for _ in range(3):
            if not self.fresh("client"):
                assert self.meet("prepare")[1] == b"\1"
            outcome = self.meet("query")
            self.check_clean()
            if not isinstance(outcome[0], LostBatchError):
                break
        assert outcome[1] == b"\0"
        assert isinstance(outcome[0], bytes)
        assert self.right(outcome[0])

    def right(self, output: bytes) -> bool:
        """As the plain interpreter has it, or a unit a layer off where shares decide that; signs are exact."""
        off = np.frombuffer(output, self.expected.dtype).reshape(self.expected.shape) - self.expected
        program = self.model.program
        if program.signs and off[6:].any():
            return False
        units = 0 if program is ONE_RELU else 2 if program is TWO_RELUS else 1
        return set(off.ravel().tolist()) <= set(range(-units, units + 1))


def undisturbed(pair: Pair, kind: Kind) -> Relay:
    """What passes in a session that nobody disturbs."""
    relay = Relay()
    assert not any(isinstance(end, PrivateError) for end in pair.meet(kind, relay=relay))
    return relay


def check_prepared(way: str, broken: int, calm: Relay, new: dict[str, frozenset[str]]) -> bool:
    """Before the farewell, the last frame each way, the server says that its half is complete, the client that it has
    stored its own: the last but one down and up. The client stores on the first, the server on the second.
    """
    stored = {"client": 2 if way == "up" else 1, "server": 1}
    assert new["server"] <= new["client"]
    return all(len(new[role]) == (broken >= len(calm.seen[way]) - stored[role]) for role in stored)


def check_used(pair: Pair, way: str, broken: int) -> bool:
    """The server claims on the client's confirmation (frame 1 up), the client on the server's claim (frame 2 down)."""
    spent = {role: pair.batch in pair.spent(role) for role in pair.stores}
    return spent == {"client": broken >= (2 if way == "up" else 3), "server": broken >= (2 if way == "up" else 1)}


def attack_every_frame(pair: Pair, fault: Fault, kind: Kind, way: str) -> None:
    """Break each frame that goes one way in turn, between sessions that go well.

    On a busy machine a short time-out may run out where none should; then it is tried again with longer ones.
    """
    if kind == "query":
        pair.meet("prepare")
    calm = undisturbed(pair, kind)
    judge = judge_by(INSIDE_TLS, calm.seen)

    def succeeds(attack: Attack, limits: Limits) -> bool:
        if kind == "query" and not pair.fresh("client") & pair.fresh("server"):
            pair.meet("prepare")
        before = {role: pair.fresh(role) for role in pair.stores}
        relay = Relay(attack)
        client, server = pair.meet(kind, limits, relay)
        pair.check_clean()
        broken = attack.k + (fault is Fault.REPEAT)
        if not relay.hit or not judge(attack, relay, client, server):
            return False
        if kind == "query":
            assert isinstance(client, PrivateError) or pair.right(client)
            return check_used(pair, attack.way, broken)
        new = {role: pair.fresh(role) - before[role] for role in pair.stores}
        return check_prepared(attack.way, broken, calm, new)

    for k in range(len(calm.seen[way])):
        attack = Attack(fault, way, k, flip_at=(0, 1, 9)[k % 3])  # in kind, length or number
        assert any(succeeds(attack, limits) for limits in fault.limits), f"{kind}: {fault.value} {way} frame {k}"
        pair.query_well()


CASES = [*itertools.product(INSIDE_TLS, [relu for relu in PROGRAMS if relu != MIXED]), (Fault.CUT, MIXED)]


@pytest.mark.parametrize(("fault", "relu"), CASES)
def test_every_fault_ends_both_sides_and_the_next_session_goes_well(fault: Fault, relu: str, tmp_path: Path) -> None:
    keys = Keys.make(tmp_path / "keys")
    tasks = list(itertools.product(get_args(Kind), ("up", "down")))
    with ThreadPoolExecutor(len(tasks)) as threads:  # most of a run is waiting for a time-out
        for done in [
            threads.submit(attack_every_frame, Pair(keys, tmp_path / f"{kind} {way}", relu), fault, kind, way)
            for kind, way in tasks
        ]:
            done.result()
