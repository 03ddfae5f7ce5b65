"""Every reader of bytes from outside, and mutated inputs for it. Whoever adds a reader adds its target to ``TARGETS``.

A reader takes what was mutated or refuses it by the class that it documents; any other exception is a fault, and so is
a case that takes longer than ``SLOW_S``.
"""

from __future__ import annotations

import json
import pickle
import random
import ssl
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import torch
from support.cifar import python_2_pickle
from support.ckks import INPUT_SHAPE, single
from support.fuzz_peers import PEERS
from support.mutate import Reader, Target, mutated
from support.programs import every_kind, max_pool, random_program, squares_relus_and_signs
from torch import nn

from deepreshape.cli import convex as convex_commands
from deepreshape.cli.models import read_samples
from deepreshape.convex import saved as gated
from deepreshape.convex import tables
from deepreshape.convex.gates import Gates
from deepreshape.cost.profile import Profile, reference
from deepreshape.data import archives
from deepreshape.data import folder as pictures
from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.keys import read_secret_key, write_secret_key
from deepreshape.engines.ckks.parameters import CkksParameters
from deepreshape.engines.ckks.remote import read_client
from deepreshape.engines.ckks.scheme import CkksEvaluator, Holder, Scheme
from deepreshape.experiments import answers
from deepreshape.experiments.live import live_quote
from deepreshape.models import architecture, build, convert, saved
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.errors import CertificateError, LocalError, PrivateError, ProtocolError, StoreError
from deepreshape.private.parties.manifest import Binding, read_manifest
from deepreshape.private.parties.store import Store
from deepreshape.private.parties.streams import Stream
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.ops import ProgramError
from deepreshape.private.program.relu_config import read_relus
from deepreshape.private.service import bundle
from deepreshape.private.service.quotas import Caps, Quotas
from deepreshape.private.transport import certificates
from deepreshape.private.transport.certificates import Credentials, Identity
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.handshake import Agreement, Greeting
from deepreshape.private.transport.tls import HEADER, Limits, TlsChannel

SLOW_S = 5.0
"""A case that takes a reader more seconds of a processor than that is a fault."""
WHO = "a1" * 32
ALICE, BOB = Identity("client", "alice", WHO), Identity("server", "bob", "b0" * 32)


def fuzz(name: str, folder: Path, cases: int, seed: int = 0) -> Counter[str]:
    """Hand a target mutated inputs; how many it took and refused.

    Raises:
        AssertionError: if it raised anything else or took too long; the text has the input.
    """
    target = TARGETS[name]
    rng, read, seeds = random.Random(f"{name} {seed}"), target.open(folder), target.seeds()  # noqa: S311
    for each in seeds:
        read(each)  # or nothing would be tested
    outcomes: Counter[str] = Counter()
    for _ in range(cases):
        data = mutated(rng.choice(seeds), rng)
        began = time.thread_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries, about what a later version of them will refuse
                read(data)
            outcomes["taken"] += 1
        except target.refusals:
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}; input {data[:2000]!r}") from error
        assert time.thread_time() - began < SLOW_S, f"{name}: slow on {data[:2000]!r}"
    return outcomes


class _Replay:
    """A socket that has received some bytes, and nothing more."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv_into(self, view: memoryview) -> int:
        part = self._data[: view.nbytes]
        view[: len(part)] = part
        self._data = self._data[len(part) :]
        return len(part)

    def settimeout(self, _: float) -> None: ...
    def sendall(self, _: object) -> None: ...
    def close(self) -> None: ...


def _frames(_: Path) -> Reader:
    def read(data: bytes) -> None:
        channel = TlsChannel(_Replay(data), ALICE, BOB, Limits())  # pyright: ignore[reportArgumentType]
        channel.receive(Frame.SHARES, 17)
        channel.receive(Frame.READY, 0)

    return read


def _file(name: str, read: Callable[[Path], object]) -> Callable[[Path], Reader]:
    """A reader of a file."""

    def make(folder: Path) -> Reader:
        def write_and_read(data: bytes) -> object:
            (folder / name).write_bytes(data)
            return read(folder / name)

        return write_and_read

    return make


def _streams(folder: Path) -> Reader:
    key, binding, batch = bytearray(32), Binding("ab" * 32, WHO, {}), folder / ("cd" * 32)
    batch.mkdir()

    def read(data: bytes) -> object:
        (batch / "s.stream").write_bytes(data)
        return list(Stream(batch, binding, key, "s").chunks())

    return read


def _stream_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / ("cd" * 32)
        folder.mkdir()
        stream = Stream(folder, Binding("ab" * 32, WHO, {}), bytearray(32), "s")
        for chunk, last in ((b"a" * 50, False), (b"b" * 5, False), (b"", True)):
            stream.append(memoryview(chunk), last=last)
        return [stream.path.read_bytes()]


def _queries(folder: Path) -> Reader:
    store = Store(folder)

    def read(data: bytes) -> None:
        (folder / "queries").write_bytes(data)
        Quotas(Caps(), store).admit(WHO, "query")

    return read


def _facts_seeds() -> list[bytes]:
    classes = random_program(3).output_size
    channels = random_program(3).input_shape[0]
    facts = {"class_names": ["a"] * classes, "mean": [0.5] * channels, "std": [0.5] * channels, "resize": "crop"}
    return [json.dumps(facts).encode()]


def _saved(save: Callable[[Path], None], load: Callable[[Path], object], part: str) -> Target:
    """A folder that ``save`` writes and ``load`` reads, of which one file is mutated."""

    def make(folder: Path) -> Reader:
        save(folder)
        return _file(part, lambda path: load(path.parent))(folder)

    def seeds() -> list[bytes]:
        with tempfile.TemporaryDirectory() as name:
            save(Path(name))
            return [(Path(name) / part).read_bytes()]

    return Target(seeds, make, (ValueError,))


def _save(folder: Path) -> None:
    network = architecture("hrn-2x-m2-phi1.1", (1, 8, 8), 10)
    model: nn.Module = build(network, seed=0)
    saved.save(model, folder, saved.Manifest(network, "digits", tuple("0123456789"), (0.5,), (0.2,)))


def _save_foreign(folder: Path) -> None:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)), (1, 8, 8))
    saved.save(model, folder, saved.Manifest(model.architecture))


def _save_gated(folder: Path) -> None:
    gates = Gates(np.zeros(2), np.ones(2), np.ones((3, 3)))
    gated.save_fitted(gated.Fitted(gates, np.ones((3, 3, 1)), np.zeros(1), ("a", "b"), ("no", "yes"), {}, {}), folder)


def _table_seeds() -> list[bytes]:
    return [b"a,b,kind\n1,2.5,x\n3,4e2,y\n5,6,x\n", b"a,kind\n1,0.5\n2,0.25\n"]


def _gates_seeds() -> list[bytes]:
    content = {"features": ["a", "b"], "mean": [0, 0], "scale": [1, 1], "directions": [[1, 0, 1], [0, 1, 1]]}
    return [json.dumps(content).encode()]


def _splits(folder: Path) -> Reader:
    kept = {"train": ["a/1.png"], "validation": ["a/2.png"], "test": ["a/3.png"]}
    return _file("splits.json", lambda path: pictures._written(path.parent, kept, []))(folder)


def _answers_seeds() -> list[bytes]:
    image = answers.AnsweredImage("data:image/png;base64,AA", "cat", 0.5, "dog")
    private_answers = answers.PrivateAnswers("net", 100, (image,), {"online": 1.0}, {"online": 5}, True)
    return [json.dumps(asdict(private_answers)).encode()]


def _array_seeds(array: np.ndarray) -> list[bytes]:
    file = BytesIO()
    np.save(file, array)
    return [file.getvalue()]


def _arrays_seeds() -> list[bytes]:
    file = BytesIO()
    np.savez(file, X=np.eye(3), y=np.array([0, 1, 1]))
    return [file.getvalue()]


def _cifar_seeds() -> list[bytes]:
    pixels = np.zeros((2, 3072), np.uint8)
    ours = [pickle.dumps({"data": pixels, "fine_labels": [1, 2]}, protocol=protocol) for protocol in (2, 4)]
    return [*ours, python_2_pickle(pixels, [1, 2])]


def _certificate_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        certificates.create_authority(Path(name))
        credentials = certificates.issue(Path(name), "client", "alice")
        return [ssl.PEM_cert_to_DER_cert(credentials.certificate.read_text())]


def _credentials(path: Path) -> frozenset[str]:
    return Credentials(path, path, path.with_name("authority.pem")).revoked()


SCHEME = Scheme(CkksParameters(8192, 24, 1, 32, 0))


def _ckks_seeds() -> dict[str, bytes]:
    holder = Holder(SCHEME)
    fresh = wire.fresh(SCHEME, holder.encrypt(np.zeros(SCHEME.parameters.slots)))
    lowest = CkksEvaluator(SCHEME).lower(wire.read_fresh(SCHEME, fresh), 0)
    key = wire.key(SCHEME, "rotate-1", holder.evaluation_key("rotate-1"))
    return {"fresh": fresh, "answer": wire.answer(SCHEME, lowest), "key": key}


def _circuit_seeds() -> list[bytes]:
    public = compiled(single(), INPUT_SHAPE).public
    facts = {"class_names": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.2] * 3, "resize": "crop"}
    return [json.dumps({"circuit": public.to_dict(), "facts": facts}).encode()]


def _secret_keys(folder: Path) -> Reader:
    public, path = compiled(single(), INPUT_SHAPE).public, folder / "me.key"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        path.chmod(0o600)
        return read_secret_key(path, public)

    return read


def _secret_key_seeds() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "me.key"
        write_secret_key(path, compiled(single(), INPUT_SHAPE).public)
        return [path.read_bytes()]


MANIFEST = {"program": "ab" * 32, "peer": WHO, "parameters": {"bits": 32, "relu": "gc-full"}, "streams": ["a", "b.c"]}
GREETING = Greeting(WHO, "b0" * 32, Agreement("cd" * 32, {"bits": 32, "relu": "gc-full"}, "ef" * 32), "01" * 32)
FRAMES = HEADER.pack(Frame.SHARES, 17, 0) + bytes(17) + HEADER.pack(Frame.READY, 0, 1)

TARGETS: dict[str, Target] = {
    "frames": Target(lambda: [FRAMES], _frames, (ProtocolError,)),
    "greeting": Target(lambda: [GREETING.encode()], lambda _: Greeting.decode, (ProtocolError,)),
    "certificate": Target(_certificate_seeds, lambda _: certificates.describe, (CertificateError,)),
    "revoked": Target(lambda: [f"# comment\n{WHO}\n".encode()], _file("revoked", _credentials), (CertificateError,)),
    "ring elements": Target(
        lambda: [bytes(20)], lambda _: lambda data: Ring(37).unpack(memoryview(data), 4), (ProtocolError, ValueError)
    ),
    "field elements": Target(
        lambda: [bytes(16)],
        lambda _: lambda data: Field(2**31 - 1).unpack(memoryview(data), 4),
        (ProtocolError, ValueError),
    ),
    "program": Target(
        lambda: [
            to_bytes(program)
            for program in (every_kind(), squares_relus_and_signs(), max_pool(), random_program(5).public())
        ],
        lambda _: from_bytes,
        (ProgramError,),
    ),
    "relu word": Target(
        lambda: [b"gc-stochastic:drop=12,neg-pass", b"gc-sign:window", b"ot:tree@3+gc-sign@2"],
        lambda _: lambda data: read_relus(data.decode("latin1")),
        (ValueError,),
    ),
    "manifest of a batch": Target(
        lambda: [json.dumps(MANIFEST).encode()],
        _file("manifest.json", lambda path: read_manifest(path.parent)),
        (StoreError,),
    ),
    "stream of a batch": Target(_stream_seeds, _streams, (StoreError,)),
    "queries": Target(lambda: [f"\n{time.time():.3f} {WHO}\n".encode() * 2], _queries, (PrivateError,)),
    "spent": Target(
        lambda: [f"\n{WHO}\n".encode() * 2], _file("spent", lambda path: Store(path.parent)), (StoreError,)
    ),
    "client facts": Target(
        _facts_seeds, _file("client.json", lambda path: bundle.read_facts(path, random_program(3))), (ValueError,)
    ),
    "input array": Target(
        lambda: _array_seeds(np.zeros((1, 3, 3), np.float32)), _file("x.npy", bundle._opened), (ValueError,)
    ),
    "model's manifest": _saved(_save, saved.load, "manifest.json"),
    "model's weights": _saved(_save, saved.load, "model.safetensors"),
    "manifest of a network of the user's own": _saved(_save_foreign, saved.load, "manifest.json"),
    "gated network's manifest": _saved(_save_gated, gated.load_fitted, "manifest.json"),
    "gated network's weights": _saved(_save_gated, gated.load_fitted, "gates.safetensors"),
    "gates": Target(
        _gates_seeds,
        _file("client.gates", lambda path: convex_commands.gated_input(path, None, "1,2")),
        (ValueError,),
    ),
    "table": Target(_table_seeds, _file("t.csv", lambda path: tables.read_table(str(path), "kind")), (ValueError,)),
    "table of arrays": Target(_arrays_seeds, _file("t.npz", lambda path: tables.read_table(str(path))), (ValueError,)),
    "rows": Target(
        lambda: [b"a,b\n1,2\n"], _file("r.csv", lambda path: tables.read_inputs(path, ("a", "b"))), (ValueError,)
    ),
    "rows of an array": Target(
        lambda: _array_seeds(np.zeros((1, 2))),
        _file("r.npy", lambda path: tables.read_inputs(path, ("a", "b"))),
        (ValueError,),
    ),
    "samples": Target(
        lambda: _array_seeds(np.ones((2, 1, 3, 3), np.float32)), _file("x.npy", read_samples), (ValueError,)
    ),
    "cost profile": Target(
        lambda: [reference().to_json().encode()], _file("profile.json", Profile.read), (ValueError,)
    ),
    "settings of the ui page": Target(
        lambda: [b"phi=1,1,1,1&base=4&alpha=2&beta=2&gamma=2&budget=50&input=3x32x32&wire=lan&kind=gc-full"],
        lambda _: lambda data: live_quote(dict(parse_qsl(data.decode("latin1")))),
        (ValueError,),
    ),
    "name of a network": Target(
        lambda: [b"hrn-5x5x3x-m2-phi1.1.1.1", b"resnet9-m4", b"wideresnet22-8"],
        lambda _: lambda data: architecture(data.decode("latin1"), (3, 32, 32), 10),
        (ValueError,),
    ),
    "splits of a folder": Target(
        lambda: [b'{"train":["a/1.png"],"validation":["a/2.png"],"test":["a/3.png"]}'], _splits, (ValueError,)
    ),
    "private answers": Target(
        _answers_seeds, _file(answers.ANSWERS, lambda path: answers.read_answers(path.parent)), (ValueError,)
    ),
    "cifar": Target(
        _cifar_seeds,
        _file("train", lambda path: archives._cifar_part(path, "cifar100", "fine_labels", 100)),
        (ValueError,),
    ),
    "ckks ciphertext": Target(
        lambda: [_ckks_seeds()["fresh"]], lambda _: lambda data: wire.read_fresh(SCHEME, data), (ValueError,)
    ),
    "ckks answer": Target(
        lambda: [_ckks_seeds()["answer"]], lambda _: lambda data: wire.read_answer(SCHEME, data), (ValueError,)
    ),
    "ckks key": Target(
        lambda: [_ckks_seeds()["key"]], lambda _: lambda data: wire.read_key(SCHEME, "rotate-1", data), (ValueError,)
    ),
    "ckks circuit": Target(_circuit_seeds, _file("client.json", read_client), (ValueError,)),
    "ckks secret key": Target(_secret_key_seeds, _secret_keys, (LocalError,)),
    **PEERS,
}
