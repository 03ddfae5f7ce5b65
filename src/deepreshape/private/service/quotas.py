"""How much one client may have of a server, and the quotas that holds it to that.

A client of this protocol family that may ask without end learns the model (its outputs are enough), and offline batches
fill the disk; so both are capped for each certificate. What was asked in the last day is kept in a file beside the
batches, so that starting the server again gives nobody more.

A client at its cap of batches may have no use for them: they are of a program that is served no more, or the client
lost its store. So old ones make way for new ones, and a client that names one of them later is told that the server
has it no longer. Those that can be used stay for an hour: who prepares more than the cap is refused, and keeps what was
prepared.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from deepreshape.private.errors import CapError, StoreError
from deepreshape.private.files import read_at_most, replace_file
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.sessions import Work
from deepreshape.private.parties.store import Store

Outcome = Literal["served", "failed", "refused"]
HOUR_S, DAY_S = 3600.0, 86400.0
QUERIES_BYTES = 1 << 28
"""The largest file of a day's queries that is read: three million of them."""
QUERY = re.compile(r"(\d{1,12}\.\d{1,6}) ([0-9a-f]{64})")
SHOWN = 16
"""Digits of a certificate's fingerprint by which a client is called in logs and on the status page."""


@dataclass(frozen=True)
class Caps:
    """The most that there may be.

    Attributes:
        pending: connections at once that have not shown a certificate yet; the oldest makes way for a new one.
        sessions: running at once, in all.
        sessions_each: running at once, of one client.
        batches_each: offline batches held for one client; at the cap, those that nothing served can use make way for
            new ones, and then those that are older than an hour.
        batch_days: after so many days a batch that was not used is destroyed.
        queries_hour_each: inferences of one client in any hour.
        queries_day_each: inferences of one client in any day.
    """

    pending: int = 256
    sessions: int = 8
    sessions_each: int = 2
    batches_each: int = 16
    batch_days: int = 30
    queries_hour_each: int = 200
    queries_day_each: int = 2000

    def __post_init__(self) -> None:
        for cap in fields(self):
            if getattr(self, cap.name) < 1:
                raise ValueError(f"{cap.name}={getattr(self, cap.name)}: must be at least 1")


@dataclass
class Usage:
    """What one client has and has had since the server was started."""

    running: int = 0
    preparing: int = 0
    prepared: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    queries: deque[float] = field(default_factory=deque[float])
    """When it asked, in the last day; seconds since 1970."""


class Quotas:
    """Counts every client's sessions, batches and queries, and says when it is enough. Clients are fingerprints.

    Args:
        caps: what is allowed.
        store: where batches lie; the times of queries are kept there in ``queries``.
        clock: seconds since 1970.
        bindings: what a client's batches can be used for at present.

    Raises:
        StoreError: if the times of queries cannot be read or written.
    """

    def __init__(
        self,
        caps: Caps,
        store: Store,
        clock: Callable[[], float] = time.time,
        bindings: Callable[[str], Collection[Binding]] = lambda _: (),
    ) -> None:
        self.caps = caps
        self.usage: defaultdict[str, Usage] = defaultdict(Usage)
        self._store = store
        self._clock = clock
        self._bindings = bindings
        self._path = store.folder / "queries"
        try:
            self._load()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise StoreError(f"{self._path}: {why}; the caps on queries cannot be kept") from None

    @property
    def running(self) -> int:
        """Sessions at this moment."""
        return sum(usage.running for usage in self.usage.values())

    def open_session(self, client: str) -> None:
        """A client that has shown its certificate wants a session.

        Raises:
            CapError: if there are enough.
        """
        usage, caps = self.usage[client], self.caps
        self._refuse_at(usage, usage.running, caps.sessions_each, "sessions at once (sessions_each)")
        self._refuse_at(usage, self.running, caps.sessions, "sessions at once in all (sessions)")
        usage.running += 1

    def admit(self, client: str, work: Work, count: int = 1) -> int:
        """A client in a session says what it wants, and with how many batches, or how many queries.

        Returns:
            How many of its old batches made way for new ones.

        Raises:
            CapError: if it has had enough.
            StoreError: if the store cannot be used, or a query not be written down.
        """
        usage, caps = self.usage[client], self.caps
        if work == "prepare":
            self._store.expire(caps.batch_days * DAY_S)
            wanted, gone = self._store.held()[client] + usage.preparing + count, 0
            if (over := wanted - caps.batches_each) > 0:
                gone = self._store.make_room(client, over, self._bindings(client), HOUR_S)
            self._refuse_at(usage, wanted - gone - 1, caps.batches_each, "batches held (batches_each)")
            usage.preparing += count
            return gone
        now = self._clock()
        while usage.queries and usage.queries[0] <= now - DAY_S:
            usage.queries.popleft()
        lately = sum(at > now - HOUR_S for at in usage.queries)
        asked = len(usage.queries) + count - 1
        self._refuse_at(usage, lately + count - 1, caps.queries_hour_each, "queries in an hour (queries_hour_each)")
        self._refuse_at(usage, asked, caps.queries_day_each, "queries in a day (queries_day_each)")
        self._record(client, now, count)  # durable before they are answered
        usage.queries.extend([now] * count)
        return 0

    def close_session(
        self,
        client: str,
        admitted: Mapping[Work, int],
        outcome: Outcome,
        *,
        sent: int = 0,
        received: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """A session is over.

        Args:
            client: whose it was.
            admitted: to what, with how many batches or queries.
            outcome: how it ended.
            sent: payload to the client, in bytes.
            received: payload from it, in bytes.
            seconds: how long it took.
        """
        usage = self.usage[client]
        usage.running -= 1
        usage.preparing -= admitted.get("prepare", 0)
        if outcome == "served":
            usage.prepared += admitted.get("prepare", 0)
            usage.answered += admitted.get("query", 0)
        usage.failed += outcome == "failed"
        usage.bytes_sent += sent
        usage.bytes_received += received
        usage.seconds += seconds

    def status(self) -> list[dict[str, Any]]:
        """Sizes, counts and times, a row for each client; no secrets."""
        held = self._store.held()
        return [
            {"client": client[:SHOWN], **asdict(usage), "queries": len(usage.queries), "batches_held": held[client]}
            for client, usage in self.usage.items()
        ]

    def _refuse_at(self, usage: Usage, number: int, cap: int, what: str) -> None:
        if number >= cap:
            usage.refused += 1
            raise CapError(f"it has reached the cap of {cap} {what}")

    def _load(self) -> None:
        """Read the queries of the last day, and write those only."""
        since = self._clock() - DAY_S
        recent: list[str] = []
        data = read_at_most(self._path, QUERIES_BYTES) if self._path.exists() else b""
        # a line that a crash has torn was never answered, and one that is no record at all says nothing
        for record in filter(None, map(QUERY.fullmatch, data.decode("ascii", "replace").splitlines())):
            at, client = float(record[1]), record[2]
            if at > since:
                self.usage[client].queries.append(at)
                recent.append(f"{record[0]}\n")
        replace_file(self._path, "".join(recent).encode("ascii"))

    def _record(self, client: str, now: float, count: int) -> None:
        try:
            with open(self._path, "a", encoding="ascii") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write("\n" + f"{now:.3f} {client}\n" * count)  # alone, whatever a full disk left before it
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}; no query is answered uncounted") from None
