"""A server for many clients at once: one process that accepts and counts, and forks one for each session.

The front, :meth:`Service.run`, is one loop without threads. It takes the TLS handshakes of all who knock forward side
by side, so a slow one holds up nobody and costs no process. Only when both certificates are verified and the caps
(``caps.py``) allow a session does it fork a process for it. That process has the program and its weights already, in
pages that all sessions share; it ends with its session, and one that is killed or runs out of memory takes no other
with it. Before the work begins it asks the front, which alone keeps the quotas. Threads would not do: the library for
homomorphic encryption holds Python's lock, so they would share one core.

A fork copies whatever locks other threads hold at that moment, and nobody ever opens them. So the front refuses to run
in a process with other threads. A session makes its random streams after the fork; a stream refuses another process.

The front's death, even by SIGKILL, ends its sessions: each watches a pipe that only the front holds open. Until the
last of them is gone they keep the store reserved, so that another server waits or is refused. SIGTERM and SIGINT end
every session at once, by the error path of any broken session: the peer is told the one code, and a claimed batch is
spent.
"""

from __future__ import annotations

import json
import math
import os
import resource
import selectors
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from deepreshape.private.crypto.backend import engine
from deepreshape.private.errors import CapError, PrivateError, ProtocolError, StoreError
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.sessions import Admit, Work, serve, served_bindings
from deepreshape.private.parties.store import Store
from deepreshape.private.service import status
from deepreshape.private.service.quotas import SHOWN, Caps, Outcome, Quotas
from deepreshape.private.transport.certificates import Identity
from deepreshape.private.transport.tls import Endpoint, PendingConnection, TlsChannel

GRACE_S = 5.0
"""How long a session that was told to end may take to clean up, before it is killed."""
PAUSE_S = 0.1
"""How long the front waits before it tries again when the system has no descriptors left."""
STATUS_S = 1.0
"""The file of the status page is written at most this often."""
DAY_S = 86400.0
"""How often the dates of certificates are looked at."""
SPARE_DESCRIPTORS = 40
"""Descriptors of the front beside those of connections and sessions: the store, the selector, pipes, libraries."""
ASKED: dict[bytes, Work] = {b"p": "prepare", b"q": "query"}
"""What a session's process asks the front for: this byte, and one for the number of batches. A byte is the answer; the
report at its end is JSON."""
YES, NO = b"y", b"n"
ENDING = "ended, because the server is ending"

Notify = Callable[[str], None]


@dataclass
class _Session:
    """What the front knows of a session's process."""

    pid: int
    pipe: socket.socket
    peer: Identity
    deadline: float
    """When its process is killed, by ``time.monotonic``."""
    admitted: Counter[Work] = field(default_factory=Counter[Work])
    """What it may do, and how often: a session of encrypted inference takes keys, and then answers."""
    refusal: str = ""
    overdue: bool = False
    report: bytearray = field(default_factory=bytearray)


class Serving(Protocol):
    """What can be served that keeps its clients' files itself."""

    def serve(self, channel: TlsChannel, admit: Admit) -> None:
        """The server's side of one session, in a process of its own.

        Raises:
            PrivateError: if the session fails.
        """
        ...


class Service:
    """A server.

    Args:
        listener: listens; from :func:`~deepreshape.private.transport.tls.listen`. The service closes it.
        endpoint: with the server's certificate.
        model: what is served: a program between two parties, several of which a client names one, or anything else
            with a way to serve.
        store: the server's own.
        caps: how much a client may have.
        status_listener: listens on loopback for readers of the status, or None. The service closes it.
        notify: is told what happens, in lines without secrets.

    Raises:
        StoreError: if the quotas of caps cannot be kept in the store.
        ValueError: if other machines can reach ``status_listener``, or the caps need more file descriptors than the
            system allows.
    """

    def __init__(
        self,
        listener: socket.socket,
        endpoint: Endpoint,
        model: Model | Sequence[Model] | Serving,
        store: Store,
        caps: Caps | None = None,
        *,
        status_listener: socket.socket | None = None,
        notify: Notify | None = None,
    ) -> None:
        if status_listener:
            status.check_loopback(status_listener)
        programs = model if isinstance(model, Model | Sequence) else ()
        self.quotas = Quotas(caps or Caps(), store, bindings=served_bindings(programs))
        _allow_descriptors(self.quotas.caps)
        self.ended: dict[Outcome, int] = {"served": 0, "failed": 0, "refused": 0}
        self._listener, self._status_listener = listener, status_listener
        self._endpoint, self._model, self._store = endpoint, model, store
        self._notify: Notify = notify or (lambda _: None)
        self._selector = selectors.DefaultSelector()
        self._pending: dict[PendingConnection, str] = {}  # with their addresses, in the order in which they came
        self._sessions: dict[int, _Session] = {}
        self._alive = os.pipe()
        self._began = time.time()
        self._stopped = False
        self._status_due = self._dates_due = 0.0

    def run(self, sessions: int = 0, begun: Callable[[], object] = lambda: None) -> None:
        """Serve until SIGINT or SIGTERM, or until so many sessions were served or have failed (0: no such end).

        Args:
            sessions: how many.
            begun: is called when the store is this server's own.

        Raises:
            RuntimeError: if this process has other threads.
            StoreError: if another server is serving from the store.
        """
        if threading.active_count() > 1:
            raise RuntimeError("a service forks, so it needs a process without other threads")
        engine().prepare()  # once, and not in every session's process
        with ExitStack() as stack:
            stack.callback(self._close)
            stack.enter_context(self._store.reserved())
            stack.enter_context(self._woken_by_signals())
            page = stack.enter_context(self._page(self._status_listener)) if self._status_listener else None
            stack.callback(self._end_sessions)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
            begun()
            for name in self._store.damaged:
                self._notify(
                    f"batch {name[:SHOWN]}: its manifest is damaged; it was moved to {self._store.folder}/damaged"
                )
            while not self._stopped and self._wanted(sessions) > 0:
                self._warn_of_dates()
                self._write_status(page)
                self._dispatch(self._timeout())
                self._reject_slow()
                self._kill_overdue()
                if self._wanted(sessions) <= len(self._sessions):
                    self._stop_listening()

    def _dispatch(self, timeout: float) -> None:
        """Handle what has come. Nothing that one connection or one session brings may end the front."""
        for key, _ in self._selector.select(timeout):
            try:
                key.data()
            except Exception as error:  # its text might hold what a stranger sent
                self._notify(f"unforeseen {type(error).__name__} in the front")
                time.sleep(PAUSE_S)  # if it comes back at once, it must not take a core

    def _warn_of_dates(self) -> None:
        if time.monotonic() >= self._dates_due:
            self._dates_due = time.monotonic() + DAY_S
            for line in self._endpoint.credentials.warnings():
                self._notify(line)

    def _write_status(self, page: Path | None) -> None:
        if page and time.monotonic() >= self._status_due:
            self._status_due = time.monotonic() + STATUS_S
            with suppress(OSError, StoreError):  # a full disk makes the page stale, and ends no session
                status.write(page, self.status())

    def status(self) -> dict[str, Any]:
        """Counts, sizes and times; what the status page shows."""
        return {
            "began": self._began,
            "arrivals": len(self._pending),
            "running": len(self._sessions),
            **self.ended,
            "clients": self.quotas.status(),
        }

    def _wanted(self, sessions: int) -> float:
        """How many more sessions are to end."""
        return sessions - self.ended["served"] - self.ended["failed"] if sessions else float("inf")

    # -- those who have not shown a certificate yet

    def _accept(self) -> None:
        if self._listener.fileno() < 0:
            return  # closed since the selector named it
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it is gone again
            return
        except OSError:  # no descriptors are left: those without a certificate give theirs back
            self._reject_oldest(0)
            time.sleep(PAUSE_S)
            return
        self._reject_oldest(self.quotas.caps.pending - 1)
        try:
            pending = self._endpoint.start(sock)
        except ProtocolError as error:
            self._refuse(str(address[0]), error)
            return
        self._pending[pending] = str(address[0])
        self._selector.register(pending, pending.events, partial(self._advance, pending))

    def _advance(self, pending: PendingConnection) -> None:
        if pending not in self._pending:
            return  # turned away since the selector named it
        try:
            channel = pending.advance()
        except ProtocolError as error:
            self._reject(pending, error)
            return
        except Exception as error:  # no stranger, whatever the certificate, can end the server
            self._reject(pending, f"unforeseen {type(error).__name__}")
            return
        if channel is None:
            self._selector.modify(pending, pending.events, partial(self._advance, pending))
            return
        self._forget(pending)
        self._start_session(channel)

    def _forget(self, pending: PendingConnection) -> str:
        self._selector.unregister(pending)
        return self._pending.pop(pending)

    def _reject(self, pending: PendingConnection, why: object) -> None:
        """Unregister first: while a forked process still holds the socket, the system watches its old number on."""
        self._refuse(self._forget(pending), why)
        pending.close()

    def _reject_oldest(self, most: int) -> None:
        while len(self._pending) > most:
            self._reject(next(iter(self._pending)), "the oldest of too many without a certificate (pending)")

    def _reject_slow(self) -> None:
        for pending in [pending for pending in self._pending if pending.deadline <= time.monotonic()]:
            self._reject(pending, "TLS handshake not done in time (connect_s)")

    def _kill_overdue(self) -> None:
        """End processes that are past their session's limit: code in a library may never come back to look at it."""
        for session in self._sessions.values():
            if session.deadline <= time.monotonic():
                session.deadline = math.inf
                session.overdue = True
                os.kill(session.pid, signal.SIGKILL)

    def _timeout(self) -> float:
        """Seconds until there is something to do even if nothing comes."""
        due = [self._dates_due, *([self._status_due] if self._status_listener else [])]
        due += [pending.deadline for pending in self._pending]
        due += [session.deadline for session in self._sessions.values()]
        return max(0.0, min(due) - time.monotonic())

    def _refuse(self, who: str, why: object) -> None:
        self.ended["refused"] += 1
        self._notify(f"refused {who}: {why}")

    # -- sessions

    def _start_session(self, channel: TlsChannel) -> None:
        peer = channel.peer
        try:
            self.quotas.open_session(peer.fingerprint)
        except CapError as error:
            channel.abort(str(error))
            self._refuse(_name(peer), error)
            return
        with ExitStack() as ends:
            try:
                near, far = socket.socketpair()
                ends.callback(far.close)
                ends.callback(channel.release)
                ends.callback(near.close)
                pid = self._fork(lambda: _run_session(far, channel, self._model, self._store), near)
            except OSError as error:
                channel.abort("no process could be started")
                self.quotas.close_session(peer.fingerprint, {}, "failed")
                self.ended["failed"] += 1
                self._notify(f"{_name(peer)}: no process could be started: {error.strerror}")
                return
            ends.pop_all()
        far.close()
        channel.release()
        near.setblocking(False)
        deadline = time.monotonic() + self._endpoint.limits.session_s + GRACE_S
        self._sessions[pid] = session = _Session(pid, near, peer, deadline)
        self._selector.register(near, selectors.EVENT_READ, partial(self._read, session))

    def _read(self, session: _Session) -> None:
        try:
            data = session.pipe.recv(1 << 16)
        except BlockingIOError:  # nothing has come after all
            return
        except ConnectionError:
            data = b""
        if not data:
            self._reap(session)
        elif data[:1] in ASKED:
            with suppress(OSError):  # it may have died since
                session.pipe.send(YES if self._admit(session, ASKED[data[:1]], data[1]) else NO)
        else:
            session.report += data

    def _admit(self, session: _Session, work: Work, count: int) -> bool:
        try:
            gone = self.quotas.admit(session.peer.fingerprint, work, count)
        except (PrivateError, OSError) as error:
            session.refusal = str(error)
            return False
        if gone:
            self._notify(f"{_name(session.peer)}: its oldest batches made way for new ones: {gone}")
        session.admitted[work] += count
        return True

    def _reap(self, session: _Session) -> None:
        """A session's process has closed its pipe, so it is at its end."""
        self._selector.unregister(session.pipe)
        session.pipe.close()
        code = os.waitstatus_to_exitcode(os.waitpid(session.pid, 0)[1])
        del self._sessions[session.pid]
        try:
            report: dict[str, Any] = json.loads(session.report)
        except ValueError:  # it ended before it could report
            report = {"error": ENDING if self._stopped else f"its process ended with status {code}", "traffic": {}}
            if session.overdue:
                report["error"] = f"it took over {self._endpoint.limits.session_s:g} s (session_s), and was killed"
            with suppress(PrivateError, OSError):  # what it was writing or using, which it could not clean up
                self._store.sweep()
        outcome: Outcome = "refused" if session.refusal else "failed" if report["error"] else "served"
        self.ended[outcome] += 1
        self.quotas.close_session(session.peer.fingerprint, session.admitted, outcome, **report["traffic"])
        self._notify(f"{_name(session.peer)}: {session.refusal or report['error'] or _done(session.admitted)}")

    def _end_sessions(self) -> None:
        """Tell all to end, and kill those that do not."""
        self._stop_listening()
        for session in self._sessions.values():
            os.kill(session.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while self._sessions and (left := deadline - time.monotonic()) > 0:
            self._dispatch(left)
        for session in list(self._sessions.values()):
            os.kill(session.pid, signal.SIGKILL)
            self._reap(session)

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            with suppress(KeyError):
                self._selector.unregister(self._listener)
            self._listener.close()
        for pending in list(self._pending):
            self._reject(pending, "the server is ending")

    # -- processes and signals

    def _fork(self, work: Callable[[], None], *ends: socket.socket) -> int:
        """Do ``work`` in a process of its own, which closes ``ends`` and all that is the front's; its id.

        Raises:
            OSError: if there can be no more processes.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            if pid := os.fork():
                return pid
            try:
                self._detach(*ends)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                work()
            finally:
                os._exit(0)  # nothing of the front's own ending happens here too
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _detach(self, *ends: socket.socket) -> None:
        """In a process just forked: give up what is the front's, and end when it ends."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the front decides
        signal.signal(signal.SIGTERM, _exit)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for end in (self._listener, *ends, *(session.pipe for session in self._sessions.values())):
            end.close()
        for pending in self._pending:
            pending.close()
        self._selector.close()
        os.close(self._alive[1])
        threading.Thread(target=_end_with_the_front, args=(self._alive[0],), daemon=True).start()

    @contextmanager
    def _page(self, listener: socket.socket) -> Generator[Path]:
        """The process of the status page; the file that it reads."""
        path = self._store.folder / "status.json"
        status.write(path, self.status())
        pid = self._fork(lambda: status.serve_page(listener, path))
        listener.close()
        try:
            yield path
        finally:
            os.kill(pid, signal.SIGKILL)  # it has nothing to clean up
            os.waitpid(pid, 0)
            path.unlink()

    @contextmanager
    def _woken_by_signals(self) -> Generator[None]:
        """SIGINT and SIGTERM end :meth:`run` in good order: they wake the selector up."""
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)

        def stop(*_: object) -> None:
            self._stopped = True

        before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        wakeup = signal.set_wakeup_fd(far.fileno())
        self._selector.register(near, selectors.EVENT_READ, partial(_drain, near))
        try:
            with near, far:
                yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _close(self) -> None:
        self._selector.close()
        for end in filter(None, (self._listener, self._status_listener)):
            end.close()
        for end in self._alive:
            os.close(end)


def _run_session(
    pipe: socket.socket, channel: TlsChannel, model: Model | Sequence[Model] | Serving, store: Store
) -> None:
    """What a session's process does: the session, and a report of it on its line to the front."""
    began, error = time.monotonic(), ""

    def admit(work: Work, count: int) -> None:
        pipe.sendall(next(byte for byte, asked in ASKED.items() if asked == work) + bytes([count]))
        if pipe.recv(1) != YES:
            raise CapError("the front refused it")

    with pipe:
        try:
            serve(channel, model, store, admit) if isinstance(model, Model | Sequence) else model.serve(channel, admit)
        except SystemExit:
            error = ENDING
        except PrivateError as reason:
            error = str(reason)
        except BaseException as reason:
            error = f"unforeseen {type(reason).__name__}"  # its text might hold a secret
        rows = channel.ledger.traffic.values()
        traffic = {
            "sent": sum(row.sent for row in rows),
            "received": sum(row.received for row in rows),
            "seconds": time.monotonic() - began,
        }
        pipe.sendall(json.dumps({"error": error, "traffic": traffic}).encode())


def _drain(end: socket.socket) -> None:
    with suppress(BlockingIOError):
        end.recv(64)


def _allow_descriptors(caps: Caps) -> None:
    """Raise this process's limit of open files to what the caps may need.

    Raises:
        ValueError: if the system's limit is lower.
    """
    needed = caps.pending + 2 * caps.sessions + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{caps.pending} connections without a certificate and {caps.sessions} sessions need {needed} open files; "
            f"the limit is {hard}: raise it (ulimit -Hn {needed}), or lower the caps"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _exit(*_: object) -> None:
    sys.exit()


def _end_with_the_front(alive: int) -> None:
    """Wait for the death of the front, which holds the other end; then end this process."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def _done(admitted: Mapping[Work, int]) -> str:
    """What a session that went well has done."""
    queries, batches = admitted.get("query", 0), admitted.get("prepare", 0)
    if queries:
        return "answered a query" if queries == 1 else f"answered {queries} queries"
    return f"prepared batches: {batches}" if batches else "done"


def _name(peer: Identity) -> str:
    return f"client {peer.name!r} {peer.fingerprint[:SHOWN]}"
