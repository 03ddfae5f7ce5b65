"""Both parties on this machine: a client that holds the keys, and a server in a process of its own.

The server's process is forked before the client makes its keys, so it never has them; bytes pass through a socket in
both directions. What is counted is what passed.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.circuit import LeveledCircuit
from deepreshape.engines.ckks.evaluate import EncodedCircuit
from deepreshape.engines.ckks.exchange import NoKeys, Requester, answer_requests
from deepreshape.engines.ckks.scheme import Cipher, CkksEvaluator, Holder, Scheme
from deepreshape.private.errors import PrivateError
from deepreshape.private.transport.channel import Frame, Payload, as_bytes

__all__ = ["DecryptedOutputs", "run_encrypted"]

Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DecryptedOutputs:
    """Outputs (N, ...) of all images, and what they took.

    Attributes:
        cpu_seconds: by step: keys (of both), encrypt, evaluate, decrypt.
        evaluate_seconds: of the clock, for all ciphertexts.
        bytes: keys once, and up and down for all images.
        peak_rss_mib: of the server.
    """

    outputs: Real
    cpu_seconds: dict[str, float]
    evaluate_seconds: float
    bytes: dict[str, int]
    peak_rss_mib: float


class ServerError(PrivateError):
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
        keep: encoded plaintexts between ciphertexts, for :attr:`EncodedCircuit.kept_bytes` of memory.
        progress: is told what is going on.

    Raises:
        ServerError: if the server's process fails.
    """
    near, far = socket.socketpair()
    with _signals_held():
        child = os.fork()
        if not child:
            near.close()
            _exit_after(lambda: _serve(_Timed(circuit, keep=keep), far))
    far.close()
    try:
        with near:
            return _ask(circuit, images, near, progress or (lambda _: None))
    except (ConnectionError, EOFError) as error:
        raise ServerError("the server's process ended early (out of memory?)") from error
    except BaseException:
        os.kill(child, signal.SIGTERM)  # it may be at work for minutes before it sees that nobody waits
        raise
    finally:
        os.waitpid(child, 0)


def _ask(
    circuit: LeveledCircuit, images: Real, server: socket.socket, progress: Callable[[str], object]
) -> DecryptedOutputs:
    line, batch = _Line(server), circuit.batch
    since = time.process_time()
    requester = Requester(line, circuit.public, Holder(Scheme(circuit.parameters)))
    requester.cpu["keys"] = time.process_time() - since
    groups = [images[start : start + batch] for start in range(0, len(images), batch)]
    line.send(Frame.READY, struct.pack("<I", len(groups)))
    requester.upload(lambda done, total: progress(f"keys: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"))
    outputs: list[Real] = []
    for number, answers in enumerate(requester.ask(groups), 1):
        outputs.append(answers)
        progress(f"ciphertext {number} of {len(groups)}")
    loading, evaluating, clock, memory = struct.unpack("<4d", line.receive(Frame.READY, 32))
    cpu = requester.cpu
    seconds = {
        "keys": cpu["keys"] + loading,
        "encrypt": cpu["encrypt"],
        "evaluate": evaluating,
        "decrypt": cpu["decrypt"],
    }
    return DecryptedOutputs(np.concatenate(outputs), seconds, clock, dict(requester.sent), memory)


def _serve(model: _Timed, client: socket.socket) -> None:
    line, since = _Line(client), time.process_time()
    (count,) = struct.unpack("<I", line.receive(Frame.READY, 4))
    answer_requests(line, model, NoKeys(), count)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    loading = time.process_time() - since - model.seconds
    line.send(Frame.READY, struct.pack("<4d", loading, model.seconds, model.clock, memory))


class _Timed(EncodedCircuit):
    """Knows how long it computed: CPU seconds, and those of the clock."""

    seconds = 0.0
    clock = 0.0

    def evaluate(self, evaluator: CkksEvaluator, x: Cipher, progress: Callable[[str], object] | None = None) -> Cipher:
        since, began = time.process_time(), time.monotonic()
        try:
            return super().evaluate(evaluator, x, progress)
        finally:
            self.seconds += time.process_time() - since
            self.clock += time.monotonic() - began


class _Line:
    """Bytes of known length through a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, kind: Frame, payload: Payload) -> None:
        self._end.sendall(as_bytes(payload))

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        view = memoryview(bytearray(nbytes))
        done = 0
        while done < nbytes:
            got = self._end.recv_into(view[done:])
            if not got:
                raise EOFError("the peer hung up")
            done += got
        return view


@contextmanager
def _signals_held() -> Generator[None]:
    """SIGINT and SIGTERM wait, so that a process that was just forked does not take them as its parent does."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _exit_after(work: Callable[[], None]) -> None:
    """Do the work of a forked process and end it, without what the parent would do at its own end.

    It ends without a word by SIGTERM, and when its parent is gone. SIGINT, which the terminal sends to both, is its
    parent's to answer.
    """
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        with suppress(ConnectionError, EOFError):
            work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
