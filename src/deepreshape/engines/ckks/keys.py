"""Keys in files: a client's secret key, and the evaluation keys that a server keeps for its clients.

A secret key is one file that only its owner reads, bound to one circuit. Evaluation keys are public to the server; each
is a file of its own under the client's certificate and the circuit's digest, written whole or not at all, so that an
upload that broke off goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.public import PublicCircuit
from deepreshape.engines.ckks.scheme import Holder, Scheme
from deepreshape.private.errors import CapError, LocalError, StoreError
from deepreshape.private.files import check_owned, read_at_most, replace_file

__all__ = ["ClientKeys", "KeyCaps", "KeyShelf", "read_secret_key", "write_secret_key"]

_MAGIC = b"deepreshape ckks secret key 1\n\0\0"
_HASH_BYTES = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
DAY_S = 86400.0
WRITING_S = 3600.0
"""Far longer than one key, which has come whole, takes to be written."""
DIGEST_BYTES = 32


def write_secret_key(path: Path, public: PublicCircuit) -> None:
    """A new secret key for a circuit in a new file of mode 0600.

    Raises:
        LocalError: if there is a file already, or it cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise LocalError(f"{path}: exists and is not overwritten; move it away or choose another name")
    scheme = Scheme(public.parameters)
    body = _MAGIC + bytes.fromhex(public.digest) + wire.secret(scheme, Holder(scheme).saved_secret())
    try:
        replace_file(path, body + hashlib.sha256(body).digest())
    except OSError as error:
        raise LocalError(f"{path}: cannot write: {error.strerror}") from None


def read_secret_key(path: Path, public: PublicCircuit) -> Holder:
    """The holder of a secret key that was made for this circuit.

    Raises:
        LocalError: if it is none, others can read it, it is damaged, or it was made for another circuit.
    """
    scheme = Scheme(public.parameters)
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise LocalError(f"{path}: others can read this key (mode {mode:o}); run: chmod 600 {path}")
        data = read_at_most(path, 1 << 24)
    except FileNotFoundError:
        raise LocalError(f"{path}: no such file; `deepreshape private fhe keygen` makes one") from None
    except (OSError, ValueError) as error:
        raise LocalError(f"{path}: cannot read: {error}") from None
    if not data.startswith(_MAGIC):
        raise LocalError(f"{path}: not a secret key that `deepreshape private fhe keygen` made")
    body, digest = data[:-_HASH_BYTES], data[-_HASH_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise LocalError(f"{path}: cut short or damaged; make a new key and upload its evaluation keys")
    made_for = body[len(_MAGIC) : len(_MAGIC) + _HASH_BYTES].hex()
    if made_for != public.digest:
        raise LocalError(
            f"{path}: made for circuit {made_for[:16]}, not for {public.digest[:16]}; keygen with this client.json"
        )
    try:
        return Holder(scheme, wire.read_secret(scheme, body[len(_MAGIC) + _HASH_BYTES :]))
    except (ValueError, RuntimeError) as error:
        raise LocalError(f"{path}: {error}") from None


@dataclass(frozen=True)
class KeyCaps:
    """The most that there may be of evaluation keys.

    Attributes:
        bytes_each: of one client, all circuits counted.
        bytes_all: of all clients.
        days: after so many without a use, keys of a circuit are deleted.
    """

    bytes_each: int = 4 << 30
    bytes_all: int = 32 << 30
    days: int = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")


class KeyShelf:
    """All evaluation keys that a server keeps: ``folder/CLIENT/CIRCUIT/NAME``.

    Raises:
        StoreError: if others can write to the folder, or it cannot be made.
    """

    def __init__(self, folder: Path, caps: KeyCaps | None = None) -> None:
        self.folder, self.caps = folder, caps or KeyCaps()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_owned(folder, StoreError)
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}") from None

    def of(self, client: str, public: PublicCircuit) -> ClientKeys:
        """A client's, by the fingerprint of its certificate, for one circuit."""
        if not _FINGERPRINT.fullmatch(client):
            raise ValueError(f"client {client!r}: needs a fingerprint of 64 hexadecimal digits")
        return ClientKeys(self, self.folder / client / public.digest, public)

    def expire(self, now: float | None = None) -> int:
        """Delete what was not used for too long, and what a kill left half written; how many circuits' keys went."""
        now, gone = time.time() if now is None else now, 0
        for folder in self.folder.glob("*/*"):
            with suppress(OSError):
                if folder.stat().st_mtime < now - self.caps.days * DAY_S:
                    shutil.rmtree(folder)
                    gone += 1
        for path in self.folder.glob("*/*/*.new"):
            with suppress(OSError):
                if path.stat().st_mtime < now - WRITING_S:
                    path.unlink()
        return gone

    def held(self, client: str = "*") -> int:
        """Bytes of one client's keys, or of all."""
        return sum(size for path in self.folder.glob(f"{client}/*/*") if (size := _size(path)))


@dataclass(frozen=True)
class ClientKeys:
    """One client's evaluation keys for one circuit."""

    shelf: KeyShelf
    folder: Path
    public: PublicCircuit

    def names(self) -> frozenset[str]:
        """Of the keys that are here, whole."""
        if self.folder.is_dir():
            os.utime(self.folder)
        return frozenset(name for name in self.public.key_names if (self.folder / name).is_file())

    def make_room(self) -> None:
        """See, before a byte comes, that the keys that are missing fit under the caps.

        Raises:
            CapError: if they do not; says which cap.
        """
        self.shelf.expire()
        held, each = self.names(), wire.key_bytes(Scheme(self.public.parameters)) + DIGEST_BYTES
        more = each * (len(self.public.key_names) - len(held))
        for client, cap, name in (
            (self.folder.parent.name, self.shelf.caps.bytes_each, "bytes_each"),
            ("*", self.shelf.caps.bytes_all, "bytes_all"),
        ):
            if more and self.shelf.held(client) + more > cap:
                raise CapError(f"its evaluation keys need {more:,} bytes more, over the cap of {cap:,} ({name})")

    def read(self, name: str) -> bytes:
        """One key, as it came. One that is damaged is deleted, so that the client's next query uploads it again.

        Raises:
            StoreError: if it cannot be read, or is damaged: every answer under it would be wrong.
        """
        path = self.folder / name
        try:
            data = read_at_most(path, wire.key_bytes(Scheme(self.public.parameters)) + DIGEST_BYTES)
        except ValueError:  # it is longer, or no file
            data = b""
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; the client has to delete and upload its keys") from None
        key, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(key).digest() != digest:
            with suppress(OSError):
                path.unlink()
            raise StoreError(f"{path}: damaged, and deleted; the client's next query uploads it again")
        return key

    def write(self, name: str, data: memoryview) -> None:
        """Keep one key, durably, and its digest behind it; whatever else has its name goes.

        Raises:
            StoreError: if it cannot be written.
        """
        path = self.folder / name
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            replace_file(path, bytes(data) + hashlib.sha256(data).digest())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def delete(self) -> None:
        """All of them, and what an upload that broke off left."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
