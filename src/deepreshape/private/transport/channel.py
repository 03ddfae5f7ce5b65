"""What two parties talk through: typed frames of known length, counted by layer and phase.

A protocol step never sees a socket. It is given a :class:`Channel`, says what kind of frame it sends, and asks for
frames whose length it already knows from the program. ``memory.py`` joins two threads of one process, ``tls.py`` two
processes over TLS.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.transport.ledger import Ledger

Payload = bytes | bytearray | memoryview | NDArray[np.generic]


class Frame(IntEnum):
    """The kinds of frame there are. A receiver always expects exactly one of them."""

    HELLO = 1
    BASE_OT = 2
    EXTENSION = 3
    CIPHERTEXTS = 4
    TABLES = 5
    LABELS = 6
    ROWS = 7
    SHARES = 8
    READY = 9
    ABORT = 10


class Channel(Protocol):
    """One end of a connection."""

    ledger: Ledger

    def send(self, kind: Frame, payload: Payload) -> None:
        """Send one frame. ``payload`` is any contiguous buffer; an array is sent as its raw little-endian bytes."""
        ...

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        """The next frame's payload: writable, of exactly ``nbytes`` bytes.

        Raises:
            ProtocolError: if the next frame is of another kind or length. Checked before anything is allocated.
        """
        ...

    def receive_into(self, kind: Frame, out: Payload) -> None:
        """The next frame's payload, written over ``out``, a writable contiguous buffer of exactly its length."""
        ...


def as_bytes(payload: Payload) -> memoryview:
    """``payload`` as one flat view of bytes, without a copy.

    Raises:
        TypeError: if it is not contiguous.
    """
    view = payload.data if isinstance(payload, np.ndarray) else memoryview(payload)
    return view.cast("B") if view.nbytes else memoryview(b"")


def as_writable(out: Payload) -> memoryview:
    """``out`` as one flat view of bytes to write to, without a copy.

    Raises:
        TypeError: if it is read-only or not contiguous.
    """
    view = as_bytes(out)
    if view.nbytes and view.readonly:
        raise TypeError(f"cannot receive into a read-only buffer of {view.nbytes} bytes")
    return view
