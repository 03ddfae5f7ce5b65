"""The encrypted files of a batch, in the form STREAM (Hoang, Reyhanitabar, Rogaway, Vizar, CRYPTO 2015)."""

from __future__ import annotations

import os
import struct
from collections.abc import Generator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from deepreshape.private.errors import StoreError
from deepreshape.private.files import write_all
from deepreshape.private.parties.manifest import Binding, canonical

CHUNK_BYTES = 1 << 26
"""The largest chunk. Reading and writing hold two copies of one chunk in memory."""
HEADER = struct.Struct("<I")
TAG_BYTES = 16
KEY_BYTES = 32


class Stream:
    """One encrypted file: chunks of (length, ciphertext, tag), closed by an empty one that is marked as the last."""

    def __init__(self, folder: Path, binding: Binding, key: bytearray, name: str) -> None:
        self.path = folder / f"{name}.stream"
        label = canonical(["deepreshape store", binding.fields(), folder.name, name])
        self._cipher = AESGCM(HKDF(SHA256(), KEY_BYTES, salt=None, info=label).derive(key))
        self._next = 0

    def _nonce(self, *, last: bool) -> bytes:
        number, self._next = self._next, self._next + 1
        return number.to_bytes(11, "big") + bytes([last])

    def append(self, view: memoryview, *, last: bool) -> None:
        """Seal a chunk and write it."""
        header = HEADER.pack(view.nbytes)
        sealed = self._cipher.encrypt(self._nonce(last=last), view, header)
        with open(self.path, "ab", buffering=0) as file:  # not kept open: a network has hundreds of streams
            write_all(file, header)
            write_all(file, sealed)

    def chunks(self) -> Generator[bytes]:
        """The chunks, one in memory at a time.

        Raises:
            StoreError: if the file is cut short, changed, or goes on after its end.
        """
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
