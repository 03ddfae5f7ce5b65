"""Files that a crash leaves whole, that only their owner reads, and that are read only up to a known size."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put ``data`` at ``path``, durably and in one step; what stood there before, and its mode, are gone.

    Raises:
        OSError: if it cannot be written; the old file is then as it was.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # the umask may have taken bits away
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_at_most(path: Path, nbytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: if it has more than ``nbytes`` bytes, or is a pipe or device.
        OSError: if it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would be waited for
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if status.st_size > nbytes:
            raise ValueError(f"{path.name} has {status.st_size} bytes; at most {nbytes} are read")
        return file.read(status.st_size)


def read_json(path: Path, nbytes: int) -> Any:
    """What a JSON file holds, when nothing is known of who wrote it.

    Raises:
        ValueError: if it is larger than ``nbytes``, not JSON, or nested too deeply.
        OSError: if it cannot be read.
    """
    return parse_json(read_at_most(path, nbytes))


def parse_json(data: bytes) -> Any:
    """What JSON text holds.

    Raises:
        ValueError: if it is not JSON (NaN and infinities are not), or nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON number")


def check_owned(folder: Path, complain: Callable[[str], Exception]) -> None:
    """Refuse a folder into which another user of this machine could put files.

    Args:
        folder: that exists.
        complain: makes the error of a reason.
    """
    status = folder.stat()
    if status.st_mode & 0o022:
        raise complain(f"{folder}: others can write to it (mode {status.st_mode & 0o777:o}); run: chmod go-w {folder}")
    if status.st_uid not in (os.geteuid(), 0):
        raise complain(f"{folder}: it belongs to another user (uid {status.st_uid}); choose a folder of your own")


def printable(text: str) -> str:
    """``text`` without control characters: escape sequences from outside reach no terminal and no log."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def write_new(path: Path, data: bytes | bytearray) -> None:
    """A new file that only its owner reads, durably; its folder is not synchronised.

    Raises:
        OSError: if it is there, or cannot be written.
    """
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
        write_all(file, data)
        os.fsync(file.fileno())


def write_all(file: FileIO, data: bytes | bytearray) -> None:
    """An unbuffered file may take less than it is given, when the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def sync_file(path: Path) -> None:
    """Make what was written to a file durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of a .npy file, or those of a .npz file by name.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds anything else; pickles are never opened.
    """
    with path.open("rb") as file:
        try:
            loaded: Any = np.load(file, allow_pickle=False)
            if hasattr(loaded, "files"):
                return {name: loaded[name] for name in loaded.files}
            return cast(NDArray[Any], loaded)
        except Exception:  # NumPy's reader raises errors of many classes: tokenize.TokenError, zlib.error, BadZipFile
            raise ValueError(f"{path} is not an array of numbers that NumPy saved (.npy, .npz)") from None
