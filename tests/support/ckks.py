"""Networks of squares, what they compute in floating point, and keys of a small circuit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import deepreshape
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.public import PublicCircuit
from deepreshape.engines.ckks.remote import LIMITS, Remote
from deepreshape.private.program.graph import Conv, Dense, Flat, Layer, Pool, Quadratic, Sum
from deepreshape.private.program.ops import INPUT
from deepreshape.private.transport.certificates import Credentials, create_authority, issue
from deepreshape.private.transport.tls import Endpoint

INPUT_SHAPE = (3, 8, 8)


def convolved(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, groups: int = 1) -> np.ndarray:
    kernel = weight.shape[2]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    parts = zip(np.split(windows, groups), np.split(weight, groups), strict=True)
    return np.concatenate([np.einsum("chwij,ocij->ohw", part, rows) for part, rows in parts])


def computed(layers: Sequence[Layer], x: np.ndarray) -> np.ndarray:
    """What the layers give in floating point."""
    values = {INPUT: x}
    for layer in layers:
        inputs = [values[name] for name in layer.inputs]
        match layer:
            case Conv():
                y = convolved(inputs[0], layer.weight, layer.stride, layer.padding, layer.groups)
                values[layer.name] = y + layer.bias[:, None, None]
            case Quadratic():
                constant, linear, square = layer.coefficients.T.reshape(3, -1, *[1] * (inputs[0].ndim - 1))
                values[layer.name] = constant + linear * inputs[0] + square * inputs[0] ** 2
            case Sum():
                values[layer.name] = np.sum(inputs, axis=0)
            case Pool():
                ones = np.ones((len(inputs[0]), 1, *layer.kernel))
                values[layer.name] = convolved(inputs[0], ones, layer.stride[0], 0, len(inputs[0]))
            case Flat():
                values[layer.name] = inputs[0].ravel()
            case Dense():
                values[layer.name] = layer.weight @ inputs[0] + layer.bias
            case _:
                raise AssertionError(layer)
    return values[layers[-1].name]


def conv(
    name: str, source: str, ins: int, outs: int, stride: int = 1, kernel: int = 3, *, rng: np.random.Generator
) -> Conv:
    weight = rng.normal(size=(outs, ins, kernel, kernel)) / np.sqrt(ins * kernel * kernel)
    return Conv(name, (source,), weight, 0.1 * rng.normal(size=outs), stride, kernel // 2)


def quadratic(name: str, source: str, channels: int, *, rng: np.random.Generator) -> Quadratic:
    """With squares of either sign."""
    square = 0.2 * rng.choice([-1, 1], channels) * rng.uniform(0.5, 1, channels)
    return Quadratic(name, (source,), np.stack([0.1 * rng.normal(size=channels), np.full(channels, 0.5), square], 1))


def residual(seed: int = 0) -> list[Layer]:
    """Two squares in a row, a strided layer, an identity and a projected shortcut."""
    rng = np.random.default_rng(seed)
    return [
        conv("stem", INPUT, 3, 4, rng=rng),
        quadratic("q1", "stem", 4, rng=rng),
        conv("down", "q1", 4, 5, 2, rng=rng),
        conv("shortcut", "q1", 4, 5, 2, 1, rng=rng),
        Sum("add", ("down", "shortcut")),
        quadratic("q2", "add", 5, rng=rng),
        Pool("pool", ("q2",), (4, 4), (4, 4)),
        Flat("flat", ("pool",)),
        Dense("head", ("flat",), rng.normal(size=(3, 5)) / 16, rng.normal(size=3)),
    ]


def single(seed: int = 0) -> list[Layer]:
    """One square: the smallest parameters."""
    rng = np.random.default_rng(seed)
    return [
        conv("stem", INPUT, 3, 2, rng=rng),
        quadratic("q", "stem", 2, rng=rng),
        Flat("flat", ("q",)),
        Dense("head", ("flat",), rng.normal(size=(3, 128)) / 16, rng.normal(size=3)),
    ]


SCRIPT = """
import json, sys
from pathlib import Path
from support.ckks import INPUT_SHAPE, single
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.evaluate import EncodedCircuit
from deepreshape.engines.ckks.keys import KeyCaps, KeyShelf
from deepreshape.engines.ckks.remote import LIMITS, ServedModel
from deepreshape.private.parties.store import Store
from deepreshape.private.service.quotas import Caps
from deepreshape.private.service.service import Service
from deepreshape.private.transport.certificates import Credentials
from deepreshape.private.transport.tls import Endpoint, listen

folder, most = Path(sys.argv[1]), int(sys.argv[2])
served = ServedModel(EncodedCircuit(compiled(single(), INPUT_SHAPE)), KeyShelf(folder / "shelf", KeyCaps(most, most)))
door = listen("127.0.0.1", 0)
tell = lambda line: print(line, flush=True)
service = Service(
    door, Endpoint(Credentials.within(folder, "server", "s"), LIMITS), served, Store(folder / "sessions"),
    Caps(**json.loads(sys.argv[3])), notify=tell,
)
tell(str(door.getsockname()[1]))
service.run()
"""


@dataclass
class ServedCircuit:
    """A server of :func:`single` in a process of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[str]

    def remote(self, name: str = "alice", public: PublicCircuit | None = None) -> Remote:
        """The server as a client with this name in its certificate sees it."""
        if not (self.folder / f"client-{name}.pem").exists():
            issue(self.folder, "client", name)
        endpoint = Endpoint(Credentials.within(self.folder, "client", name), LIMITS)
        return Remote(endpoint, "127.0.0.1", self.port, public or compiled(single(), INPUT_SHAPE).public)

    def line(self) -> str:
        """The next thing it tells."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@contextmanager
def served_circuit(folder: Path, most: int = 1 << 30, **caps: int) -> Iterator[ServedCircuit]:
    """Serve with at most ``most`` bytes of evaluation keys, and caps that differ from those of :class:`Caps`."""
    create_authority(folder)
    issue(folder, "server", "s")
    path = os.pathsep.join([str(Path(deepreshape.__file__).parents[1]), str(Path(__file__).parents[1])])
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(most), json.dumps(caps)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stderr
            first = process.stdout.readline()
            assert first, process.stderr.read()
            yield ServedCircuit(folder, int(first), process)
        finally:
            process.terminate()
            process.communicate(timeout=60)
