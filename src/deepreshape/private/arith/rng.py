"""The random stream that blinds, labels and seeds are drawn from.

The only assumption is that AES-256 is a pseudorandom permutation.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SEED_BYTES = 32

_ZEROS = np.zeros(1 << 16, np.uint8)
"""What a stream encrypts where only its bytes are wanted: few enough to stay in cache."""


class Randomness:
    """A stream of pseudorandom bytes: AES-256 in counter mode, from a zero counter, under a key used for nothing else.

    Args:
        seed: 32 bytes. Left out, they come from the operating system. Two streams of one seed are equal, which is what
            parties who share a seed want, and what nobody else may do.

    A stream moves forward only, and one thread may read it. A forked process would read the same bytes again as blinds
    and labels of its own, so only the process that made a stream may read it.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        key = os.urandom(SEED_BYTES) if seed is None else seed
        if len(key) != SEED_BYTES:
            raise ValueError(f"a random stream needs a seed of {SEED_BYTES} bytes, got {len(key)}")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def xor(self, data: NDArray[Any], out: NDArray[Any]) -> None:
        """Write ``data`` ^ the next bytes to ``out``; both contiguous, of one size.

        Raises:
            RuntimeError: in another process than the one that made the stream.
        """
        if os.getpid() != self._process:
            raise RuntimeError("this random stream belongs to another process; make one here, with another seed")
        self._stream.update_into(data.data.cast("B"), out.data.cast("B"))

    def fill(self, out: NDArray[Any]) -> None:
        """Write the next bytes over ``out``, a contiguous array."""
        flat = out.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _ZEROS.size):
            piece = flat[start : start + _ZEROS.size]
            self.xor(_ZEROS[: piece.size], piece)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """The next ``count`` bytes, as a writable uint8 array."""
        out = np.empty(count, np.uint8)
        self.fill(out)
        return out

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` 64-bit words."""
        return self.bytes(8 * count).view(np.uint64)

    def labels(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` wire labels, uint64 of shape (count, 2)."""
        return self.words(2 * count).reshape(count, 2)

    def seed(self) -> bytes:
        """A seed for a stream of its own."""
        return self.bytes(SEED_BYTES).tobytes()
