"""Batches are used once: through crashes, copies, races and full disks."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.private.errors import SpentError, StoreError
from deepreshape.private.parties import batch, streams
from deepreshape.private.parties import store as store_module
from deepreshape.private.parties.batch import Batch
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.store import Store
from deepreshape.private.parties.streams import CHUNK_BYTES

BINDING = Binding("ab" * 32, "cd" * 32, {"bits": 32, "garbler": "server"})
ONE, TWO = "1" * 64, "2" * 64
CHUNKS = [b"first chunk", b"", bytes(5000), b"last"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def prepare(store: Store, session: str = ONE, binding: Binding = BINDING) -> None:
    with store.create(binding, session) as writer:
        for chunk in CHUNKS:
            writer.write("layer1.tables", chunk)
        writer.write("layer1.labels", b"labels")
        writer.commit()


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - {"lock"}


def python(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script with the package on its path, in a process of its own."""
    path = str(Path(store_module.__file__).parents[3])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


def test_what_is_written_is_read_once(store: Store) -> None:
    assert store.count(BINDING) == 0
    prepare(store)
    prepare(store, TWO)
    assert store.fresh(BINDING) == (ONE, TWO)
    with store.claim(BINDING) as batch:
        assert batch.session == ONE
        assert list(batch.read("layer1.tables")) == CHUNKS
        assert list(batch.read("layer1.labels")) == [b"labels"]
        for name in ("layer1.tables", "layer9"):
            with pytest.raises(SpentError, match=f"no unread stream '{name}'"):
                batch.read(name)
    assert store.fresh(BINDING) == (TWO,)
    with pytest.raises(SpentError):
        batch.read("layer1.labels")
    store.claim(BINDING, TWO).close()
    with pytest.raises(StoreError, match="no offline batch is left"):
        store.claim(BINDING)
    assert contents(store.folder) == {"spent"}


def test_batch_opens_for_its_binding_only(store: Store) -> None:
    prepare(store)
    for other, what in (
        (replace(BINDING, program="00" * 32), "program"),
        (replace(BINDING, peer="00" * 32), "peer"),
        (replace(BINDING, parameters={"bits": 37, "garbler": "server"}), "parameters"),
        (replace(BINDING, parameters={"bits": True, "garbler": "server"}), "parameters"),
    ):
        assert store.count(other) == 0
        with pytest.raises(StoreError, match=f"was made for another {what}"):
            store.claim(other, ONE)
    assert store.count(BINDING) == 1


def test_binding_is_part_of_the_encryption(store: Store) -> None:
    """Editing the manifest does not make a batch fit another peer."""
    prepare(store)
    manifest = store.folder / "fresh" / ONE / "manifest.json"
    edited = {**json.loads(manifest.read_text()), "peer": "ee" * 32}
    manifest.write_text(json.dumps(edited))
    with store.claim(replace(BINDING, peer="ee" * 32), ONE) as batch, pytest.raises(StoreError, match="damaged"):
        list(batch.read("layer1.labels"))


@pytest.mark.parametrize("leave", ["raise", "return"])
def test_unfinished_batch_leaves_nothing(store: Store, leave: str) -> None:
    with suppress(KeyError), store.create(BINDING, ONE) as writer:
        writer.write("layer1", b"data")
        if leave == "raise":
            raise KeyError
    assert contents(store.folder) == set()
    with pytest.raises(StoreError, match="not being written any more"):
        writer.write("layer1", b"data")
    with pytest.raises(StoreError, match="not being written any more"):
        writer.commit()
    assert store.count(BINDING) == 0


def test_one_batch_a_session(store: Store) -> None:
    with store.create(BINDING, ONE), pytest.raises(SpentError, match="there is or was a batch of this session"):
        store.create(BINDING, ONE)
    prepare(store)
    with pytest.raises(SpentError, match="there is or was"):
        store.create(BINDING, ONE)
    with store.claim(BINDING), pytest.raises(SpentError, match="there is or was"):
        store.create(BINDING, ONE)
    with pytest.raises(SpentError, match="there is or was"):
        store.create(BINDING, ONE)


def test_copied_back_batch_is_refused(store: Store, tmp_path: Path) -> None:
    """Without its key, with its key, and under another name."""
    prepare(store)
    backup = tmp_path / "backup"
    shutil.copytree(store.folder, backup)
    with store.claim(BINDING) as batch:
        list(batch.read("layer1.tables"))

    def restore(session: str = ONE) -> None:
        shutil.rmtree(store.folder / "fresh" / session, ignore_errors=True)
        shutil.copytree(backup / "fresh" / ONE, store.folder / "fresh" / session)

    restore()
    assert store.count(BINDING) == 0
    with pytest.raises(SpentError, match="was claimed before, and no copy"):
        store.claim(BINDING, ONE)
    shutil.copy(backup / "keys" / f"{ONE}.key", store.keys)
    assert store.count(BINDING) == 0
    with pytest.raises(SpentError, match="was claimed before"):
        store.claim(BINDING, ONE)
    restore(TWO)
    with pytest.raises(SpentError, match="no key any more"):
        store.claim(BINDING, TWO)
    shutil.copy(backup / "keys" / f"{ONE}.key", store.keys / f"{TWO}.key")
    with store.claim(BINDING, TWO) as batch, pytest.raises(StoreError, match="damaged"):
        list(batch.read("layer1.tables"))
    # the ledger lost, the key destroyed
    (store.folder / "spent").unlink()
    restore()
    (store.keys / f"{ONE}.key").unlink()
    with pytest.raises(SpentError, match="no key any more"):
        store.claim(BINDING, ONE)


def test_opening_the_store_destroys_copies_of_what_is_spent_and_nothing_else(store: Store, tmp_path: Path) -> None:
    prepare(store)
    backup = tmp_path / "backup"
    shutil.copytree(store.folder, backup)
    store.claim(BINDING).close()
    for part in ("fresh", "keys"):
        shutil.copytree(backup / part, store.folder / part, dirs_exist_ok=True)
    prepare(store, TWO)
    assert Store(store.folder).fresh(BINDING) == (TWO,)
    assert {path.parts[-2] for path in store.folder.rglob("*.stream")} == {TWO}
    assert [path.name for path in store.keys.iterdir()] == [f"{TWO}.key"]


def test_key_is_kept_apart_and_nothing_lies_in_clear(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", keys=tmp_path / "elsewhere")
    prepare(store)
    assert {path.name for path in store.keys.iterdir()} == {f"{ONE}.key"}
    assert not list(store.folder.rglob("*.key"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"first chunk" not in data
            assert b"labels" not in data or path.name == "manifest.json"
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0 or path.suffix == ".stream" or path.is_relative_to(store.folder / "writing")
    assert stat.S_IMODE(store.folder.stat().st_mode) == stat.S_IMODE(store.keys.stat().st_mode) == 0o700
    os.link(store.keys / f"{ONE}.key", tmp_path / "same file")
    with store.claim(BINDING) as batch:
        assert not list(store.keys.iterdir())
        assert (tmp_path / "same file").read_bytes() == bytes(32)
        assert list(batch.read("layer1.labels")) == [b"labels"]


Damage = Callable[[bytes], bytes]
FIRST = 4 + len(CHUNKS[0]) + 16
DAMAGES: list[Damage] = [
    lambda data: b"",
    lambda data: data[:-1],
    lambda data: data + b"\0",
    lambda data: data[:-20],  # the closing chunk is gone
    lambda data: data[:FIRST],
    lambda data: data[FIRST:],
    lambda data: data[:FIRST] + data,  # the first chunk twice
    lambda data: bytes([data[0] ^ 1]) + data[1:],
    lambda data: b"\xff\xff\xff\xff" + data[4:],
    lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:],
    lambda data: data + data[-20:],
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_stream_is_refused(store: Store, damage: Damage) -> None:
    prepare(store)
    path = store.folder / "fresh" / ONE / "layer1.tables.stream"
    path.write_bytes(damage(path.read_bytes()))
    read: list[bytes] = []
    tracemalloc.start()
    with store.claim(BINDING) as batch, pytest.raises(StoreError, match=r"layer1\.tables\.stream: chunk . is damaged"):
        read += batch.read("layer1.tables")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20  # whatever length the file claims
    tracemalloc.stop()
    assert read == CHUNKS[: len(read)]


def test_streams_cannot_be_exchanged(store: Store) -> None:
    prepare(store)
    folder = store.folder / "fresh" / ONE
    shutil.copy(folder / "layer1.tables.stream", folder / "layer1.labels.stream")
    with store.claim(BINDING) as batch, pytest.raises(StoreError, match="damaged"):
        list(batch.read("layer1.labels"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(chunks=st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=50)), max_size=12))
def test_any_interleaving_of_streams(tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[str, bytes]]) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    with store.create(BINDING, ONE) as writer:
        for name, chunk in chunks:
            writer.write(name, chunk)
        writer.commit()
    with store.claim(BINDING) as batch:
        for name in {name for name, _ in chunks}:
            assert list(batch.read(name)) == [chunk for other, chunk in chunks if other == name]


def test_memory_stays_bounded(store: Store) -> None:
    chunk = np.arange(1 << 19, dtype=np.uint64)
    tracemalloc.start()
    with store.create(BINDING, ONE) as writer:
        for _ in range(8):
            writer.write("tables", chunk)
        writer.commit()
    with store.claim(BINDING) as batch:
        assert sum(part == chunk.tobytes() for part in batch.read("tables")) == 8
    assert tracemalloc.get_traced_memory()[1] < 6 * chunk.nbytes
    tracemalloc.stop()


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
        env={**os.environ, "PYTHONPATH": str(Path(store_module.__file__).parents[3])},
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


def test_opening_a_store_deletes_nothing_that_is_not_a_batch(tmp_path: Path) -> None:
    """``writing`` is a likely name for a folder that holds something else."""
    for state in ("writing", "claimed"):
        (tmp_path / state / "novel").mkdir(parents=True)
        (tmp_path / state / "novel" / "chapter 1").write_text("It was a dark and stormy night")
        (tmp_path / state / "notes").write_text("")
    before = contents(tmp_path)
    assert len(before) == 4
    Store(tmp_path)
    assert contents(tmp_path) == before


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
            env={**os.environ, "PYTHONPATH": str(Path(store_module.__file__).parents[3])},
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


@pytest.mark.parametrize("torn", [b"\xff123", bytes(65), TWO.encode(), b"\n" * 3, b"a" * 64])
def test_torn_ledger_line_hides_no_other(store: Store, torn: bytes) -> None:
    """Also one that a power cut left as zeros of its full length."""
    (store.folder / "spent").write_bytes(f"{TWO}\n".encode() + torn)
    prepare(store)
    store.claim(BINDING).close()
    for session in (ONE, TWO):
        with pytest.raises(SpentError):
            store.claim(BINDING, session)


def test_bad_input_gets_one_clear_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"batch '\.\./x': is named by a session id"):
        store.create(BINDING, "../x")
    with pytest.raises(StoreError, match="is named by a session id"):
        store.claim(BINDING, "fresh")
    with pytest.raises(StoreError, match="there is no fresh batch 1111"):
        store.claim(BINDING, ONE)
    with store.create(BINDING, ONE) as writer:
        for name in ("", "../up", "a/b", "x" * 101, ".hidden"):
            with pytest.raises(ValueError, match="use 1 to 100 letters"):
                writer.write(name, b"")
        with pytest.raises(ValueError, match=f"write at most {CHUNK_BYTES} at a time"):
            writer.write("big", np.zeros(CHUNK_BYTES + 1, np.uint8))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="choose another folder"):
        Store(tmp_path / "file")
    prepare(store)
    (store.folder / "fresh" / ONE / "manifest.json").write_text("[]")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        store.claim(BINDING, ONE)


def test_leaving_a_batch_closes_what_is_half_read(store: Store) -> None:
    prepare(store)
    with store.claim(BINDING) as batch:
        chunks = batch.read("layer1.tables")
        assert next(chunks) == CHUNKS[0]
    assert list(chunks) == []


def test_secrets_are_in_no_text(store: Store) -> None:
    planted = b"PLANTED-SECRET"
    with store.create(BINDING, ONE) as writer:
        key = (store.keys / f"{ONE}.key").read_bytes()
        writer.write("labels", planted)
        texts = [repr(writer), str(vars(writer)["_streams"]), repr(store)]
        writer.commit()
    with store.claim(BINDING) as batch:
        texts.append(repr(batch))
        with pytest.raises(StoreError) as caught:
            batch.read("nothing")
        texts.append(repr(caught.value))
    assert bytes(vars(batch)["_key"]) == bytes(vars(writer)["_key"]) == bytes(32)
    for text in texts:
        assert "PLANTED" not in text
        assert key.hex() not in text
        assert repr(key)[2:-1] not in text


@pytest.mark.parametrize("inner", ["", "keys", "fresh"])
def test_a_store_that_others_can_write_to_is_refused(inner: str, tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store" / inner).chmod(0o777)
    with pytest.raises(StoreError, match=r"others can write to it \(mode 777\); run: chmod go-w"):
        Store(tmp_path / "store")
