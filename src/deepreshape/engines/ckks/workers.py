"""Work on ciphertexts by several processes: each is forked from this one, so that keys and inputs need not be sent."""

from __future__ import annotations

import os
import signal
import struct
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import BinaryIO, TypeVar

__all__ = ["exit_after", "shared_out"]

T = TypeVar("T")

_LENGTH = struct.Struct("<Q")


def shared_out(
    count: int, workers: int, work: Callable[[int], T], save: Callable[[T], bytes], load: Callable[[bytes], T]
) -> list[T]:
    """``[work(0), work(1), ... work(count - 1)]``, of which this process and its children do every so many-th.

    A child sends what it has when all of its share is done; without its parent it ends then.

    Args:
        count: how many.
        workers: processes, at most, this one with them; it has no threads.
        work: what is done for each number.
        save: a result as bytes.
        load: and back.

    Raises:
        RuntimeError: if a child fails or is killed.
    """
    workers = max(1, min(workers, count))
    results: dict[int, T] = {}
    with ExitStack() as children:
        pipes = [_start(children, range(first, count, workers), work, save) for first in range(1, workers)]
        results |= {number: work(number) for number in range(0, count, workers)}
        for first, pipe in enumerate(pipes, 1):
            results |= {number: load(_read(pipe)) for number in range(first, count, workers)}
    return [results[number] for number in range(count)]


def exit_after(work: Callable[[], object]) -> None:
    """Do the work of a forked process and end it, without what the parent would do at its own end."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _start(
    children: ExitStack, numbers: Sequence[int], work: Callable[[int], T], save: Callable[[T], bytes]
) -> BinaryIO:
    """Start a child on its share; the end of the pipe that its results come from."""
    near, far = os.pipe()
    child = os.fork()
    if not child:
        os.close(near)
        exit_after(lambda: _send(far, [save(work(number)) for number in numbers]))
    os.close(far)
    children.callback(_end, child)
    return children.enter_context(os.fdopen(near, "rb"))


def _end(child: int) -> None:
    """End a child that has sent all, or whose results nobody wants any more."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _send(pipe: int, results: Sequence[bytes]) -> None:
    with suppress(BrokenPipeError), os.fdopen(pipe, "wb") as end:
        for result in results:
            end.write(_LENGTH.pack(len(result)))
            end.write(result)


def _read(pipe: BinaryIO) -> bytes:
    head = pipe.read(_LENGTH.size)
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else -1
    result = pipe.read(max(0, length))
    if len(result) != length:
        raise RuntimeError("a process that worked on the ciphertext ended early (out of memory?)")
    return result
