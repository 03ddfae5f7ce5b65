"""Both parties on this machine, in two processes, over the real wire: the quick look at what a program costs.

The processes talk over loopback with TLS 1.3, under an authority and certificates made for this run and thrown away
with it, and keep their preprocessing in encrypted stores. The client's process is given the public program and the
inputs, the server's the weights. This process plays neither party: it starts them, and compares what the client got
with the plain interpreter, for which the client's process tells it its own shares of what depends on them
(``plain.py``). That is for checks on one machine; parties who do not trust each other use ``party.py``.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Words
from deepreshape.private.crypto.backend import engine
from deepreshape.private.errors import ProtocolError
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.sessions import InferenceClient, Progress, serve
from deepreshape.private.parties.store import Store
from deepreshape.private.processes import command, safe_environment
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.ops import Integers
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, Assignment, ReluConfig, Role, read_relus
from deepreshape.private.service.segmented import largest_places
from deepreshape.private.transport.certificates import Credentials, create_authority, issue
from deepreshape.private.transport.ledger import Ledger
from deepreshape.private.transport.tls import EmulatedLink, Endpoint, Limits, listen

PATIENT = Limits(read_s=600, write_s=600, session_s=3600)
POLL_S = 0.02
READY = "ready"
"""A file by which the server's process says that it can be connected to."""
BLAME_S = 5.0
"""How long the other party is waited for when one has failed, to learn which is the cause."""
PEERS_FAULT = "peer: "
"""What a party's reason begins with if it came over the wire."""
REASON_BYTES = 4096
KEPT_BYTES = 1 << 29
"""The most memory that encoded weights may take between inferences."""
_COUNT = struct.Struct("<Q")
Traffic = dict[str, list[int]]
Times = dict[str, float]


class Report(NamedTuple):
    """What a party's process tells, by inference; ledgers are {"layer|phase": [sent, received]}, times alike."""

    ledgers: list[Traffic]
    times: list[Times]
    seconds: list[dict[str, float]]
    stored: int
    peak_rss_mib: float


def run_local(
    program: Program,
    inputs: Integers,
    relu: ReluConfig | Assignment = GC_FULL,
    *,
    link: EmulatedLink | None = None,
    limits: Limits = PATIENT,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Run a program on every input between two processes, and report what it cost.

    Args:
        program: with its weights.
        inputs: (N, *input_shape), int64.
        relu: how ReLUs are computed, in all layers alike or layer by layer.
        link: a slower link to emulate.
        limits: time-outs.
        progress: is told how many of the offline phases' bytes have travelled.
        workers: at most how many processes the server uses for homomorphic layers; as many as there are cores unless
            given.

    Returns:
        ``agree``: private equals plain on all inputs, bit for bit, rounding as the shares say; ``max_lsb_difference``:
        the largest distance to the plain program that rounds to the nearest, in units of the output;
        ``same_class``: the largest output is at the same place on all inputs, or at each place of a map;
        ``same_places`` of ``places``: of how many that is so;
        ``relus``, ``squares`` and ``signs``;
        ``seconds`` and ``bytes`` of one inference, means, {"offline", "online"}, connecting and set-up included;
        ``rounds``: the client's waits online; ``declared_bytes_match``: in every layer and phase of every inference
        both parties counted what was declared; ``peak_rss_mib`` and ``stored_mib`` {"client", "server"}; ``layers``: a
        row each, with the seconds that each party spent there, waits included; ``outputs``: the integers, as lists.

    Raises:
        ProgramError: if a value may not fit the modulus.
        ValueError, OverflowError: if an input does not fit.
        ProtocolError: if a process fails or is killed.
    """
    plan = Plan(program.public(), relu)
    program.check(plan.max_inputs)
    expected = plain.run(program, inputs, protocols=plan.protocols)  # refuses bad inputs before anything is started
    with tempfile.TemporaryDirectory(prefix="deepreshape-local-") as scratch, listen("127.0.0.1", 0) as listener:
        folder = Path(scratch)
        settings = {
            "relu": str(relu),
            "count": len(inputs),
            "workers": workers,
            "limits": asdict(limits),
            "link": None if link is None else asdict(link),
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        create_authority(folder)
        parts: dict[Role, Program] = {"client": program.public(), "server": program}
        for role, part in parts.items():
            issue(folder, role, "local")
            (folder / role).mkdir(mode=0o700)
            (folder / role / "program").write_bytes(to_bytes(part))
        inputs.tofile(folder / "client" / "inputs")
        _run_processes(folder, listener, lambda done: progress and progress(done, len(inputs) * plan.offline_bytes()))
        outputs = _array(folder / "client" / "outputs", np.dtype(np.int64), expected.shape)
        shares = [_shares(folder, plan, number) for number in range(len(inputs))]
        reports = {role: Report(**json.loads((folder / role / "report").read_text())) for role in ("client", "server")}
    rounded = [
        plain.run(program, x[None], client=client_shares, protocols=plan.protocols)[0]
        for x, client_shares in zip(inputs, shares, strict=True)
    ]
    compared = {
        "agree": bool(np.array_equal(outputs, np.stack(rounded))),
        "max_lsb_difference": int(np.abs(outputs - expected).max()),
        "same_class": bool(np.array_equal(largest_places(outputs), largest_places(expected))),
        "same_places": int((largest_places(outputs) == largest_places(expected)).sum()),
        "places": largest_places(expected).size,
        "outputs": outputs.tolist(),
    }
    return compared | _costs(plan, reports)


class _Party(NamedTuple):
    """A party's process, and the pipe by which it says why it failed: a full disk takes no file with the reason."""

    process: subprocess.Popen[bytes]
    reasons: int


def _run_processes(folder: Path, listener: socket.socket, progress: Callable[[int], object]) -> None:
    """Start both processes and wait for them. The first that fails ends the other.

    ``progress`` is told what the client's process writes to its standard output: a count of bytes, again and again.
    """
    place = {"server": listener.fileno(), "client": listener.getsockname()[1]}
    running: dict[str, _Party] = {}
    heard, told = os.pipe()
    os.set_blocking(heard, False)
    with open(heard, "rb") as counts, open(told, "wb") as telling, ExitStack() as stack:
        try:
            for role, number in place.items():
                reasons, writing = os.pipe()
                stack.callback(os.close, reasons)
                os.set_blocking(reasons, False)
                keep = (listener.fileno(),) if role == "server" else ()
                try:
                    # a session of its own: an interrupt at the keyboard reaches this process, which then ends both
                    process = subprocess.Popen(  # noqa: S603
                        command(__name__, role, folder, number, writing),
                        env=safe_environment(),
                        pass_fds=(*keep, writing),
                        stdin=subprocess.DEVNULL,
                        stdout=telling if role == "client" else subprocess.DEVNULL,
                        start_new_session=True,
                    )
                finally:
                    os.close(writing)
                running[role] = _Party(process, reasons)
            parties = dict(running)
            while running:
                time.sleep(POLL_S)
                for role, party in list(running.items()):
                    if party.process.poll() is not None:
                        del running[role]
                        if party.process.returncode:
                            raise ProtocolError(_failure(parties, role))
                if new := counts.read():
                    progress(_COUNT.unpack(new[-_COUNT.size :])[0])
        finally:
            for party in running.values():
                party.process.terminate()
                party.process.wait()


def _failure(parties: Mapping[str, _Party], first: str) -> str:
    """Why a run failed. A party that lost its peer says so at once, and may end before the one that is the cause."""
    other = next(role for role in parties if role != first)
    with suppress(subprocess.TimeoutExpired):
        parties[other].process.wait(BLAME_S)
    failed = [role for role in (first, other) if parties[role].process.returncode]
    said = {role: _reason(parties[role].reasons) for role in failed}
    blamed = next((role for role in failed if not said[role].startswith(PEERS_FAULT)), first)
    if said[blamed]:
        return f"the {blamed} failed: {said[blamed].removeprefix(PEERS_FAULT)}"
    code = parties[blamed].process.returncode
    return f"the {blamed}'s process ended with status {code}; if it was killed, it may have run out of memory"


def _reason(pipe: int) -> str:
    with suppress(BlockingIOError):  # a process that it started may have it open still
        return os.read(pipe, REASON_BYTES).decode(errors="replace")
    return ""


def _act(role: Role, folder: Path, number: int) -> None:
    """What a party's process does. ``number`` is the port to connect to, or the listening socket's descriptor."""
    settings = json.loads((folder / "settings.json").read_text())
    party_folder = folder / role
    program = from_bytes((party_folder / "program").read_bytes())
    plan = Plan(program.public(), read_relus(settings["relu"]))
    link = None if settings["link"] is None else EmulatedLink(**settings["link"])
    endpoint = Endpoint(Credentials.within(folder, role, "local"), Limits(**settings["limits"]), link)
    store = Store(party_folder / "store")
    if role == "server":
        engine().prepare()  # as a service does once
        model = Model(program, plan, keep=_keeps(plan, settings["count"]), workers=settings["workers"])
        (folder / READY).touch()
        report = _serve(endpoint, model, store, number, settings["count"])
    else:
        while not (folder / READY).exists():  # what is timed is the protocol, not how long a process takes to start
            time.sleep(POLL_S)
        inputs = _array(party_folder / "inputs", np.dtype(np.int64), (settings["count"], *program.input_shape))
        report = _query(InferenceClient(endpoint, "127.0.0.1", number, plan, store), inputs, party_folder)
    (party_folder / "report").write_text(json.dumps(report._asdict()))


def _keeps(plan: Plan, count: int) -> bool:
    """Whether encoded weights will be used again, and fit."""
    each = plan.parameters.encoded_bytes if plan.parameters else 0
    return count > 1 and each * sum(row.he_products for row in plan.declared().rows) <= KEPT_BYTES


def _query(party: InferenceClient, inputs: Integers, folder: Path) -> Report:
    ledgers: list[Traffic] = []
    times: list[Times] = []
    seconds: list[dict[str, float]] = []
    outputs: list[Integers] = []
    wanted = sorted(party.plan.by_shares)
    stored = 0
    for number, x in enumerate(inputs):

        def keep(name: str, share: Words, number: int = number) -> None:
            if name in wanted:
                share.tofile(folder / f"share-{number}-{wanted.index(name)}")

        def tell(done: int, total: int, number: int = number) -> None:
            sys.stdout.buffer.write(_COUNT.pack(number * total + done))
            sys.stdout.buffer.flush()

        start = time.perf_counter()
        prepared = party.prepare(keep, tell)
        middle = time.perf_counter()
        answer = party.infer(x, prepared.batch, observe=keep)
        seconds.append({"offline": middle - start, "online": time.perf_counter() - middle})
        ledgers.append(_traffic(prepared.ledger) | _traffic(answer.ledger))
        times.append(_times(prepared.ledger) | _times(answer.ledger))
        outputs.append(answer.output)
        stored = prepared.nbytes
    np.stack(outputs).tofile(folder / "outputs")
    return Report(ledgers, times, seconds, stored, _peak_rss_mib())


def _serve(endpoint: Endpoint, model: Model, store: Store, descriptor: int, count: int) -> Report:
    ledgers: list[Traffic] = []
    times: list[Times] = []
    stored = 0
    with socket.socket(fileno=descriptor) as listener:
        for _ in range(count):
            ends: Traffic = {}
            took: Times = {}
            for _ in ("offline", "online"):
                channel = endpoint.accept(listener.accept()[0])
                stored = max(stored, serve(channel, model, store))
                ends |= _traffic(channel.ledger)
                took |= _times(channel.ledger)
            ledgers.append(ends)
            times.append(took)
    return Report(ledgers, times, [], stored, _peak_rss_mib())


def _traffic(ledger: Ledger) -> Traffic:
    """What was counted, without the handshake, which is booked to no layer."""
    return {f"{layer}|{phase}": [row.sent, row.received] for (layer, phase), row in ledger.traffic.items() if layer}


def _times(ledger: Ledger) -> Times:
    return {f"{layer}|{phase}": seconds for (layer, phase), seconds in ledger.seconds.items() if layer}


def _costs(plan: Plan, reports: dict[str, Report]) -> dict[str, Any]:
    declared = plan.declared()
    traffic: Traffic = {}
    for row in declared.rows:
        up, down = traffic.get(f"{row.layer}|{row.phase}", [0, 0])
        traffic[f"{row.layer}|{row.phase}"] = [up + row.bytes_up, down + row.bytes_down]
    wanted = {place: counts for place, counts in traffic.items() if any(counts)}
    backwards = {place: counts[::-1] for place, counts in wanted.items()}
    matches = [counts == wanted for counts in reports["client"].ledgers]
    matches += [counts == backwards for counts in reports["server"].ledgers]
    seconds = reports["client"].seconds
    return {
        "relus": plan.program.relus,
        "squares": plan.program.squares,
        "signs": plan.program.signs,
        "seconds": {phase: sum(row[phase] for row in seconds) / len(seconds) for phase in ("offline", "online")},
        "bytes": {
            "offline": declared.bytes - declared.only(phase="online").bytes,
            "online": declared.only(phase="online").bytes,
        },
        "rounds": sum(row.rounds for row in declared.only(phase="online").rows),
        "declared_bytes_match": all(matches),
        "peak_rss_mib": {role: report.peak_rss_mib for role, report in reports.items()},
        "stored_mib": {role: report.stored / (1 << 20) for role, report in reports.items()},
        "layers": [_layer(plan, name, reports) for name in declared.layers],
    }


def _layer(plan: Plan, name: str, reports: Mapping[str, Report]) -> dict[str, Any]:
    def took(role: str, phase: str) -> float:
        times = reports[role].times
        return sum(time.get(f"{name}|{phase}", 0.0) for time in times) / len(times)

    declared = plan.declared().only(layer=name)
    online = declared.only(phase="online")
    return {
        "layer": name,
        "relus": sum(row.relus for row in online.rows),
        "squares": sum(row.squares for row in online.rows),
        "signs": sum(row.signs for row in online.rows),
        "macs": sum(row.macs for row in declared.rows),
        "he_products": sum(row.he_products for row in declared.rows),
        "rounds": sum(row.rounds for row in online.rows),
        "bytes": {"offline": declared.bytes - online.bytes, "online": online.bytes},
        "seconds": {role: {phase: round(took(role, phase), 6) for phase in ("offline", "online")} for role in reports},
    }


def _shares(folder: Path, plan: Plan, number: int) -> dict[str, Words]:
    return {
        name: _array(folder / "client" / f"share-{number}-{at}", np.dtype(np.uint64), plan.by_shares[name])
        for at, name in enumerate(sorted(plan.by_shares))
    }


def _array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.fromfile(path, dtype, math.prod(shape)).reshape(shape)


def _peak_rss_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux is never below the memory of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / (1 << 10)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _main(role: Role, folder: Path, number: int, reasons: int) -> int:
    try:
        _act(role, folder, number)
    except Exception as error:
        fault = PEERS_FAULT if isinstance(error, ProtocolError) else ""
        os.write(reasons, f"{fault}{type(error).__name__}: {error}".encode()[:REASON_BYTES])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main("server" if sys.argv[1] == "server" else "client", Path(sys.argv[2]), *map(int, sys.argv[3:])))
