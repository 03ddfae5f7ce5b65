"""One party of a private inference on SPU (Ma et al., USENIX ATC 2023), and the command that runs it.

SPU needs an environment of its own, Python 3.11 with ``spu`` 0.9.5, whose pins (``jax`` 0.4.34, ``numpy`` 1.26) clash
with this package's; this module and what it imports run there. Nothing of SPU is imported before a party is made.

*Roles.* Rank 0 is the client: it owns the input and alone learns the output. Rank 1 is the server: it owns the weights.
Under ABY3 a third party helps. Clients and helpers get the public program, which is enough to compile.

*What stays where.* Inputs and weights are their owner's private values: the owner's share is the value, the others'
shares are placeholders that depend on its shape only, so that nothing is sent before the run. A private weight times a
shared value is then one homomorphic product and not two. After a run the others send their shares of the output to the
client.

*Model.* CHEETAH (Huang et al., USENIX Security 2022): two semi-honest parties. ABY3 (Mohassel and Rindal, CCS 2018):
three semi-honest parties, of whom no two collude. SPU's code is trusted, and the
link is plain TCP: between hosts, put it into a tunnel.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.real import LinearParameters, evaluate_program, parameters
from deepreshape.private.program.encoding import from_bytes
from deepreshape.private.program.ops import Conv2d, Fill, Linear, Shape, Square
from deepreshape.private.program.program import Program

__all__ = ["CLIENT", "FRACTION", "PARTIES", "SERVER", "Party", "Setting"]

CLIENT, SERVER = 0, 1
PARTIES = {"cheetah": 2, "aby3": 3}
"""Protocols, and how many parties each takes."""
FRACTION = 18
"""SPU's own choice of fraction bits in its 64-bit ring."""

Values = NDArray[np.float32]
_RETRIES, _PATIENCE_MS = 10, 600_000


@dataclass(frozen=True)
class Setting:
    """Who takes part, and as whom.

    Attributes:
        rank: which party this is.
        hosts: "host:port" of every party, by rank.
        protocol: a key of ``PARTIES``.

    Raises:
        ValueError: if these do not fit together.
    """

    rank: int
    hosts: tuple[str, ...]
    protocol: str

    def __post_init__(self) -> None:
        if self.protocol not in PARTIES:
            raise ValueError(f"protocol {self.protocol!r} is not known; use one of {', '.join(PARTIES)}")
        wanted = PARTIES[self.protocol]
        if len(self.hosts) != wanted or not 0 <= self.rank < wanted:
            raise ValueError(
                f"rank {self.rank} of {','.join(self.hosts)} does not fit {self.protocol}: "
                f"it takes {wanted} addresses and ranks 0 to {wanted - 1}"
            )


class Party:
    """A party that has compiled the program, is connected to the others, and has placed the weights.

    Args:
        setting: who takes part.
        program: with its weights at the server, its public part everywhere else.
        log: where SPU writes its profile; see ``profile.py``.

    Raises:
        ValueError: if weights are where they must not be, or missing where they must be.
        RuntimeError: if SPU is not installed, or a peer cannot be reached.
    """

    def __init__(self, setting: Setting, program: Program, log: Path) -> None:
        if setting.rank != SERVER and program.weights:
            raise ValueError(f"rank {setting.rank} was given weights, which are the server's; give it client.program")
        if setting.rank == SERVER and not program.weights and _shapes(program):
            raise ValueError("the server was given a program without weights; give it server.program")
        self.rank, self.world, self.program = setting.rank, len(setting.hosts), program
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or jax searches for accelerators
        try:
            spu = import_module("spu")
        except ImportError as error:
            raise RuntimeError(f"{sys.executable} has no SPU ({error}); docs/engines.md says how to get it") from None
        self._lib = spu.libspu
        options = self._lib.logging.LogOptions()
        options.enable_console_logger, options.system_log_path = False, str(log)
        self._lib.logging.setup_logging(options)
        self._executable = _compile(program.public(), self._lib)
        config = _config(self._lib, setting.protocol)
        self._link = _connect(self._lib, setting)
        self._io, self._runtime = spu.Io(self.world, config), spu.Runtime(self._link, config)
        weights = parameters(program)
        for name, shapes in _shapes(program).items():
            for part, shape in shapes._asdict().items():
                value = getattr(weights[name], part) if weights else np.zeros(shape)
                self._place(f"{name}.{part}", value, SERVER)

    def ask(self, x: Values) -> tuple[Values, float]:
        """At the client: one inference with the others, who :meth:`serve`.

        Args:
            x: float32 of the program's input shape.

        Returns:
            The output, and the seconds it took: input, run and revealing the output.
        """
        start = time.perf_counter()
        self._tell(b"run")
        self._place("input", x[None], CLIENT)
        self._runtime.run(self._executable)
        shares = [self._runtime.get_var("output"), *map(self._receive, range(1, self.world))]
        output = self._io.reconstruct(shares)[0]
        return output, time.perf_counter() - start

    def serve(self) -> None:
        """At all others: take part in inferences until the client stops."""
        blank = np.zeros((1, *self.program.input_shape))
        while self._link.recv(CLIENT) == b"run":
            self._place("input", blank, CLIENT)
            self._runtime.run(self._executable)
            share = self._runtime.get_var("output")
            for message in (share.meta, str(len(share.share_chunks)), *share.share_chunks):
                self._link.send(CLIENT, message)

    def stop(self) -> None:
        """End the session; the client ends that of the others."""
        if self.rank == CLIENT:
            self._tell(b"stop")
        self._link.stop_link()

    def _place(self, name: str, value: NDArray[Any], owner: int) -> None:
        secret = self._lib.Visibility.VIS_SECRET
        shares = self._io.make_shares(np.ascontiguousarray(value, np.float32), secret, owner)
        self._runtime.set_var(name, shares[self.rank])

    def _receive(self, rank: int) -> Any:
        share = self._lib.Share()
        share.meta = self._link.recv(rank)
        share.share_chunks = [self._link.recv(rank) for _ in range(int(self._link.recv(rank)))]
        return share

    def _tell(self, message: bytes) -> None:
        for rank in range(1, self.world):
            self._link.send(rank, message)


class _Jax:
    """How SPU's compiler is told what to do: as a trace of JAX."""

    def __init__(self) -> None:
        self.arrays = import_module("jax.numpy")
        self._convolve = import_module("jax.lax").conv_general_dilated

    def convolve(self, x: Any, weight: Any, stride: int, padding: int) -> Any:
        return self._convolve(x, weight, (stride, stride), [(padding, padding)] * 2)

    def multiply(self, x: Any, weight: Any) -> Any:
        return x @ weight.T


def _shapes(program: Program) -> dict[str, LinearParameters]:
    shapes: dict[str, LinearParameters] = {}
    for op in program.ops:
        if isinstance(op, Conv2d | Linear | Square | Fill):
            shape: Shape = op.weight_shape(program.values[op.inputs[0]])
            shapes[op.name] = LinearParameters(shape, shape[:1])
    return shapes


def _compile(program: Program, lib: Any) -> Any:
    jax, frontend = import_module("jax"), import_module("spu.utils.frontend")
    shapes = _shapes(program)
    names = ["input", *(f"{name}.{part}" for name in shapes for part in LinearParameters._fields)]
    flat = [(1, *program.input_shape), *(shape for pair in shapes.values() for shape in pair)]

    def inference(x: Any, *given: Any) -> Any:
        weights = {name: LinearParameters(*given[2 * at : 2 * at + 2]) for at, name in enumerate(shapes)}
        return evaluate_program(program, x, weights, _Jax())

    def named(outputs: list[Any]) -> list[str]:
        return ["output"]

    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in flat]
    secret = [lib.Visibility.VIS_SECRET] * len(names)
    kind = frontend.Kind.JAX
    return frontend.compile(kind, inference, arguments, {}, names, secret, named)[0]


def _config(lib: Any, protocol: str) -> Any:
    kind = getattr(lib.ProtocolKind, protocol.upper())
    config = lib.RuntimeConfig(protocol=kind, field=lib.FieldType.FM64, fxp_fraction_bits=FRACTION)
    config.experimental_enable_colocated_optimization = True  # without it, an owner's value is shared like any other
    config.enable_hal_profile = True  # its bottom layer, the protocol's kernels, is what profile.py reads
    return config


def _connect(lib: Any, setting: Setting) -> Any:
    link = lib.link.Desc()
    for rank, host in enumerate(setting.hosts):
        link.add_party(str(rank), host)
    link.connect_retry_times = _RETRIES  # some three seconds each
    link.recv_timeout_ms = _PATIENCE_MS  # parties wait for the client's next input
    return lib.link.create_brpc(link, setting.rank)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deepreshape.engines.spu.party", description="One party on SPU.")
    parser.add_argument("--rank", type=int, required=True, help="0 client, 1 server, 2 helper (ABY3)")
    parser.add_argument("--hosts", required=True, help="host:port of every party, by rank, with commas between")
    parser.add_argument("--protocol", choices=PARTIES, default="cheetah")
    parser.add_argument("--program", type=Path, required=True, help="server.program at the server, else client.program")
    parser.add_argument("--log", type=Path, required=True, help="file for SPU's profile")
    options = parser.parse_args()
    try:
        setting = Setting(options.rank, tuple(options.hosts.split(",")), options.protocol)
        party = Party(setting, from_bytes(options.program.read_bytes()), options.log)
        if setting.rank == CLIENT:
            _answer(party)
        else:
            party.serve()
        party.stop()
    except (OSError, ValueError, RuntimeError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)  # noqa: T201 - a command of its own, run where no cli is
        return 2
    return 0


def _answer(party: Party) -> None:
    """Read names of .npy files, a line each, and write a JSON line for each: ``output`` and ``seconds``."""
    for line in sys.stdin:
        x = np.load(line.strip(), allow_pickle=False).astype(np.float32)
        if x.shape != party.program.input_shape:
            raise ValueError(f"{line.strip()} has shape {x.shape}, the network takes {party.program.input_shape}")
        output, seconds = party.ask(x)
        print(json.dumps({"output": output.tolist(), "seconds": seconds}), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(_main())
