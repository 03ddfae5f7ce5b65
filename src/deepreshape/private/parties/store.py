"""Offline batches on disk that can be used once, whatever happens.

A batch is one party's half of the offline phase. It goes from *fresh* to *claimed* to *spent*, never back: a garbled
circuit that is evaluated twice gives both labels of its wires away. The states are folders and a ledger::

    writing/<id>/   being written, or complete and not confirmed by the peer; swept if its writer died
    fresh/<id>/     complete, may be claimed once
    claimed/<id>/   being used; its key is gone, so nobody can open it again; swept if its reader died
    damaged/<id>/   what had no readable manifest when the store was opened, without its key
    keys/<id>.key   the batch's own key, until it is claimed
    spent           one line for each batch ever claimed; only ever appended to

Both parties name a batch by an id that follows from that of the session that made it, and keep its halves in folders of
their own. To use one, the client names a fresh batch in the handshake, the server answers whether it holds the other
half, and when they agree each claims its half and tells the other so before the first online byte.

A claim writes the ledger, moves the batch and destroys its key, each made durable before the next, and only then
hands out a reader. A crash before the line is in the ledger leaves the batch fresh, a crash after it leaves it spent.

At rest every stream is encrypted under a key derived (HKDF, RFC 5869) from the batch's key, its binding and the
stream's name, with AES-256-GCM in the chunked, ordered form STREAM (Hoang, Reyhanitabar, Rogaway, Vizar, CRYPTO 2015):
the nonce is the chunk's number and a mark on the last one, so no chunk can be changed, moved or dropped unseen.

What a restored backup can do:

- the batch without its key, or with its key: refused, the ledger knows it;
- batch and key, while the ledger is lost or older: nothing *here* can tell. Keep ``keys`` out of backups and snapshots
  (it can be a folder in memory: then a reboot spends what is left), and never restore an older ``spent``. Both parties
  claim by the same id, so a peer whose own ledger is intact still refuses the session;
- whether a deleted key can be recovered from the medium is not in our hands: it is overwritten first, which journals
  and wear levelling may defeat.

It uses ``flock`` and atomic renames, so it needs a local POSIX file system, all in one volume except ``keys``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import struct
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from deepreshape.private.errors import SpentError, StoreError
from deepreshape.private.files import check_owned, read_at_most, read_json, sync_folder
from deepreshape.private.transport.channel import Payload, as_bytes

CHUNK_BYTES = 1 << 26
"""The largest chunk. Reading and writing hold two copies of one chunk in memory."""
HEADER = struct.Struct("<I")
LOCK_S = 60.0
"""Longest wait for another process to let go of the store, which takes it for moves and deletions only."""
RESERVE_S = 3.0
"""Longest wait for a server that has just died, and whose sessions are still ending."""
TAG_BYTES = 16
KEY_BYTES = 32
MANIFEST = "manifest.json"
MANIFEST_BYTES = 1 << 20
MOST_STREAMS = 5000
STATES = "writing", "fresh", "claimed"
ID = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Binding:
    """What a batch was made for; it opens for nothing else.

    Attributes:
        program: digest of the program.
        peer: fingerprint of the other party's certificate.
        parameters: public settings, as agreed in the handshake.
    """

    program: str
    peer: str
    parameters: Mapping[str, int | str]

    def fields(self) -> dict[str, object]:
        """All of it, as it is written beside the batch."""
        return {"program": self.program, "peer": self.peer, "parameters": dict(self.parameters)}


class Store:
    """The batches of one party in one folder; any number of processes and threads may open it at once.

    Args:
        folder: where batches and the ledger of spent ones lie; made if missing, readable by its owner only.
        keys: where the keys lie, ``folder / "keys"`` unless given; best where no backup reaches.

    Attributes:
        damaged: the batches that were set aside when it was opened, since their manifests are not as one is written.

    Raises:
        StoreError: if a folder cannot be used, or other users can write to it.
    """

    def __init__(self, folder: Path, keys: Path | None = None) -> None:
        self.folder = folder
        self.keys = keys or folder / "keys"
        try:
            for path in (folder, self.keys, *(folder / state for state in STATES)):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_owned(path, StoreError)
            self._peer_of: dict[str, str] = {}  # of the batches that are fresh; a manifest never changes
            with self._locked():
                self.damaged = self._set_damaged_aside()
                self._sweep()
        except OSError as error:
            raise StoreError(f"store {folder}: {error.strerror}; make room there or choose another folder") from None

    def create(self, binding: Binding, session: str) -> Writer:
        """Start a batch, named by the id of the session that makes it (64 hexadecimal digits).

        Raises:
            StoreError: if there is or was a batch of that name, or it cannot be written.
        """
        _check_id(session)
        folder = self.folder / "writing" / session
        key = bytearray(secrets.token_bytes(KEY_BYTES))
        with self._locked(), _reported(session, self.folder):
            if session in self._spent() or any((self.folder / state / session).exists() for state in STATES):
                raise SpentError(f"{_short(session)}: there is or was a batch of this session; start a new session")
            folder.mkdir(mode=0o700)
            hold = _hold(folder)
            try:
                _write_new(self._key(session), key)
                sync_folder(self.keys)
            except OSError:
                os.close(hold)
                with suppress(OSError):
                    self._discard(session)
                raise
        return Writer(self, folder, binding, key, hold)

    def fresh(self, binding: Binding) -> tuple[str, ...]:
        """The batches that can be claimed for ``binding``, oldest first."""
        spent = self._spent()
        found: list[tuple[float, str]] = []
        for folder in (self.folder / "fresh").iterdir():
            with suppress(StoreError, OSError):  # one that is broken, or was claimed meanwhile, is not there
                _read_streams(folder, binding)
                if folder.name not in spent and self._key(folder.name).exists():
                    found.append((folder.stat().st_mtime, folder.name))
        return tuple(session for _, session in sorted(found))

    def count(self, binding: Binding) -> int:
        """How many batches can be claimed for ``binding``."""
        return len(self.fresh(binding))

    def held(self) -> Counter[str]:
        """How many fresh batches lie here by the peer's fingerprint, whatever the program."""
        return Counter(peer for _, peer in self._peers())

    def sweep(self) -> None:
        """Destroy what processes that have died were writing or using.

        Raises:
            StoreError: if another process holds the store's lock for too long.
        """
        with self._locked():
            self._sweep()

    def expire(self, age_s: float) -> int:
        """Spend all fresh batches that are older than ``age_s`` seconds, unused; their number is returned.

        Raises:
            StoreError: if the ledger cannot be written.
        """
        with self._locked():
            limit = time.time() - age_s
            old = [folder.name for folder, _ in list(self._peers()) if folder.stat().st_mtime < limit]
            for session in old:
                with _reported(session, self.folder):
                    self._record(session)
                    self._discard(session, "fresh")
        return len(old)

    @contextmanager
    def reserved(self) -> Generator[None]:
        """Keep the store for one server and the processes that it forks.

        Raises:
            StoreError: if another server has it.
        """
        with open(self._open_lock("serving"), "r+b") as file:
            _lock(file, RESERVE_S, f"store {self.folder}: another server is serving from it; give each a store")
            yield

    def _peers(self) -> Iterator[tuple[Path, str]]:
        """Every fresh batch, and for which peer it was made. Each manifest is read once."""
        before, self._peer_of = self._peer_of, {}
        for folder in (self.folder / "fresh").iterdir():
            with suppress(StoreError):  # one that is broken, or was claimed meanwhile, cannot be claimed
                self._peer_of[folder.name] = before.get(folder.name) or _read_manifest(folder)[0].peer
                yield folder, self._peer_of[folder.name]

    def claim(self, binding: Binding, session: str | None = None) -> Batch:
        """Take a batch for its one use. When this returns the batch is spent, durably.

        Args:
            binding: what it must have been made for.
            session: which batch; the oldest unless given.

        Raises:
            SpentError: if it was claimed before, here or by another process, or its key is gone.
            StoreError: if there is none, it was made for something else, or the claim cannot be written.
        """
        with self._locked():
            if session is None:
                session = next(iter(self.fresh(binding)), None)
                if session is None:
                    raise StoreError("no offline batch is left for this program, peer and parameters; prepare some")
            _check_id(session)
            if session in self._spent():
                raise SpentError(f"{_short(session)} was claimed before, and no copy of it can be used again")
            fresh, claimed = (self.folder / state / session for state in ("fresh", "claimed"))
            streams = _read_streams(fresh, binding)
            with _reported(session, self.folder):
                key = self._read_key(session)
                self._record(session)
                fresh.rename(claimed)
                sync_folder(fresh.parent)
                sync_folder(claimed.parent)
                self._destroy_key(session)
                return Batch(self, claimed, binding, streams, key, _hold(claimed))

    def commit(self, folder: Path, hold: int) -> None:
        """Make a complete batch fresh and let go of it; called by its writer."""
        with self._locked():
            folder.rename(self.folder / "fresh" / folder.name)
            sync_folder(self.folder / "fresh")
            sync_folder(folder.parent)
            fcntl.flock(hold, fcntl.LOCK_UN)  # before anyone can claim it, and for children forked meanwhile too

    def discard(self, session: str) -> None:
        """Destroy a batch and its key; called by its writer or reader."""
        with self._locked(), _reported(session, self.folder):
            self._discard(session)

    def _discard(self, session: str, *states: str) -> None:
        try:
            self._destroy_key(session)
        finally:
            for state in states or STATES:
                shutil.rmtree(self.folder / state / session, ignore_errors=True)

    def _set_damaged_aside(self) -> tuple[str, ...]:
        """Move fresh batches that cannot be read out of the way, and destroy their keys; their ids are returned."""
        names: list[str] = []
        for folder in sorted((self.folder / "fresh").iterdir()):
            if not ID.fullmatch(folder.name):
                continue
            try:
                _read_manifest(folder)
            except StoreError:
                aside = self.folder / "damaged" / folder.name
                aside.parent.mkdir(mode=0o700, exist_ok=True)
                self._destroy_key(folder.name)
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                names.append(folder.name)
        return tuple(names)

    def _sweep(self) -> None:
        """Destroy what a dead process was writing or using, and copies of what is spent."""
        for state in ("writing", "claimed"):
            for folder in (self.folder / state).iterdir():
                if not ID.fullmatch(folder.name):
                    continue  # not ours: whoever opens a store in the wrong folder loses nothing there
                with suppress(BlockingIOError):  # its process lives
                    hold = _hold(folder)
                    try:
                        self._discard(folder.name, state)
                    finally:
                        os.close(hold)
        for session in self._spent():
            if self._key(session).exists() or (self.folder / "fresh" / session).exists():
                self._discard(session, "fresh")  # its original may still be in use

    def _open_lock(self, name: str) -> int:
        try:
            return os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"store {self.folder}: cannot be locked: {error.strerror}") from None

    def _key(self, session: str) -> Path:
        return self.keys / f"{session}.key"

    def _read_key(self, session: str) -> bytearray:
        try:
            key = bytearray(read_at_most(self._key(session), KEY_BYTES))
        except FileNotFoundError:
            raise SpentError(f"{_short(session)} has no key any more: it was used, or restored from a copy") from None
        except ValueError:
            raise StoreError(f"{_short(session)}: its key has more than {KEY_BYTES} bytes") from None
        if len(key) != KEY_BYTES:
            raise StoreError(f"{_short(session)}: its key has {len(key)} bytes instead of {KEY_BYTES}")
        return key

    def _destroy_key(self, session: str) -> None:
        path = self._key(session)
        with suppress(FileNotFoundError):
            with open(path, "r+b") as file:
                file.write(bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            sync_folder(self.keys)

    def _spent(self) -> frozenset[str]:
        with suppress(FileNotFoundError):
            lines = (self.folder / "spent").read_bytes().decode("ascii", "replace").split("\n")
            return frozenset(line for line in lines if ID.fullmatch(line))
        return frozenset()

    def _record(self, session: str) -> None:
        """Append to the ledger, durably. Whatever a crash or a full disk left at its end, this line stands alone."""
        with open(self.folder / "spent", "ab", buffering=0) as file:
            _write_all(file, f"\n{session}\n".encode("ascii"))
            os.fsync(file.fileno())
        sync_folder(self.folder)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Alone with the store, among all threads and processes."""
        with open(self._open_lock("lock"), "r+b") as file:
            _lock(
                file, LOCK_S, f"store {self.folder}: another process has held its lock for {LOCK_S:g} s; is it stuck?"
            )
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: a child forked meanwhile has it open too


class Writer:
    """A batch being written, by one thread. Unless :meth:`commit` is reached inside ``with``, nothing of it remains."""

    def __init__(self, store: Store, folder: Path, binding: Binding, key: bytearray, hold: int) -> None:
        self._store = store
        self._folder = folder
        self._binding = binding
        self._key = key
        self._hold = hold
        self._streams: dict[str, _Stream] = {}
        self._open = True
        self._complete = False

    def write(self, name: str, chunk: Payload) -> None:
        """Append one chunk to the stream ``name``; it is read back as one chunk.

        Raises:
            ValueError: if the name is unusable, or the chunk larger than ``CHUNK_BYTES``.
            StoreError: if it cannot be written; the batch is then discarded.
        """
        self._check_open()
        if self._complete:
            raise StoreError(f"{_short(self._folder.name)} is complete: nothing can be added to it")
        if not NAME.fullmatch(name):
            raise ValueError(f"stream {name!r}: use 1 to 100 letters, digits, dots, dashes or underscores")
        view = as_bytes(chunk)
        if view.nbytes > CHUNK_BYTES:
            raise ValueError(f"stream {name!r}: a chunk of {view.nbytes} bytes; write at most {CHUNK_BYTES} at a time")
        if name not in self._streams:
            self._streams[name] = _Stream(self._folder, self._binding, self._key, name)
        self._append(self._streams[name], view, last=False)

    def complete(self) -> None:
        """Close every stream and make the batch durable. It goes with this process all the same, until :meth:`commit`.

        Raises:
            StoreError: if it cannot be written; the batch is then discarded.
        """
        self._check_open()
        try:
            with _reported(self._folder.name, self._store.folder):
                for stream in self._streams.values():
                    stream.append(memoryview(b""), last=True)
                    _sync_file(stream.path)
                manifest = {**self._binding.fields(), "streams": sorted(self._streams)}
                _write_new(self._folder / MANIFEST, _canonical(manifest))
                sync_folder(self._folder)
        except StoreError:
            self._close(discard=True)
            raise
        self._complete = True

    def commit(self) -> None:
        """Make the batch fresh, durably, after :meth:`complete` unless that was done.

        Raises:
            StoreError: if it cannot be written; the batch is then discarded.
        """
        if not self._complete:
            self.complete()
        self._check_open()
        try:
            with _reported(self._folder.name, self._store.folder):
                self._store.commit(self._folder, self._hold)
        except StoreError:
            self._close(discard=True)
            raise
        self._close(discard=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._open:
            self._close(discard=True)

    def _append(self, stream: _Stream, view: memoryview, *, last: bool) -> None:
        try:
            with _reported(self._folder.name, self._store.folder):
                stream.append(view, last=last)
        except StoreError:
            self._close(discard=True)
            raise

    def _close(self, *, discard: bool) -> None:
        self._open = False
        self._streams.clear()
        self._key[:] = bytes(KEY_BYTES)
        try:
            if discard:
                self._store.discard(self._folder.name)
        finally:
            os.close(self._hold)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"{_short(self._folder.name)} is not being written any more")


class Batch:
    """A claimed batch, for one thread: each stream is read once, chunk by chunk; leaving ``with`` destroys it."""

    def __init__(
        self, store: Store, folder: Path, binding: Binding, streams: frozenset[str], key: bytearray, hold: int
    ) -> None:
        self.session = folder.name
        self._store = store
        self._folder = folder
        self._binding = binding
        self._unread = set(streams)
        self._reading: list[Generator[bytes]] = []
        self._key = key
        self._hold: int | None = hold

    def read(self, name: str) -> Iterator[bytes]:
        """The chunks of a stream, as they were written; one is in memory at a time.

        Raises:
            SpentError: if the stream was read before, or is not there.
            StoreError: while iterating, if the file is cut short, changed or goes on after its end.
        """
        if self._hold is None or name not in self._unread:
            raise SpentError(f"{_short(self.session)} has no unread stream {name!r}: each is read once")
        self._unread.remove(name)
        chunks = _Stream(self._folder, self._binding, self._key, name).chunks()
        self._reading.append(chunks)
        return chunks

    def close(self) -> None:
        """Destroy what is left of the batch."""
        if self._hold is not None:
            self._unread.clear()
            for chunks in self._reading:
                chunks.close()
            self._key[:] = bytes(KEY_BYTES)
            hold, self._hold = self._hold, None
            try:
                self._store.discard(self._folder.name)
            finally:
                os.close(hold)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Stream:
    """One encrypted file: chunks of (length, ciphertext, tag), closed by an empty one that is marked as the last."""

    def __init__(self, folder: Path, binding: Binding, key: bytearray, name: str) -> None:
        self.path = folder / f"{name}.stream"
        label = _canonical(["deepreshape store", binding.fields(), folder.name, name])
        self._cipher = AESGCM(HKDF(SHA256(), KEY_BYTES, salt=None, info=label).derive(key))
        self._next = 0

    def _nonce(self, *, last: bool) -> bytes:
        number, self._next = self._next, self._next + 1
        return number.to_bytes(11, "big") + bytes([last])

    def append(self, view: memoryview, *, last: bool) -> None:
        header = HEADER.pack(view.nbytes)
        sealed = self._cipher.encrypt(self._nonce(last=last), view, header)
        with open(self.path, "ab", buffering=0) as file:  # not kept open: a network has hundreds of streams
            _write_all(file, header)
            _write_all(file, sealed)

    def chunks(self) -> Generator[bytes]:
        try:
            with open(self.path, "rb") as file:
                left = os.fstat(file.fileno()).st_size
                while left:
                    header = file.read(HEADER.size)
                    (nbytes,) = HEADER.unpack(header)
                    left -= HEADER.size + nbytes + TAG_BYTES
                    if left < 0 or nbytes > CHUNK_BYTES:
                        raise ValueError
                    chunk = self._cipher.decrypt(self._nonce(last=not left), file.read(nbytes + TAG_BYTES), header)
                    if left:
                        yield chunk
                    elif chunk:
                        raise ValueError
                if not self._next:
                    raise ValueError
        except (ValueError, struct.error, InvalidTag):
            raise StoreError(f"{self.path.name}: chunk {self._next} is damaged or missing; the batch is lost") from None
        except OSError as error:
            raise StoreError(f"{self.path.name}: cannot be read: {error.strerror}; the batch is lost") from None


def _read_manifest(folder: Path) -> tuple[Binding, frozenset[str]]:
    """What a fresh batch was made for, and the names of its streams.

    Raises:
        StoreError: if there is no such batch, or its manifest is not of the form, sizes and types that one is written
            in: whoever wrote it is not known.
    """
    try:
        content: object = read_json(folder / MANIFEST, MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"there is no fresh {_short(folder.name)} here") from None
    except OSError as error:
        raise StoreError(f"{_short(folder.name)}: its {MANIFEST} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{_short(folder.name)}: its {MANIFEST} is damaged: {error}") from None
    fields = cast(dict[str, object], content) if isinstance(content, dict) else {}
    program, peer = fields.get("program"), fields.get("peer")
    parameters, streams = fields.get("parameters"), fields.get("streams")
    if not (
        isinstance(program, str)
        and isinstance(peer, str)
        and isinstance(parameters, dict)
        and isinstance(streams, list)
    ):
        raise StoreError(f"{_short(folder.name)}: its {MANIFEST} is damaged: fields are missing or of other types")
    parameters, streams = cast(dict[str, object], parameters), cast(list[object], streams)
    plain = all(PARAMETER.fullmatch(name) and isinstance(value, int | str) for name, value in parameters.items())
    named = all(isinstance(name, str) and NAME.fullmatch(name) for name in streams)
    if not (plain and named and ID.fullmatch(program) and ID.fullmatch(peer) and len(streams) <= MOST_STREAMS):
        raise StoreError(f"{_short(folder.name)}: its {MANIFEST} is damaged: a value is not of its form")
    binding = Binding(program, peer, cast(dict[str, int | str], parameters))
    return binding, frozenset(cast(list[str], streams))


def _read_streams(folder: Path, binding: Binding) -> frozenset[str]:
    """The names of a fresh batch's streams, if it was made for ``binding``."""
    written, streams = _read_manifest(folder)
    theirs = written.fields()
    different = [name for name, value in binding.fields().items() if _canonical(theirs[name]) != _canonical(value)]
    if different:
        raise StoreError(f"{_short(folder.name)} was made for another {' and '.join(different)}")
    return streams


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _check_id(session: str) -> None:
    if not ID.fullmatch(session):
        raise StoreError(f"batch {session!r}: is named by a session id, 64 hexadecimal digits")


def _short(session: str) -> str:
    return f"batch {session[:16]}"


@contextmanager
def _reported(session: str, folder: Path) -> Generator[None]:
    """Turn what the operating system says into one line about the batch."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder).free >> 20
        raise StoreError(f"{_short(session)}: {error.strerror}; {free} MiB are free in {folder}") from None


def _lock(file: IO[bytes], wait_s: float, otherwise: str) -> None:
    """Lock a file for as long as it is open here or in a child, unless another has it longer than ``wait_s``."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError(otherwise) from None
            time.sleep(0.005)


def _hold(folder: Path) -> int:
    """Lock a batch's folder for as long as this process lives or until the descriptor returned is closed.

    Raises:
        BlockingIOError: if another holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write_new(path: Path, data: bytes | bytearray) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
        _write_all(file, data)
        os.fsync(file.fileno())


def _write_all(file: FileIO, data: bytes | bytearray) -> None:
    """An unbuffered file may take less than it is given, when the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
