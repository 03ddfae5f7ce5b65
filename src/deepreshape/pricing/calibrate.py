"""Time this machine's primitives: the units in which protocols declare their work.

Every unit is taken from the code that a real run goes through, on sizes like those of a real run, and is the least
over the rounds: other load can only lengthen one.

Last, small programs run whole (``probe_runs.py``): what the primitives miss, taken one at a time, goes into the units.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deepreshape.cost import Profile
from deepreshape.pricing.probe_runs import adjusted
from deepreshape.pricing.timing import Step, fastest, minima, run_parties
from deepreshape.private.arith.drelu import Window
from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.arith.square import Squaring
from deepreshape.private.crypto.he.bfv import ClientKey, Responder, encode
from deepreshape.private.crypto.he.packing import Convolution, lay_out
from deepreshape.private.crypto.he.parameters import Parameters, known_parameters
from deepreshape.private.crypto.labels import Delta
from deepreshape.private.crypto.ot.cot import CotReceiver, CotSender
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.preprocessing import Reading, Writing
from deepreshape.private.parties.store import Store
from deepreshape.private.program.integer_linear import on_shares
from deepreshape.private.program.ops import Conv2d, Relu, Weights
from deepreshape.private.program.relu_config import CARRIES, GC_FULL, ROLES, ReluConfig, Role
from deepreshape.private.protocols.base import Prepared, Protocol, Run
from deepreshape.private.protocols.garbled.label_transfer import GarbledLayer
from deepreshape.private.protocols.garbled.relu_garbled import OTHER, GarbledRelu
from deepreshape.private.protocols.garbled.relu_gc import ReluGc
from deepreshape.private.protocols.garbled.relu_sign import ReluSign
from deepreshape.private.protocols.square import Constants, Squares, SquaringLayer
from deepreshape.private.protocols.transfers.relu_ot import ReluOt
from deepreshape.private.protocols.truncate import Truncation, TruncationLayer
from deepreshape.private.transport.certificates import create_authority, issue
from deepreshape.private.transport.channel import Channel, Frame
from deepreshape.private.transport.handshake import Agreement, client_session, server_session
from deepreshape.private.transport.tls import Endpoint, listen

RING = Ring(32)
"""Where the units are measured; those of other rings go with their AND gates, bits and elements."""
PIECE_BYTES = 24 << 20
"""About what one batch of garbled ReLUs takes. Memory of this size is new to a process each time, which costs."""
PACKAGES = ("deepreshape", "numpy", "cryptography", "pynacl", "tenseal")
Units = dict[str, float]
Observer = Callable[[str], None]


def measure(name: str, rounds: int = 7, observe: Observer | None = None) -> Profile:
    """Measure everything; takes about a minute.

    Args:
        name: of the profile.
        rounds: how often each step is timed.
        observe: is told what is being timed.
    """
    units: Units = {}
    resident = _resident()
    steps: dict[str, Callable[[int], Units]] = {
        "sessions and TLS": _wire,
        "the offline store": _store,
        "oblivious transfer": _transfers,
        "garbling": _relus,
        "ReLUs by transfer": _transfer_relus,
        "squares": _squares,
        "truncation": _truncations,
        "products in the clear": _clear,
        "homomorphic encryption": _encryption,
    }
    for what, step in steps.items():
        if observe:
            observe(what)
        units |= step(rounds)
    if observe:
        observe("whole runs")
    return adjusted(Profile(name, date.today().isoformat(), machine(), versions(), units, resident), -(-rounds // 9))


def _wire(rounds: int) -> Units:
    with tempfile.TemporaryDirectory() as scratch, listen("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as threads:
        folder = Path(scratch)
        create_authority(folder)
        ends = {role: Endpoint(issue(folder, role, "calibration")) for role in ("client", "server")}
        agreement = Agreement("0" * 64, {})
        piece = np.zeros(PIECE_BYTES, np.uint8)
        count = 8

        def serve() -> float:
            channel = ends["server"].accept(listener.accept()[0])
            with server_session(channel, lambda _: agreement):
                begin = time.thread_time()
                for _ in range(count):
                    channel.receive(Frame.TABLES, piece.nbytes)
                return time.thread_time() - begin

        measured: list[tuple[float, float, float]] = []
        for _ in range(rounds):
            served = threads.submit(serve)
            begin = time.perf_counter()
            channel = ends["client"].connect("127.0.0.1", listener.getsockname()[1])
            with client_session(channel, agreement):
                greeted = time.perf_counter() - begin
                begin = time.thread_time()
                for _ in range(count):
                    channel.send(Frame.TABLES, piece)
                sent = time.thread_time() - begin
            measured.append((greeted, sent / count / piece.nbytes, served.result() / count / piece.nbytes))
    session, send, receive = minima(measured)
    return {"session": session, "tls.send": send, "tls.receive": receive}


def _store(rounds: int) -> Units:
    binding = Binding("0" * 64, "1" * 64, {})
    count = 8
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))

        def once(streams: int, pieces: int, size: int) -> tuple[float, ...]:
            """Seconds to create, write, commit, claim, and read and destroy a batch."""
            session = os.urandom(32).hex()
            batches = [Prepared({"tables": np.zeros(size, np.uint8)}) for _ in range(streams * pieces)]
            marks = [time.perf_counter()]
            with store.create(binding, session) as writer:
                marks.append(time.perf_counter())
                with Writing(writer) as sink:
                    for number, prepared in enumerate(batches):
                        sink.put(f"{number % streams}.x", prepared)
                marks.append(time.perf_counter())
                writer.commit()
            marks.append(time.perf_counter())
            with store.claim(binding, session) as batch:
                marks.append(time.perf_counter())
                for number in range(streams):
                    for prepared in Reading(batch).get(f"{number}.x"):
                        prepared.take()
                marks.append(time.perf_counter())
            marks.append(time.perf_counter())
            return tuple(after - before for before, after in pairwise(marks))

        small, many, large = (
            minima([once(*sizes) for _ in range(rounds)])
            for sizes in ((1, 1, 64), (65, 1, 64), (1, count, PIECE_BYTES))
        )
    nbytes = count * PIECE_BYTES
    return {
        "store.create": small[0] + small[2],
        "store.claim": small[3],
        "store.stream": max(sum(many[:3]) - sum(small[:3]), 0.0) / 64,
        "store.open": max(sum(many[3:]) - sum(small[3:]), 0.0) / 64,
        "store.write": large[1] / nbytes,
        "store.commit": max(large[2] - small[2], 0.0) / nbytes,
        "store.read": large[4] / nbytes,
        "store.destroy": max(large[5] - small[5], 0.0) / nbytes,
    }


def _transfers(rounds: int) -> Units:
    count = 1 << 19
    send_base, receive_base, choose, give = minima([_transfer(count) for _ in range(rounds)])
    return {
        "ot.base.send": send_base,
        "ot.base.receive": receive_base,
        "ot.choose": choose / count,
        "ot.send": give / count,
    }


def _transfer(count: int) -> tuple[float, ...]:
    """Seconds of the base transfers' sender and receiver, of the chooser and the sender of ``count`` transfers."""
    session, rng = os.urandom(32), Randomness()
    choices = rng.bytes(count) & np.uint8(1)
    receiver: list[CotReceiver] = []
    sender: list[CotSender] = []
    base = run_parties(
        lambda channel: receiver.append(IKNP.receiver(channel, session, rng)),
        lambda channel: sender.append(IKNP.sender(channel, session, Delta(Randomness()), Randomness())),
    )
    extended = run_parties(
        lambda channel: receiver[0].chosen(channel, choices), lambda channel: sender[0].chosen(channel, count)
    )
    return *base, *extended


def _relus(rounds: int) -> Units:
    few, many = GC_FULL.batch // 8, 2 * GC_FULL.batch
    units: Units = {}
    transfers = _transfers(rounds)

    def timed(protocol: GarbledRelu, layer: GarbledLayer) -> dict[str, float]:
        rows = [_relu(protocol, layer, transfers) for _ in range(rounds)]
        return dict(zip(("garble", "take", "label", "evaluate"), minima(rows), strict=True))

    for garbler in ROLES:
        full, sign = ReluGc(ReluConfig(garbler=garbler)), ReluSign(ReluConfig("gc-stochastic", garbler=garbler))
        layers = [GarbledLayer("calibration", RING, 11, count, garbler) for count in (few, many)]
        gates = layers[0].circuit.and_gates
        small, large = (timed(full, layer) for layer in layers)
        for step in large:
            name = f"{full.work_names}.{garbler}.{step}"
            if step in ("take", "label"):
                units[name] = large[step] / many / gates
            else:
                units |= _line(name, "gate", (1, few, small[step] / gates), (2, many, large[step] / gates))
        narrow, wide = (
            GarbledLayer("calibration", RING, 11, many, garbler, sign=Window(RING, low, RING.bits)) for low in (20, 0)
        )
        small, large = timed(sign, narrow), timed(sign, wide)
        for step in large:
            name = f"{sign.work_names}.{garbler}.{step}"
            sizes = [(many, many * layer.circuit.and_gates) for layer in (narrow, wide)]
            units |= _line(name, "relu", (*sizes[0], small[step]), (*sizes[1], large[step]))
            if step in ("garble", "evaluate"):
                units[f"{name}.gate"] = units[f"{full.work_names}.{garbler}.{step}.gate"]
    return units


def _line(name: str, other: str, *points: tuple[int, int, float]) -> Units:
    """Seconds of two things, from (how many of the other, how many of the first, seconds) at two sizes."""
    (one, few, short), (two, many, long) = points
    each = (long - two / one * short) / (many - two / one * few)
    if not 0 < each * few <= short:  # too noisy for two unknowns
        return {name: long / many, f"{name}.{other}": 0.0}
    return {name: each, f"{name}.{other}": (short - each * few) / one}


def _relu(protocol: GarbledRelu, layer: GarbledLayer, transfers: Units) -> tuple[float, ...]:
    """Seconds of the garbler offline, evaluator offline, garbler online, evaluator online; transfers taken off."""
    seconds = party_seconds(protocol, layer)
    evaluator = OTHER[layer.garbler]
    count = layer.chosen * layer.count
    return (
        max(seconds["offline", layer.garbler] - count * transfers["ot.send"], 0.0),
        max(seconds["offline", evaluator] - count * transfers["ot.choose"], 0.0),
        seconds["online", layer.garbler],
        seconds["online", evaluator],
    )


def party_seconds(protocol: Protocol[Any, Any], layer: Any) -> dict[tuple[str, str], float]:
    """Seconds that each role works in each phase of one layer, by (phase, role)."""
    id, rng = os.urandom(32), Randomness()
    share, mask, theirs = (layer.modulus.random(layer.count, rng) for _ in range(3))
    setups: dict[Role, Any] = {}
    kept: dict[Role, list[Prepared]] = {"client": [], "server": []}
    shares: dict[Role, tuple[Any, Any]] = {"client": (share, mask), "server": (None, None)}

    def set_up(role: Role) -> Step:
        def step(channel: Channel) -> None:
            setups[role] = protocol.setup(Run(channel, id, role, Randomness()), [layer])

        return step

    def offline(role: Role) -> Step:
        def step(channel: Channel) -> None:
            prepared = protocol.offline(Run(channel, id, role, Randomness()), setups[role], layer, *shares[role])
            kept[role] += [one for one in prepared if one is not None]

        return step

    def online(role: Role) -> Step:
        def step(channel: Channel) -> None:
            answer = theirs if role == "server" else None
            for _ in protocol.online(Run(channel, id, role, Randomness()), layer, iter(kept[role]), answer):
                pass

        return step

    steps = {"setup": set_up, "offline": offline, "online": online}
    took = {phase: run_parties(step("client"), step("server")) for phase, step in steps.items()}
    return {(phase, role): took[phase][at] for phase in took for at, role in enumerate(("client", "server"))}


def _transfer_relus(rounds: int) -> Units:
    """A chain and a tree over all bits, by their transfers, whose making is in the offline time."""
    units: Units = {}
    for carry in CARRIES:
        protocol = ReluOt(ReluConfig("ot", carry=carry))
        layer = protocol.layer(RING, Relu("calibration", ("input",), 11), 1 << 13)
        rows = [party_seconds(protocol, layer) for _ in range(rounds)]
        transfers = layer.count * (layer.relu.transfers + layer.relu.back)
        phases = [(phase, role) for phase, role in rows[0] if phase != "setup"]
        name = f"ot.{layer.relu.work_names}"
        units |= {f"{name}.{role}.{phase}": min(row[phase, role] for row in rows) / transfers for phase, role in phases}
    return units


def _squares(rounds: int) -> Units:
    """Offline by transfer, whose making is in the time, and online by square."""
    count = 1 << 13
    layer = SquaringLayer("calibration", Squaring(RING, 8, 10), count, count, slice(None), count)
    nothing = np.zeros(count, np.uint64)
    protocol = Squares(served={layer.name: Constants(nothing, nothing)})
    rows = [party_seconds(protocol, layer) for _ in range(rounds)]
    counts = {"offline": count * (layer.squaring.product + 1), "online": count}
    return {
        f"square.{role}.{phase}": min(row[phase, role] for row in rows) / counts[phase]
        for phase in counts
        for role in ROLES
    }


def _truncations(rounds: int) -> Units:
    layer = TruncationLayer("calibration", RING, 11, 1 << 16)
    transfers = _transfers(rounds)
    rows = [party_seconds(Truncation(), layer) for _ in range(rounds)]
    units: Units = {}
    for role, transfer in (("client", "ot.choose"), ("server", "ot.send")):
        taken = min(row["offline", role] for row in rows) - layer.count * transfers[transfer]
        units[f"truncate.{role}.offline"] = max(taken, 0.0) / layer.count
        units[f"truncate.{role}.online"] = min(row["online", role] for row in rows) / layer.count
    return units


def _clear(rounds: int) -> Units:
    """A narrow layer mostly gathers patches, a wide one multiplies, a wider one of a tiny map converts weights."""
    rng = np.random.default_rng(0)
    equations: list[list[float]] = []
    seconds: list[float] = []
    for channels, side in ((16, 32), (256, 8), (512, 2)):
        op = Conv2d("calibration", ("input",), channels, 3, 8, 8, 1, 1)
        weights = Weights(rng.integers(-99, 100, (channels, channels, 3, 3), np.int64), np.zeros(channels, np.int64))
        share = RING.random((channels, side, side), Randomness())
        seconds.append(fastest(lambda op=op, weights=weights, x=share: on_shares(op, weights, x, RING), 5 * rounds))
        patches = channels * 9 * side * side
        equations.append([patches * channels, patches, weights.weight.size])
    times = np.linalg.solve(np.array(equations), np.array(seconds))
    mac, patch, weight = map(float, np.maximum(times, 0.0))  # a small one may drown in noise
    values = RING.random(1 << 18, Randomness())
    element = fastest(
        lambda: RING.unpack(memoryview(bytearray(RING.pack(RING.sub(values, values)))), values.size), rounds
    )
    return {"clear.mac": mac, "clear.patch": patch, "clear.weight": weight, "element": element / values.size}


def _encryption(rounds: int) -> Units:
    widest = {len(parameters.prime_bits): parameters for parameters in known_parameters(RING.order)}
    units: Units = {}
    for primes, parameters in widest.items():
        units |= {f"he{primes}.{unit}": seconds for unit, seconds in _one_set(parameters, rounds).items()}
    return units


def _one_set(parameters: Parameters, rounds: int) -> Units:
    """Homomorphic units under one set of parameters, which go by the number of its primes."""
    layout = lay_out(Convolution(16, 32, 32, 16, 3, 1, 1, 4), parameters)
    levels, leaves = 3, 8
    parameters = replace(parameters, galois_keys=levels)
    keys = fastest(lambda: ClientKey(parameters).public_key(), rounds)
    key = ClientKey(parameters)
    public, switching = key.public_key(), key.galois_keys()
    responder = Responder(parameters, public, switching)
    polynomial = RING.random(parameters.degree, Randomness())
    fresh = key.encrypt(polynomial)
    received = responder.receive(fresh)
    weights = np.random.default_rng(0).integers(-8, 9, layout.layer.weight_shape)
    split = layout.split_weights(weights)[: layout.out_tile]
    encoded = encode(parameters, layout.plaintext(split, 0))
    all_places = np.arange(parameters.degree // 2, dtype=np.intp)
    few, most, many = all_places[:64], all_places, 8

    def respond(places: Any, mux: int) -> bytes:
        mask = np.zeros(len(places), np.uint64)
        return responder.respond([[(received, encoded)] * mux], mask, layout.form, places)

    def packed() -> bytes:
        pairs, form = [(received, encoded)], replace(layout.form, interleave=leaves)
        return responder.respond([pairs] * leaves, np.zeros(len(few), np.uint64), form, few)

    bare, one, wide = (
        fastest(lambda places=places, n=n: respond(places, n), rounds)
        for places, n in ((few, 0), (few, many), (most, 0))
    )
    short, long = respond(few, 1), respond(most, 1)
    narrow, broad = (
        fastest(lambda data=data, places=places: key.decrypt(data, layout.form, places), rounds)
        for data, places in ((short, few), (long, most))
    )
    extra = len(most) - len(few)
    product = max(one - bare, 0.0) / many
    receive = fastest(lambda: responder.receive(fresh), rounds)
    return {
        "keys": keys,
        "switching": fastest(key.galois_keys, rounds) / levels,
        "switching.receive": max(fastest(lambda: Responder(parameters, public, switching), rounds) - receive, 0.0)
        / levels,
        "switch": max(fastest(packed, rounds) - bare - leaves * product, 0.0) / (leaves - 1),
        "encrypt": fastest(lambda: key.encrypt(polynomial), rounds),
        "receive": receive,
        "encode": fastest(lambda: encode(parameters, layout.plaintext(split, 0)), rounds),
        "product": product,
        "respond": bare,
        "reveal": max(wide - bare, 0.0) / extra,
        "decrypt": narrow,
        "reveal.client": max(broad - narrow, 0.0) / extra,
    }


def machine() -> dict[str, Any]:
    """Its processor, cores, system and load."""
    facts: dict[str, str] = {}
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text().splitlines() if listed.exists() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that the units depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _resident() -> int:
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0
