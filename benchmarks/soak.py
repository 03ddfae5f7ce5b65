"""Many sessions beside a crowd of strangers and with faults: is anything lost, is anything left?

    python benchmarks/soak.py --clients 10 --sessions 200 --strangers 200 --out benchmarks/results/soak.json

A service runs in a process of its own. Clients prepare and ask, at most ``--at-once`` of them at a time, first alone
and then beside strangers who connect so many times a second and send nothing, garbage, or half a greeting, while a
session's process is killed now and then and some connections are cut after a random number of bytes. At the end every
client uses up the batches that it holds, so that what is left at the server is what nobody can use. Descriptors, memory
and processes of the front, and batches and keys in its store, are counted before and after. Times are medians of a
prepare and a query that nobody disturbed; they count on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import select
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests",)]

import numpy as np  # noqa: E402
from support.programs import ONE_RELU, random_inputs  # noqa: E402
from support.service import Served, served  # noqa: E402

from deepreshape.private.errors import PrivateError  # noqa: E402
from deepreshape.private.parties.sessions import InferenceClient  # noqa: E402
from deepreshape.private.program import interpret  # noqa: E402
from deepreshape.private.service.quotas import Caps  # noqa: E402

X = random_inputs(ONE_RELU, 1, 1)
EXPECTED = interpret.run(ONE_RELU, X)[0]
CAPS = Caps(sessions=64, sessions_each=4, batches_each=1000, queries_hour_each=10**6, queries_day_each=10**6)
GREETINGS = (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01")
CUT_EVERY = 10
"""One round in so many runs over a line that is cut."""
MOST_BYTES = 200_000
"""A line is cut after at most so many bytes; a prepare takes about as many."""


@dataclass
class Run:
    """What the clients of one run met."""

    seconds: list[float] = field(default_factory=list[float])
    wrong: int = 0
    failed: int = 0
    cut: int = 0


def counts(server: Served) -> dict[str, Any]:
    """What the front and its store hold."""
    process, store = Path(f"/proc/{server.process.pid}"), server.folder / "server"
    (memory,) = (line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    folders = {name: len(list((store / name).iterdir())) for name in ("writing", "fresh", "claimed", "keys")}
    return {
        "descriptors": len(list((process / "fd").iterdir())),
        "memory_mib": round(int(memory.split()[1]) / 1024, 1),
        "processes": len(server.children()),
        **folders,
    }


def ask(client: InferenceClient, run: Run, *, cut: bool = False) -> None:
    """One session that prepares and one that asks."""
    began = time.monotonic()
    try:
        answer = client.infer(X[0], client.prepare().batch)
    except PrivateError:
        run.failed += 1
        return
    if not cut:
        run.seconds.append(time.monotonic() - began)
    run.wrong += not np.array_equal(answer.output, EXPECTED)


def ask_cut(client: InferenceClient, run: Run, seed: int) -> None:
    """The same over a line that is cut after a random number of bytes."""
    rng = random.Random(seed)  # noqa: S311
    run.cut += 1
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = threading.Thread(target=relay, args=(listener, client.port, rng.randrange(MOST_BYTES), over))
        line.start()
        ask(replace(client, port=listener.getsockname()[1]), run, cut=True)
        over.set()
        line.join()


def relay(listener: socket.socket, port: int, most: int, over: threading.Event) -> None:
    """Carry bytes of one connection after another both ways, until ``most`` have passed or it is over."""
    left = most
    while left > 0 and not over.is_set():
        if not select.select([listener], [], [], 0.1)[0]:
            continue
        with listener.accept()[0] as near, socket.create_connection(("127.0.0.1", port)) as far, suppress(OSError):
            other, ended = {near: far, far: near}, False
            while left > 0 and not ended:
                for end in select.select([near, far], [], [], 60)[0]:
                    data = end.recv(1 << 14)
                    other[end].sendall(data)
                    left -= len(data)
                    ended |= not data


def halves(folder: Path) -> set[str]:
    """The batches that a store holds, by their ids."""
    return {path.name for path in (folder / "fresh").iterdir()}


def use_up(client: InferenceClient) -> int:
    """Ask until the client holds no batch any more; how many answers were right."""
    right = 0
    while halves(client.store.folder):
        right += np.array_equal(client.infer(X[0]).output, EXPECTED)
    return right


def crowd(port: int, rate: int, over: Event, count: Any) -> None:
    """Strangers, ``rate`` connections a second, in a process of their own; each stays for a second."""
    held: list[tuple[float, socket.socket]] = []
    rng, due = random.Random(0), time.monotonic()  # noqa: S311
    while not over.is_set():
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
        with suppress(OSError):
            end = socket.create_connection(("127.0.0.1", port), 5)
            end.sendall(rng.choice(GREETINGS))
            held.append((time.monotonic() + 1, end))
            count.value += 1
        while held and held[0][0] < time.monotonic():
            held.pop(0)[1].close()
    for _, end in held:
        end.close()


def kill_some(server: Served, page: int, every_s: float, over: Event) -> None:
    """Kill a session's process now and then."""
    rng = random.Random(0)  # noqa: S311
    while not over.wait(every_s):
        sessions = sorted(server.children() - {page})
        if sessions:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(sessions), signal.SIGKILL)


def all_ask(clients: list[InferenceClient], rounds: int, at_once: int, run: Run, *, cut: bool) -> float:
    """Every client in turn; seconds in all."""
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        for number in range(rounds):
            client = clients[number % len(clients)]
            if cut and number % CUT_EVERY == CUT_EVERY - 1:
                pool.submit(ask_cut, client, run, number).add_done_callback(lambda done: done.result())
            else:
                pool.submit(ask, client, run).add_done_callback(lambda done: done.result())
    return time.monotonic() - began


def beside_strangers(
    server: Served, page: int, clients: list[InferenceClient], given: argparse.Namespace, run: Run
) -> dict[str, float]:
    """All clients once more, beside strangers and with faults; the strangers' number and rate."""
    context = multiprocessing.get_context("spawn")
    over, count = context.Event(), context.Value("q", 0)
    strangers = context.Process(target=crowd, args=(server.port, given.strangers, over, count))
    strangers.start()
    while not count.value:
        time.sleep(0.1)
    killer = threading.Thread(target=kill_some, args=(server, page, given.kill_every, over))
    killer.start()
    first = count.value
    seconds = all_ask(clients, given.sessions // 2, given.at_once, run, cut=True)
    came = count.value - first
    over.set()
    strangers.join()
    killer.join()
    return {"strangers": came, "strangers_per_s": round(came / seconds, 1)}


def soak(server: Served, given: argparse.Namespace) -> dict[str, Any]:
    """Counts and times of the whole."""
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(server.process.stdout or []), daemon=True)
    reader.start()
    while not server.children():
        time.sleep(0.1)
    (page,) = server.children()
    clients = [server.client(f"c{number}") for number in range(given.clients)]
    alone, beside = Run(), Run()
    ask(clients[0], Run())  # what is made once is made now
    time.sleep(1.5)
    before = counts(server)
    all_ask(clients, given.sessions // 2, given.at_once, alone, cut=False)
    strangers = beside_strangers(server, page, clients, given, beside)
    time.sleep(12)  # the last strangers' time for a handshake
    held = halves(server.folder / "server"), set[str]().union(*(halves(client.store.folder) for client in clients))
    used = sum(use_up(client) for client in clients)
    time.sleep(1.5)
    after = counts(server)
    alive = server.process.poll() is None
    server.process.terminate()
    server.process.wait(60)
    reader.join()
    medians = [statistics.median(run.seconds) if run.seconds else None for run in (alone, beside)]
    return {
        "before": before,
        "after": after,
        "front_alive": alive,
        "alone": {"answered": len(alone.seconds), "wrong": alone.wrong, "failed": alone.failed},
        "beside": {
            "answered": len(beside.seconds),
            "wrong": beside.wrong,
            "failed": beside.failed,
            "cut": beside.cut,
            **strangers,
            "killed": sum("status -9" in line for line in lines),
            "unforeseen": sum("unforeseen" in line for line in lines),
        },
        "halves_at_the_end": {
            "at_both": len(held[0] & held[1]),
            "only_at_the_server": len(held[0] - held[1]),
            "only_at_a_client": len(held[1] - held[0]),
            "right_answers_from_them": used,
        },
        "median_s": dict(zip(("alone", "beside"), medians, strict=True)),
    }


def main() -> None:
    """Soak a service."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument(
        "--sessions", type=int, default=200, help="in each of two runs, of which half prepare and half ask"
    )
    parser.add_argument("--strangers", type=int, default=200, help="connections a second")
    parser.add_argument("--at-once", type=int, default=10)
    parser.add_argument("--kill-every", type=float, default=2.0, help="seconds between kills of a session")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    command = (
        f"benchmarks/soak.py --clients {given.clients} --sessions {given.sessions} --strangers {given.strangers} "
        f"--at-once {given.at_once} --kill-every {given.kill_every:g}"
    )
    with tempfile.TemporaryDirectory() as name, served(Path(name), CAPS) as server:
        text = json.dumps({"command": command, **soak(server, given)}, indent=1) + "\n"
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
