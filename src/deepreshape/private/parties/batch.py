"""One batch of the store: being written, kept for a query, or claimed and read once."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deepreshape.private.errors import SpentError, StoreError
from deepreshape.private.files import sync_file, sync_folder, write_new
from deepreshape.private.parties.manifest import MANIFEST, NAME, Binding, canonical, short
from deepreshape.private.parties.streams import CHUNK_BYTES, KEY_BYTES, Stream
from deepreshape.private.transport.channel import Payload, as_bytes

if TYPE_CHECKING:
    from deepreshape.private.parties.store import Store


class Writer:
    """A batch being written, by one thread. Unless :meth:`commit` is reached inside ``with``, nothing of it remains."""

    def __init__(self, store: Store, folder: Path, binding: Binding, key: bytearray, hold: int) -> None:
        self._store = store
        self._folder = folder
        self._binding = binding
        self._key = key
        self._hold = hold
        self._streams: dict[str, Stream] = {}
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
            raise StoreError(f"{short(self._folder.name)} is complete: nothing can be added to it")
        if not NAME.fullmatch(name):
            raise ValueError(f"stream {name!r}: use 1 to 100 letters, digits, dots, dashes or underscores")
        view = as_bytes(chunk)
        if view.nbytes > CHUNK_BYTES:
            raise ValueError(f"stream {name!r}: a chunk of {view.nbytes} bytes; write at most {CHUNK_BYTES} at a time")
        if name not in self._streams:
            self._streams[name] = Stream(self._folder, self._binding, self._key, name)
        self._append(self._streams[name], view, last=False)

    def complete(self) -> None:
        """Close every stream and make the batch durable. It goes with this process all the same, until :meth:`commit`.

        Raises:
            StoreError: if it cannot be written; the batch is then discarded.
        """
        self._check_open()
        try:
            with reported(self._folder.name, self._store.folder):
                for stream in self._streams.values():
                    stream.append(memoryview(b""), last=True)
                    sync_file(stream.path)
                manifest = {**self._binding.fields(), "streams": sorted(self._streams)}
                write_new(self._folder / MANIFEST, canonical(manifest))
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
            with reported(self._folder.name, self._store.folder):
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

    def _append(self, stream: Stream, view: memoryview, *, last: bool) -> None:
        try:
            with reported(self._folder.name, self._store.folder):
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
            raise StoreError(f"{short(self._folder.name)} is not being written any more")


class ChosenBatch:
    """A fresh batch that nobody else can take until ``with`` is left; a claim inside takes it for its one use."""

    def __init__(self, store: Store, binding: Binding, session: str, hold: int) -> None:
        self.session = session
        self.binding = binding
        self._store = store
        self._hold: int | None = hold

    def claim(self) -> Batch:
        """As :meth:`~deepreshape.private.parties.store.Store.claim`, of this batch.

        Raises:
            SpentError: if it was claimed here before, or its key is gone.
            StoreError: if it is damaged, or the claim cannot be written.
        """
        if self._hold is None:
            raise SpentError(f"{short(self.session)} was claimed or let go before")
        return self._store.claim_kept(self)

    def hand_over(self) -> int:
        """The lock on its folder, which the batch that was claimed has from now on."""
        if self._hold is None:
            raise SpentError(f"{short(self.session)} was claimed or let go before")
        hold, self._hold = self._hold, None
        return hold

    def close(self) -> None:
        """Let others take it, unless it was claimed."""
        if self._hold is not None:
            hold, self._hold = self._hold, None
            fcntl.flock(hold, fcntl.LOCK_UN)  # closing is not enough: a child forked meanwhile has it open too
            os.close(hold)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


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
            raise SpentError(f"{short(self.session)} has no unread stream {name!r}: each is read once")
        self._unread.remove(name)
        chunks = Stream(self._folder, self._binding, self._key, name).chunks()
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


@contextmanager
def reported(session: str, folder: Path) -> Generator[None]:
    """Turn what the operating system says into one line about the batch."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder).free >> 20
        raise StoreError(f"{short(session)}: {error.strerror}; {free} MiB are free in {folder}") from None
