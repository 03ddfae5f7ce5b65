"""Both parties on this machine: a client that holds the keys, and a server in a process of its own.

The server's process is forked before the client makes its keys, so it never has them; bytes pass through a socket in
both directions. What is counted is what passed.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.circuit import LeveledCircuit
from deepreshape.engines.ckks.evaluate import EncodedCircuit
from deepreshape.engines.ckks.scheme import CkksEvaluator, Holder, Scheme

__all__ = ["DecryptedOutputs", "run_encrypted"]

Real = NDArray[np.float64]
_LENGTH = struct.Struct("<Q")
_LONGEST = 1 << 31


@dataclass(frozen=True, eq=False)
class DecryptedOutputs:
    """Outputs (N, ...) of all images, and what they took.

    Attributes:
        cpu_seconds: by step: keys (of both), encrypt, evaluate, decrypt.
        bytes: keys once, and up and down for all images.
        peak_rss_mib: of the server.
    """

    outputs: Real
    cpu_seconds: dict[str, float]
    bytes: dict[str, int]
    peak_rss_mib: float


class ServerError(RuntimeError):
    """The server's process ended early; the message says why."""


def run_encrypted(
    circuit: LeveledCircuit,
    images: Real,
    *,
    keep: bool = False,
    progress: Callable[[str], object] | None = None,
) -> DecryptedOutputs:
    """Answers, ``circuit.batch`` of them in a ciphertext.

    Args:
        circuit: of a network.
        images: real, (N, C, H, W).
        keep: encoded plaintexts between ciphertexts, for :attr:`Model.kept_bytes` of memory.
        progress: is told what is going on.

    Raises:
        ServerError: if the server's process fails.
    """
    near, far = socket.socketpair()
    child = os.fork()
    if not child:
        near.close()
        _exit_after(lambda: _serve(circuit, far, keep))
    far.close()
    try:
        with near:
            return _ask(circuit, images, near, progress or (lambda _: None))
    except (ConnectionError, EOFError) as error:
        raise ServerError("the server's process ended early (out of memory?)") from error
    finally:
        os.waitpid(child, 0)


def _ask(
    circuit: LeveledCircuit, images: Real, server: socket.socket, progress: Callable[[str], object]
) -> DecryptedOutputs:
    cpu = {"keys": 0.0, "encrypt": 0.0, "evaluate": 0.0, "decrypt": 0.0}
    sizes = {"keys": 0, "up": 0, "down": 0}
    since = time.process_time()
    holder = Holder(Scheme(circuit.parameters))
    for name, key in holder.evaluation_keys(circuit.rotation_steps):
        progress(f"key {name}")
        _send(server, name.encode())
        _send(server, key)
        sizes["keys"] += len(key)
    cpu["keys"] = time.process_time() - since
    outputs: list[Real] = []
    for start in range(0, len(images), circuit.batch):
        some = images[start : start + circuit.batch]
        since = time.process_time()
        up = holder.encrypt(circuit.pack(some))
        cpu["encrypt"] += time.process_time() - since
        _send(server, up)
        progress(f"image {start + 1} of {len(images)}")
        down = _receive(server)
        since = time.process_time()
        outputs.append(circuit.unpack(holder.decrypt(down), len(some)))
        cpu["decrypt"] += time.process_time() - since
        sizes["up"] += len(up)
        sizes["down"] += len(down)
    server.shutdown(socket.SHUT_WR)
    loading, evaluating, memory = struct.unpack("<3d", _receive(server))
    cpu["keys"] += loading
    cpu["evaluate"] = evaluating
    return DecryptedOutputs(np.concatenate(outputs), cpu, sizes, memory)


def _serve(circuit: LeveledCircuit, client: socket.socket, keep: bool) -> None:
    scheme = Scheme(circuit.parameters)
    evaluator, model = CkksEvaluator(scheme), EncodedCircuit(circuit, keep=keep)
    since = time.process_time()
    while evaluator.missing(circuit.rotation_steps):
        name = _receive(client).decode()
        evaluator.add_key(name, _receive(client), circuit.rotation_steps)
    loading, since = time.process_time() - since, time.process_time()
    while (up := _receive(client, ends=True)) is not None:
        _send(client, evaluator.saved(model.evaluate(evaluator, scheme.load_ciphertext(up, circuit.parameters.levels))))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _send(client, struct.pack("<3d", loading, time.process_time() - since, memory))


def _exit_after(work: Callable[[], None]) -> None:
    """Do the work of a forked process and end it, without what the parent would do at its own end."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _send(to: socket.socket, data: bytes) -> None:
    to.sendall(_LENGTH.pack(len(data)))
    to.sendall(data)


def _receive(source: socket.socket, *, ends: bool = False) -> Any:
    head = _exactly(source, _LENGTH.size, ends=ends)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > _LONGEST:
        raise ConnectionError(f"a message of {length:,} bytes")
    return _exactly(source, length, ends=False)


def _exactly(source: socket.socket, count: int, *, ends: bool) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = source.recv(min(count - len(data), 1 << 20))
        if not part:
            if ends and not data:
                return None
            raise EOFError("the peer hung up")
        data += part
    return bytes(data)
