"""``kill -9`` of either party at frames of either session, and a clean next session on what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deepreshape

SCRIPT = """
import os, signal, sys
from pathlib import Path

from support.relay import Keys
from support.programs import ONE_RELU, ONE_SQUARE, TWO_RELUS, every_kind, random_inputs, with_signs

from deepreshape.private.program import interpret as plain
from deepreshape.private.program.relu_config import read_relus
from deepreshape.private.errors import PrivateError
from deepreshape.private.parties.sessions import InferenceClient, serve
from deepreshape.private.errors import LostBatchError
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.store import Store
from deepreshape.private.transport.tls import Endpoint, TlsChannel, listen

folder = Path(sys.argv[1])
keys = Keys.make(folder / "keys")
programs = {
    "linear": every_kind(),
    "two layers": TWO_RELUS,
    "relus, signs": with_signs(ONE_RELU),
    "squares, signs": with_signs(ONE_SQUARE),
}
program, mixed = programs[sys.argv[3]], sys.argv[3] == "two layers"
plan = Plan(program.public(), read_relus(sys.argv[2]))
X = random_inputs(program, 1, 1)
door = listen("127.0.0.1", 0)
mine, theirs = Endpoint(keys.client), Endpoint(keys.server)
stores = {role: Store(folder / role) for role in ("client", "server")}
party = InferenceClient(mine, "127.0.0.1", door.getsockname()[1], plan, stores["client"])
model = Model(program, plan)
start = {
    "server": lambda kind: serve(theirs.accept(door.accept()[0]), model, stores["server"]),
    "client": lambda kind: party.prepare() if kind == "prepare" else party.infer(X[0], oldest()),
}

def oldest():
    # the batch to name: a client that names none tries the next where one is lost, in a session that nobody serves here
    fresh = sorted((folder / "client" / "fresh").iterdir(), key=lambda path: path.stat().st_mtime)
    return fresh[0].name if fresh else None

def die_at(step):
    # before or after a frame is sent or received
    left = [step]
    def dying(call):
        def wrapped(*args):
            for act in (lambda: None, lambda: call(*args)):
                result = act()
                left[0] -= 1
                if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped
    for name in ("send", "receive", "receive_into"):
        setattr(TlsChannel, name, dying(getattr(TlsChannel, name)))

def apart(role, kind, step=0):
    # one side in a process of its own; nothing here has threads
    pid = os.fork()
    if not pid:
        code = 1
        try:
            die_at(step)
            start[role](kind)
            code = 0
        except PrivateError:
            pass
        finally:
            os._exit(code)
    return pid

def meet(victim, kind, step=0):
    # a session in which the victim dies; how both end
    pid = apart(victim, kind, step)
    survivor = "client" if victim == "server" else "server"
    try:
        end = start[survivor](kind)
    except PrivateError as error:
        end = error
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), end

def halves():
    return {role: frozenset(p.name for p in (folder / role / "fresh").iterdir()) for role in stores}

def spent():
    ledgers = {role: folder / role / "spent" for role in stores}
    return {role: set(path.read_text().split()) if path.exists() else set() for role, path in ledgers.items()}

def next_goes_well():
    for role in stores:
        stores[role] = Store(folder / role)  # as after a restart
        for state in ("writing", "claimed"):
            assert not list((folder / role / state).iterdir()), (role, state)
    object.__setattr__(party, "store", stores["client"])
    assert halves()["server"] <= halves()["client"]
    for role in stores:
        assert not halves()[role] & spent()[role]
    lost, alone = 0, len(halves()["client"] - halves()["server"])
    while True:
        if not halves()["client"]:
            assert meet("server", "prepare")[0] == 0
        code, end = meet("server", "query")
        if not isinstance(end, LostBatchError):
            break
        lost += 1
    assert code == 0, end
    expected = plain.run(program, X)
    # a unit of rounding for each layer of ReLUs, also where there is no ReLU; a square has one before it, too
    root = abs(expected[0]).max() ** 0.5 if program.squares else 0
    assert abs(end.output - expected[0]).max() <= (2 if mixed else 1) + root
    assert lost <= alone
    return lost

for kind, victim, first, stride in (
    ("prepare", "client", 1, 25 if mixed else 7),
    ("prepare", "server", 2, 25 if mixed else 7),
    ("query", "client", 2, 5),  # odd, so before a frame and behind one
    ("query", "server", 3, 5),
):
    step = first
    while True:
        if kind == "query" and not halves()["client"]:
            assert meet("server", "prepare")[0] == 0
        before = spent()
        code, end = meet(victim, kind, step)
        if code == 0:
            break
        assert code == -9, code
        used = [len(spent()[role] - before[role]) for role in stores]
        assert kind == "query" or not any(used)
        print(kind, victim, step, *used, next_goes_well())
        step += stride
"""


@pytest.mark.parametrize(
    ("relu", "program"),
    [
        ("gc-full", "linear"),
        ("gc-sign@1+ot:tree@1", "two layers"),
        ("ot:tree", "relus, signs"),
        ("gc-full", "squares, signs"),
    ],
)
def test_kill_at_frames_of_every_session(relu: str, program: str, tmp_path: Path) -> None:
    folders = [Path(deepreshape.__file__).parents[1], Path(__file__).parents[2]]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), relu, program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) > 20
    # before, between and after the two claims, of which the server's is the first; each says its kind, who died and
    # where, whose half was spent (client, server), and how many halves the client had to give up afterwards
    assert {tuple(row[3:5]) for row in rows if row[0] == "query"} == {("0", "0"), ("0", "1"), ("1", "1")}
