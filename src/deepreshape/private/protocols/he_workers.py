"""Processes that answer homomorphic layers side by side, as the library holds Python's lock and threads share a core.

The server splits the responses of a layer between itself and its workers. Each worker draws blinds and floods of its
own, from the operating system's entropy. What it sends back stands in the same places and order as if the server had
made it all, so nothing on the wire tells how many there were.

Weights, blinds and shares pass between the server's process and those that it started, through pipes that no other
process holds, and never through a file. A worker ends when its pipe does: it outlives its server by one layer at most,
however that ends. Workers are started afresh, not forked, since a fork would copy locks and streams of randomness.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Self

import numpy as np

from deepreshape.private.crypto.he.bfv import Responder
from deepreshape.private.crypto.he.packing import Convolution, Layout
from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.crypto.he.residues import Buffer, Residues
from deepreshape.private.crypto.he.responses import EncodedWeights, encode_rows, respond_in_part
from deepreshape.private.errors import ProtocolError
from deepreshape.private.processes import available_cores, command, safe_environment

PRODUCTS_EACH = 2000
"""Products that are worth a process: about a second of work, where starting one takes half of that."""
_DIED = "a worker process has ended; if it was killed, the machine may be out of memory: use fewer workers"


def worthwhile(products: int, most: int | None = None) -> int:
    """How many processes to divide so many products among: at most ``most``, or as many as this process has cores."""
    return max(1, min(most or available_cores(), products // PRODUCTS_EACH))


class Workers:
    """The processes of one session; leaving ``with`` ends those that it started.

    Args:
        count: how many shall work, this one included.
        responder: of the session.
    """

    def __init__(self, count: int, responder: Responder) -> None:
        self.responder = responder
        self._others = [_Worker(responder) for _ in range(count - 1)]

    def respond(self, weights: EncodedWeights, ciphertexts: Sequence[Buffer]) -> tuple[list[bytes], Residues]:
        """:func:`deepreshape.private.crypto.he.responses.respond`, by all processes together.

        Raises:
            ProtocolError: as that, or if a worker has ended.
        """
        layout, count = weights.layout, len(self._others) + 1
        edges = [-(-layout.responses * part // count) for part in range(count + 1)]
        here, *rest = (range(*edge) for edge in pairwise(edges))
        busy = [(worker, numbers) for worker, numbers in zip(self._others, rest, strict=True) if numbers]
        for worker, numbers in busy:
            worker.begin(weights, ciphertexts, numbers)
        parts = [respond_in_part(self.responder, layout, ciphertexts, here, map(weights.rows, here))]
        parts += [worker.finish(layout, numbers) for worker, numbers in busy]
        bands = zip(*(part for part, _ in parts), strict=True)
        responses = [response for band in bands for part in band for response in part]
        return responses, np.concatenate([share for _, share in parts])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._others:
            worker.end()


class _Worker:
    """A started process and the pipes to and from it."""

    def __init__(self, responder: Responder) -> None:
        jobs, self._jobs = _pipe()
        self._results, results = _pipe()
        ends = [jobs.fileno(), results.fileno()]
        self._process = subprocess.Popen(  # noqa: S603
            command(__name__, *ends),
            env=safe_environment(),
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        jobs.close()
        results.close()
        parameters = responder.parameters
        self._send(asdict(parameters), responder.public_key, *responder.galois_keys)

    def begin(self, weights: EncodedWeights, ciphertexts: Sequence[Buffer], numbers: range) -> None:
        layout, block = weights.layout, np.ascontiguousarray(weights.block(numbers))
        edges = [numbers.start, numbers.stop]
        head = [asdict(layout.layer), layout.tiling, edges, block.dtype.str, block.shape, len(ciphertexts)]
        self._send(head, block.data.cast("B"), *ciphertexts)

    def finish(self, layout: Layout, numbers: range) -> tuple[list[list[bytes]], Residues]:
        try:
            responses = [[self._results.recv_bytes() for _ in numbers] for _ in range(layout.bands)]
            share = np.frombuffer(bytearray(self._results.recv_bytes()), np.uint64)
        except (EOFError, OSError):
            raise ProtocolError(_DIED) from None
        return responses, share.reshape(-1, *layout.layer.output_shape[1:])

    def end(self) -> None:
        self._jobs.close()
        self._results.close()
        self._process.kill()
        self._process.wait()

    def _send(self, head: object, *bodies: Buffer) -> None:
        try:
            self._jobs.send_bytes(json.dumps(head).encode("ascii"))
            for body in bodies:
                self._jobs.send_bytes(body)
        except OSError:
            raise ProtocolError(_DIED) from None


def _pipe() -> tuple[Connection, Connection]:
    """The reading and the writing end."""
    reading, writing = os.pipe()
    return Connection(reading, writable=False), Connection(writing, readable=False)


def _work(jobs: Connection, results: Connection) -> None:
    """What a worker's process does, until its pipe ends."""
    facts = json.loads(jobs.recv_bytes())
    parameters = Parameters(**facts | {"prime_bits": tuple(facts["prime_bits"])})
    public_key, *galois_keys = (jobs.recv_bytes() for _ in range(1 + parameters.galois_keys))
    responder = Responder(parameters, public_key, galois_keys)
    while True:
        layer, tiling, edges, kind, shape, count = json.loads(jobs.recv_bytes())
        layout, numbers = Layout(Convolution(**layer), parameters, *tiling), range(*edges)
        block = np.frombuffer(jobs.recv_bytes(), np.dtype(kind)).reshape(shape)
        ciphertexts = [jobs.recv_bytes() for _ in range(count)]
        starts = range(0, len(block), layout.out_channels)
        rows = (encode_rows(layout, block[start : start + layout.out_channels]) for start in starts)
        bands, share = respond_in_part(responder, layout, ciphertexts, numbers, rows)
        for band in bands:
            for response in band:
                results.send_bytes(response)
        results.send_bytes(np.ascontiguousarray(share).data.cast("B"))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the keyboard reaches the server, which ends this
    try:
        _work(*(Connection(int(number)) for number in sys.argv[1:3]))
    except (EOFError, OSError):
        sys.exit(0)  # the server has ended, or needs no more
    except ProtocolError:
        sys.exit(1)  # the server finds the same in what it was sent, and says it
