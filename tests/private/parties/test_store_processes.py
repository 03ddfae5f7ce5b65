"""Batches are used once: through crashes, races of processes and threads, and full disks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.stores import BINDING, ENVIRONMENT, ONE, contents, prepare, python

from deepreshape.private.errors import SpentError, StoreError
from deepreshape.private.parties import batch, streams
from deepreshape.private.parties import store as store_module
from deepreshape.private.parties.batch import Batch
from deepreshape.private.parties.store import Store

KILLED_CLAIM = """
import os, signal, sys
from pathlib import Path
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.store import Store
from deepreshape.private.errors import StoreError

root, session = Path(sys.argv[1]), "1" * 64
binding = Binding("ab" * 32, "cd" * 32, {"bits": 32})

def child(folder, step):
    # die at the given call to the operating system, before or after it
    left = [step]
    def dying(call):
        def wrapped(*args, **kw):
            left[0] -= 1
            if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kw)
            left[0] -= 1
            if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped
    import deepreshape.private.parties.store as module
    store = Store(folder)
    module.write_all = dying(module.write_all)
    for name in ("open", "fsync", "rename", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    batch = store.claim(binding)
    (folder / "online").write_text("the first online byte")
    os._exit(0)

step = 0
while True:
    step += 1
    folder = root / str(step)
    with Store(folder).create(binding, session) as writer:
        writer.write("tables", b"secret" * 100)
        writer.commit()
    pid = os.fork()
    if not pid:
        child(folder, step)
    done = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    online = (folder / "online").exists()
    store = Store(folder)
    recorded = (folder / "spent").exists() and session in (folder / "spent").read_text().split()
    try:
        with store.claim(binding, session) as batch:
            again = b"".join(batch.read("tables")) == b"secret" * 100
    except StoreError:
        again = False
    left = sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name not in ("spent", "lock", "online"))
    print(step, done, int(online), int(recorded), int(again), *left)
    if not done:
        break
"""


def test_kill_at_every_step_of_a_claim(tmp_path: Path) -> None:
    """Before the ledger knows it the batch is whole; afterwards it is gone; nothing of it stays behind either way."""
    rows = [line.split() for line in python(KILLED_CLAIM, tmp_path).stdout.splitlines()]
    assert len(rows) > 15
    for step, done, online, recorded, again, *left in rows[:-1]:
        assert (done, online, left) == ("-9", "0", []), step
        assert again == ("0" if recorded == "1" else "1"), step
    assert rows[-1][1:] == ["0", "1", "1", "0"]
    assert {row[4] for row in rows} == {"0", "1"}


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.store import Store
writer = Store(Path(sys.argv[1])).create(Binding("ab" * 32, "cd" * 32, {}), "1" * 64)
writer.write("tables", b"secret" * 1000)
print("written", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_dead_writer_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"written\n"
    Store(tmp_path)
    assert contents(tmp_path) == {f"writing/{ONE}/tables.stream", f"keys/{ONE}.key"}
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.wait(60) == -9
    process.stdin.close()
    process.stdout.close()
    Store(tmp_path)
    assert contents(tmp_path) == set()


FORKED = """
import os, sys, time
from pathlib import Path
from deepreshape.private.parties import store as module
module.LOCK_S = 5.0
store = module.Store(Path(sys.argv[1]))
binding = module.Binding("ab" * 32, "cd" * 32, {})
children = []

def fork():
    # a server that forks for a session, while another thread of it is busy with the store
    children.append(os.fork())
    if not children[-1]:
        time.sleep(300)
        os._exit(0)

try:
    with store.create(binding, "1" * 64) as writer:
        writer.write("tables", b"data")
        fork()
        writer.commit()
    with store.claim(binding) as batch:
        print(*batch.read("tables"), flush=True)
    with store._locked():
        fork()
    print(store.count(binding), module.Store(store.folder).count(binding), flush=True)
finally:
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
"""


def test_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    done = python(FORKED, tmp_path, check=False)
    assert done.stdout == "b'data'\n0 0\n", done.stderr


def test_stuck_process_is_not_waited_for_without_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_S", 0.05)
    with vars(Store)["_locked"](store), pytest.raises(StoreError, match=r"held its lock for 0\.05 s; is it stuck"):
        Store(store.folder)
    assert Store(store.folder).count(BINDING) == 0


CLAIMER = """
import sys
from pathlib import Path
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.store import Store
from deepreshape.private.errors import StoreError
store = Store(Path(sys.argv[1]))
binding = Binding("ab" * 32, "cd" * 32, {"bits": 32, "garbler": "server"})
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        with store.claim(binding) as batch:
            list(batch.read("layer1.tables"))
            print(batch.session, flush=True)
    except StoreError:
        break
"""


def test_copy_of_a_batch_in_use_does_not_disturb_it(store: Store, tmp_path: Path) -> None:
    prepare(store)
    shutil.copytree(store.folder / "fresh", tmp_path / "backup")
    with store.claim(BINDING) as batch:
        shutil.copytree(tmp_path / "backup", store.folder / "fresh", dirs_exist_ok=True)
        Store(store.folder)
        assert list(batch.read("layer1.labels")) == [b"labels"]
    assert contents(store.folder) == {"spent"}


def test_two_servers_on_one_store_share_no_batch(store: Store) -> None:
    sessions = {f"{number:064x}" for number in range(24)}
    for session in sessions:
        prepare(store, session)
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(store.folder)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for server in servers:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
    for server in servers:
        assert server.stdin
        server.stdin.write("\n")
        server.stdin.flush()
    claimed = [server.communicate(timeout=60)[0].split() for server in servers]
    assert sorted(claimed[0] + claimed[1]) == sorted(sessions)


def test_threads_race_for_one_batch(store: Store) -> None:
    prepare(store)
    start = threading.Barrier(8)

    def race(_: int) -> Batch | StoreError:
        start.wait(60)
        try:
            return Store(store.folder).claim(BINDING, ONE)
        except StoreError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, range(8)))
    winners = [result for result in results if isinstance(result, Batch)]
    assert len(winners) == 1
    assert all(isinstance(result, SpentError) for result in results if result not in winners)
    assert list(winners[0].read("layer1.labels")) == [b"labels"]
    winners[0].close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.store import Store
from deepreshape.private.errors import StoreError
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with store.create(Binding("ab" * 32, "cd" * 32, {}), "1" * 64) as writer:
        for _ in range(10):
            writer.write("tables", bytes(30_000))
        writer.commit()
except StoreError as error:
    print(error)
"""


def test_file_that_cannot_grow_leaves_nothing_half_written(tmp_path: Path) -> None:
    done = python(FULL_DISK, tmp_path)
    assert done.stdout.startswith(f"batch {ONE[:16]}: File too large; ")
    assert f"MiB are free in {tmp_path}" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("where", ["write_all", "sync_folder", "sync_file", "write_new"])
def test_any_failing_write_is_one_clear_line(store: Store, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        for module in (store_module, batch, streams):
            patch.setattr(module, where, full, raising=False)
        with pytest.raises(StoreError, match=r"^batch 1{16}: No space left on device; \d+ MiB are free in "):
            prepare(store)
    assert contents(store.folder) == set()
    prepare(store)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_all", full)
        with pytest.raises(StoreError, match="No space left"):
            store.claim(BINDING)
    assert store.count(BINDING) == 1
