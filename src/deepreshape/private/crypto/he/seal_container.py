"""Objects of Microsoft SEAL as bytes, and back (``tenseal.sealapi``, serialisation format 4.3).

The binding saves to paths and loads from paths only. Here that is an anonymous memory file, which no disk sees, and
through which plaintexts pass too. Where the system has none (:data:`MEMORY_FILES`), it is a file in a private temporary
folder that is overwritten and deleted at once; only ciphertexts, public keys and floods pass through that. No secret
key passes through either.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import zstandard
from tenseal import sealapi  # pyright: ignore[reportMissingTypeStubs]

from deepreshape.private.crypto.he.residues import Buffer

seal: Any = sealapi

MEMORY_FILES = hasattr(os, "memfd_create")
"""Whether nothing passes through a file system."""
SEED_BYTES = 64
_FORMAT = (4, 3)
_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version, compression, reserved, size in all
_MAGIC = 0xA15E
_BLAKE2XB = 1


@lru_cache
def check_library() -> None:
    """Raise ImportError unless the library writes the format that this file writes."""
    if sys.byteorder != "little":
        raise ImportError("private inference needs a little-endian machine: SEAL's containers are native-endian")
    magic, _, *form, _, _, _ = _HEADER.unpack_from(saved_container(seal.Plaintext("1")))
    if magic != _MAGIC or tuple(form) != _FORMAT:
        raise ImportError(wrong_library(f"serialisation format {'.'.join(map(str, form))}"))


def wrong_library(difference: str) -> str:
    """What to say of a library that differs from the tested one."""
    return (
        f"tenseal {version('tenseal')} brings a SEAL with {difference}; this release was tested with tenseal 0.3.18 "
        f"(SEAL serialisation format {_FORMAT[0]}.{_FORMAT[1]}): pip install tenseal==0.3.18"
    )


@contextmanager
def _scratch() -> Generator[str]:
    """Path of a file for SEAL to load from or save to: in memory where the system can, else in a private folder."""
    if MEMORY_FILES:
        fd = os.memfd_create("seal", os.MFD_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.TemporaryDirectory(prefix="deepreshape-") as folder:
            path = os.path.join(folder, "object")
            try:
                yield path
            finally:
                with open(path, "r+b") as file:
                    file.write(bytes(os.path.getsize(path)))


def load_into(target: Any, context: Any, data: Buffer) -> Any:
    """``target`` with the content of a whole container.

    Raises:
        RuntimeError, ValueError: if SEAL refuses it.
    """
    with _scratch() as path:
        with open(path, "wb", buffering=0) as file:
            file.write(data)
        target.load(context, path)
    return target


def saved_container(source: Any) -> bytes:
    """The container that SEAL saves of an object."""
    with _scratch() as path:
        source.save(path)
        with open(path, "rb", buffering=0) as file:
            return file.read()


def content_of(saved: bytes) -> bytes:
    """What is in a container, without its header and compression."""
    *_, compression, _, _ = _HEADER.unpack_from(saved)
    body = memoryview(saved)[_HEADER.size :]
    return zstandard.ZstdDecompressor().decompressobj().decompress(body) if compression else bytes(body)


def container_header(nbytes: int) -> bytes:
    """Of a container with so many bytes of content, not compressed."""
    return _HEADER.pack(_MAGIC, _HEADER.size, *_FORMAT, 0, 0, _HEADER.size + nbytes)


def container(members: Sequence[Buffer]) -> bytes:
    """A container of these."""
    return b"".join([container_header(sum(map(len, members))), *members])


GENERATOR = container_header(1 + SEED_BYTES) + bytes([_BLAKE2XB])
"""What precedes the seed of a ciphertext's second part."""


_UNIT_SCALE = struct.pack("<d", 1.0)


def ciphertext_head(parms_id: Sequence[int], ntt: bool, degree: int, primes: int) -> bytes:
    """What precedes the residues' array in a ciphertext of two parts."""
    return struct.pack("<4Q?3Q", *parms_id, ntt, 2, degree, primes) + _UNIT_SCALE + struct.pack("<Q", 1)


def plaintext_head(parms_id: Sequence[int], words: int) -> bytes:
    """All that precedes the coefficients of a plaintext, or its residues where ``parms_id`` is not zero."""
    return struct.pack("<4QQ", *parms_id, words) + _UNIT_SCALE + array_header(words)


def array_header(words: int) -> bytes:
    """What precedes so many 64-bit words."""
    return container_header(8 + 8 * words) + struct.pack("<Q", words)
