"""All parties of SPU on this machine, each in a process of its own, over loopback TCP."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.spu.party import CLIENT, PARTIES, SERVER
from deepreshape.engines.spu.profile import PartyRun, parse
from deepreshape.private.processes import SOURCE, safe_environment
from deepreshape.private.program.encoding import to_bytes
from deepreshape.private.program.program import Program

__all__ = ["SpuContext", "SpuOutput", "spu_versions"]

GRACE_S = 30
"""How long a party may take to end."""
POLL_S = 0.5


class SpuOutput(NamedTuple):
    """What one inference gave the client, and how long it took there."""

    output: NDArray[np.float64]
    seconds: float


class SpuContext:
    """A context in which SPU's parties are up; the first inference in it also makes keys and correlations.

    Args:
        program: with its weights; only the server's process gets them.
        protocol: a key of ``PARTIES``.
        python: the interpreter of SPU's environment.
        reach: by which local port the other parties reach a party that listens on the given one; the same without.

    Raises:
        ValueError: if there is no such interpreter.
        RuntimeError: if a party fails; the text is what it said.
    """

    def __init__(
        self, program: Program, protocol: str, python: Path, reach: Callable[[int], int] = lambda port: port
    ) -> None:
        if not python.is_file():
            raise ValueError(f"there is no interpreter {python}; docs/engines.md says how to make SPU's environment")
        self._program, self._protocol, self._python, self._reach = program, protocol, python, reach
        self._stack = ExitStack()
        self._running: list[subprocess.Popen[bytes]] = []
        self._count = 0

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="deepreshape-spu-")))
        ranks = range(PARTIES[self._protocol])
        ports = _free_ports(len(ranks))
        reached = [self._reach(port) for port in ports]
        variables = {**safe_environment(), "PYTHONPATH": str(SOURCE)}
        for rank in ranks:
            seen = [*reached[:rank], ports[rank], *reached[rank + 1 :]]
            hosts = ",".join(f"127.0.0.1:{port}" for port in seen)
            part = self._program if rank == SERVER else self._program.public()
            path = self._folder / f"program-{rank}"
            path.touch(mode=0o600)
            path.write_bytes(to_bytes(part))
            # Python before 3.11 knows no safe path; the current folder, which it searches first, is the run's own
            command = [
                str(self._python.absolute()),
                "-m",
                "deepreshape.engines.spu.party",
                "--rank",
                str(rank),
                "--hosts",
                hosts,
            ]
            command += ["--protocol", self._protocol, "--program", str(path), "--log", str(self._log(rank))]
            log = self._stack.enter_context((self._folder / f"said-{rank}").open("w"))
            pipe = subprocess.PIPE if rank == CLIENT else subprocess.DEVNULL
            # without buffers, what select says of a pipe is all there is to know of it
            party = subprocess.Popen(  # noqa: S603
                command,
                0,
                cwd=self._folder,
                env=variables,
                stdin=pipe,
                stdout=pipe,
                stderr=log,
                start_new_session=True,
            )
            self._running.append(self._stack.enter_context(party))
            if rank == CLIENT:
                self._questions, self._answers = cast(IO[bytes], party.stdin), cast(IO[bytes], party.stdout)
        return self

    def infer(self, x: NDArray[np.floating]) -> SpuOutput:
        """One inference on ``x``, real, of the program's input shape."""
        path = self._folder / f"input-{self._count}.npy"
        np.save(path, x)
        self._count += 1
        try:
            self._questions.write(f"{path}\n".encode())
        except BrokenPipeError:
            raise RuntimeError(self._failure()) from None
        while not select.select([self._answers], [], [], POLL_S)[0]:
            if any(party.poll() is not None for party in self._running):  # the others would wait for it for long
                raise RuntimeError(self._failure())
        line = self._answers.readline()
        if not line:
            raise RuntimeError(self._failure())
        answer = json.loads(line)
        return SpuOutput(np.array(answer["output"]), answer["seconds"])

    def close(self) -> list[list[PartyRun]]:
        """End the session: what each party logged, by rank and inference."""
        self._questions.close()
        for party in self._running:
            if party.wait(GRACE_S):
                raise RuntimeError(self._failure())
        return [parse(self._log(rank).read_text()) for rank in range(len(self._running))]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for party in self._running:
            party.kill()
        self._stack.close()

    def _log(self, rank: int) -> Path:
        return self._folder / f"log-{rank}"

    def _failure(self) -> str:
        for party in self._running:
            party.kill()
            party.wait()
        for rank in range(len(self._running)):
            if text := (self._folder / f"said-{rank}").read_text().strip():
                return f"party {rank} of {self._protocol} failed: {text.splitlines()[-1]}"
        return f"a party of {self._protocol} ended without a word; it may have run out of memory"


def spu_versions(python: Path) -> dict[str, str]:
    """Versions of what SPU's environment runs with.

    Raises:
        RuntimeError: if it lacks one of them.
    """
    code = "import json, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in ('spu', 'jax', 'numpy')}))"
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{python} has no SPU: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
