"""Many sessions beside a crowd of strangers and with faults: is anything lost, is anything left?

    python benchmarks/soak.py --clients 10 --sessions 200 --strangers 200 --out benchmarks/results/soak.json

A service runs in a process of its own. Clients prepare and ask, at most ``--at-once`` of them at a time, first alone
and then beside strangers who connect so many times a second and send nothing, garbage, or half a greeting, while a
session's process is killed now and then. Descriptors, memory and processes of the front, and batches and keys in its
store, are counted before and after. Times are medians of a prepare and a query that nobody killed; they count on a
quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/private")]

import numpy as np  # noqa: E402
from programs import ONE_RELU, random_inputs  # noqa: E402
from support.service import Served, served  # noqa: E402

from deepreshape.private.errors import PrivateError  # noqa: E402
from deepreshape.private.program import interpret  # noqa: E402
from deepreshape.private.service.quotas import Caps  # noqa: E402

X = random_inputs(ONE_RELU, 1, 1)
EXPECTED = interpret.run(ONE_RELU, X)[0]
CAPS = Caps(sessions=64, sessions_each=4, batches_each=1000, queries_hour_each=10**6, queries_day_each=10**6)
GREETINGS = (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01")


@dataclass
class Run:
    """What the clients of one run met."""

    seconds: list[float] = field(default_factory=list[float])
    wrong: int = 0
    failed: int = 0
    strangers: int = 0


def counts(server: Served) -> dict[str, Any]:
    """What the front and its store hold."""
    process, store = Path(f"/proc/{server.process.pid}"), server.folder / "server"
    (memory,) = (line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    folders = {name: len(list((store / name).iterdir())) for name in ("writing", "fresh", "claimed", "keys")}
    return {
        "descriptors": len(list((process / "fd").iterdir())),
        "memory_mib": int(memory.split()[1]) / 1024,
        "processes": len(server.children()),
        **folders,
    }


def ask(server: Served, name: str, run: Run) -> None:
    """One session that prepares and one that asks."""
    began = time.monotonic()
    try:
        client = server.client(name)
        answer = client.infer(X[0], client.prepare().batch)
    except PrivateError:
        run.failed += 1
        return
    run.seconds.append(time.monotonic() - began)
    run.wrong += not np.array_equal(answer.output, EXPECTED)


def crowd(server: Served, rate: int, run: Run, over: threading.Event) -> None:
    """Strangers, ``rate`` connections a second; each stays for a second."""
    held: list[tuple[float, socket.socket]] = []
    rng = random.Random(0)  # noqa: S311
    while not over.is_set():
        with suppress(OSError):
            end = socket.create_connection(("127.0.0.1", server.port), 5)
            end.sendall(rng.choice(GREETINGS))
            held.append((time.monotonic() + 1, end))
            run.strangers += 1
        while held and held[0][0] < time.monotonic():
            held.pop(0)[1].close()
        over.wait(1 / rate)
    for _, end in held:
        end.close()


def kill_some(server: Served, page: int, every_s: float, over: threading.Event) -> None:
    """Kill a session's process now and then."""
    while not over.wait(every_s):
        for process in sorted(server.children() - {page})[:1]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def main() -> None:
    """Soak a service."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--sessions", type=int, default=200, help="in all, of which half prepare and half ask")
    parser.add_argument("--strangers", type=int, default=200, help="connections a second")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=2.0, help="seconds between kills of a session")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, served(Path(name), CAPS) as server:
        lines: list[str] = []
        assert server.process.stdout
        reader = threading.Thread(target=lambda: lines.extend(server.process.stdout or []), daemon=True)
        reader.start()
        while not server.children():
            time.sleep(0.1)
        (page,) = server.children()
        for number in range(given.clients):
            server.client(f"c{number}")
        alone, beside = Run(), Run()
        rounds = given.sessions // 2

        def all_ask(run: Run) -> None:
            with ThreadPoolExecutor(given.at_once) as pool:
                for number in range(rounds):
                    pool.submit(ask, server, f"c{number % given.clients}", run)

        ask(server, "c0", Run())  # what is made once is made now
        time.sleep(1.5)
        before = counts(server)
        all_ask(alone)
        over = threading.Event()
        others = [threading.Thread(target=crowd, args=(server, given.strangers, beside, over))]
        others.append(threading.Thread(target=kill_some, args=(server, page, given.kill_every, over)))
        for thread in others:
            thread.start()
        all_ask(beside)
        over.set()
        for thread in others:
            thread.join()
        time.sleep(12)  # the last strangers' time for a handshake
        after = counts(server)
        alive = server.process.poll() is None
        server.process.terminate()
        server.process.wait(60)
        reader.join()
    medians = [statistics.median(run.seconds) if run.seconds else None for run in (alone, beside)]
    result = {
        "command": f"benchmarks/soak.py --clients {given.clients} --sessions {given.sessions} --strangers "
        f"{given.strangers} --at-once {given.at_once} --kill-every {given.kill_every:g}",
        "before": before,
        "after": after,
        "front_alive": alive,
        "alone": {"answered": len(alone.seconds), "wrong": alone.wrong, "failed": alone.failed},
        "beside": {
            "answered": len(beside.seconds),
            "wrong": beside.wrong,
            "failed": beside.failed,
            "strangers": beside.strangers,
            "killed": sum("status -9" in line for line in lines),
            "unforeseen": sum("unforeseen" in line for line in lines),
        },
        "median_s": dict(zip(("alone", "beside"), medians, strict=True)),
    }
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
