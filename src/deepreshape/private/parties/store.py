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

A query keeps its batch from the moment it is chosen: the folder is locked, so that another query of the same party
takes the next one, and the batch cannot be spent under the hands of the two parties while they agree on it.

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
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO

from deepreshape.private.errors import SpentError, StoreError
from deepreshape.private.files import check_owned, read_at_most, sync_folder, write_all, write_new
from deepreshape.private.parties.batch import Batch, ChosenBatch, Writer, reported
from deepreshape.private.parties.manifest import ID, Binding, check_id, fits_one, read_manifest, read_streams, short
from deepreshape.private.parties.streams import KEY_BYTES

LOCK_S = 60.0
"""Longest wait for another process to let go of the store, which takes it for moves and deletions only."""
RESERVE_S = 3.0
"""Longest wait for a server that has just died, and whose sessions are still ending."""
STATES = "writing", "fresh", "claimed"


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
        check_id(session)
        folder = self.folder / "writing" / session
        key = bytearray(secrets.token_bytes(KEY_BYTES))
        with self._locked(), reported(session, self.folder):
            if session in self._spent() or any((self.folder / state / session).exists() for state in STATES):
                raise SpentError(f"{short(session)}: there is or was a batch of this session; start a new session")
            folder.mkdir(mode=0o700)
            hold = _hold(folder)
            try:
                write_new(self._key(session), key)
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
        batches: list[tuple[float, str]] = []
        for folder in (self.folder / "fresh").iterdir():
            with suppress(StoreError, OSError):  # one that is broken, or was claimed meanwhile, is not there
                read_streams(folder, binding)
                if folder.name not in spent and self._key(folder.name).stat().st_size == KEY_BYTES:
                    batches.append((folder.stat().st_mtime, folder.name))
        return tuple(session for _, session in sorted(batches))

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
            return sum(self._spend_unused(session) for session in old)

    def make_room(self, peer: str, count: int, bindings: Collection[Binding], age_s: float) -> int:
        """Spend so many fresh batches of a peer, unused: the oldest of those that fit none of ``bindings``, then of
        those that are older than ``age_s`` seconds.

        Args:
            peer: fingerprint of its certificate.
            count: how many; if there are not so many, all stay.
            bindings: what batches can be used for at present.
            age_s: how long one that can be used stays in any case.

        Returns:
            How many were spent; one that a query keeps is not.

        Raises:
            StoreError: if the ledger cannot be written.
        """
        with self._locked():
            limit = time.time() - age_s
            of_peer = [folder for folder, other in list(self._peers()) if other == peer]
            aged = sorted((fits_one(folder, bindings), folder.stat().st_mtime, folder.name) for folder in of_peer)
            old = [session for is_usable, written, session in aged if not is_usable or written < limit]
            return len(list(islice(filter(self._spend_unused, old), count))) if len(old) >= count else 0

    def _spend_unused(self, session: str) -> bool:
        """Spend a fresh batch, unless a query keeps it."""
        try:
            hold = _hold(self.folder / "fresh" / session)
        except BlockingIOError:
            return False
        try:
            with reported(session, self.folder):
                self._record(session)
                self._discard(session, "fresh")
        finally:
            os.close(hold)
        return True

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
                self._peer_of[folder.name] = before.get(folder.name) or read_manifest(folder)[0].peer
                yield folder, self._peer_of[folder.name]

    def choose(self, binding: Binding) -> ChosenBatch | None:
        """Keep the oldest fresh batch that nobody else keeps; None if there is none.

        Raises:
            StoreError: if another process holds the store's lock for too long.
        """
        with self._locked():
            return self._oldest(binding)

    def keep(self, binding: Binding, session: str) -> ChosenBatch:
        """Keep this batch for one use.

        Raises:
            SpentError: if it was claimed before, here or by another process.
            StoreError: if it is not here, was made for something else, or another query keeps it.
        """
        with self._locked():
            return self._keep(binding, session)

    def claim(self, binding: Binding, session: str | None = None) -> Batch:
        """Take a batch for its one use. When this returns the batch is spent, durably.

        Args:
            binding: what it must have been made for.
            session: which batch; the oldest that nobody keeps unless given.

        Raises:
            SpentError: if it was claimed before, here or by another process, or its key is gone.
            StoreError: if there is none, it was made for something else, another query keeps it, or the claim cannot be
                written.
        """
        with self._locked():
            choice = self._oldest(binding) if session is None else self._keep(binding, session)
            if choice is None:
                raise StoreError("no offline batch is left for this program, peer and parameters; prepare some")
            with choice:
                return self._claim(choice)

    def claim_kept(self, choice: ChosenBatch) -> Batch:
        """Claim the batch that a choice keeps; called by it."""
        with self._locked():
            return self._claim(choice)

    def _oldest(self, binding: Binding) -> ChosenBatch | None:
        for session in self.fresh(binding):
            with suppress(BlockingIOError):  # another query keeps it
                return ChosenBatch(self, binding, session, _hold(self.folder / "fresh" / session))
        return None

    def _keep(self, binding: Binding, session: str) -> ChosenBatch:
        self._check_fresh(binding, session)
        try:
            return ChosenBatch(self, binding, session, _hold(self.folder / "fresh" / session))
        except BlockingIOError:
            raise StoreError(f"{short(session)}: another query is about to use it; ask for another") from None

    def _claim(self, choice: ChosenBatch) -> Batch:
        session = choice.session
        streams = self._check_fresh(choice.binding, session)
        fresh, claimed = (self.folder / state / session for state in ("fresh", "claimed"))
        with reported(session, self.folder):
            key = self._read_key(session)
            self._record(session)
            fresh.rename(claimed)
            sync_folder(fresh.parent)
            sync_folder(claimed.parent)
            self._destroy_key(session)
            return Batch(self, claimed, choice.binding, streams, key, choice.hand_over())

    def _check_fresh(self, binding: Binding, session: str) -> frozenset[str]:
        """The streams of a batch that is here and was never claimed."""
        check_id(session)
        if session in self._spent():
            raise SpentError(f"{short(session)} was claimed before, and no copy of it can be used again")
        return read_streams(self.folder / "fresh" / session, binding)

    def commit(self, folder: Path, hold: int) -> None:
        """Make a complete batch fresh and let go of it; called by its writer."""
        with self._locked():
            folder.rename(self.folder / "fresh" / folder.name)
            sync_folder(self.folder / "fresh")
            sync_folder(folder.parent)
            fcntl.flock(hold, fcntl.LOCK_UN)  # before anyone can claim it, and for children forked meanwhile too

    def discard(self, session: str) -> None:
        """Destroy a batch and its key; called by its writer or reader."""
        with self._locked(), reported(session, self.folder):
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
                read_manifest(folder)
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
            raise SpentError(f"{short(session)} has no key any more: it was used, or restored from a copy") from None
        except ValueError:
            raise StoreError(f"{short(session)}: its key has more than {KEY_BYTES} bytes") from None
        if len(key) != KEY_BYTES:
            raise StoreError(f"{short(session)}: its key has {len(key)} bytes instead of {KEY_BYTES}")
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
            write_all(file, f"\n{session}\n".encode("ascii"))
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
