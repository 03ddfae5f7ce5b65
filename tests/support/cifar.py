"""CIFAR files as their authors wrote them: pickles of Python 2, whose bytes have an opcode Python 3 never writes."""

from __future__ import annotations

import numpy as np


def python_2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A file of uint8 (N, 3072) pixels and as many fine labels below 128, N below 128."""
    data = pixels.tobytes()
    return b"".join(
        (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K",
            bytes([len(pixels)]),
            b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + len(data).to_bytes(4, "little") + data + b"tbU\x0bfine_labels](",
            b"".join(b"K" + bytes([label]) for label in labels),
            b"eu.",
        )
    )
