"""One party with everything it needs: certificate, wire, handshake, store, and its side of the program.

A run takes two sessions. The first prepares: both parties go through the offline phase and leave their halves in their
stores, under the session's id, and each knows that the other's half is stored when the session ends well. The second
uses the batch up: the client names it in the handshake, each claims its half durably and says so, and only then the
online phase begins. Whatever happens after the claim, the batch is spent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from deepreshape.private import client, server
from deepreshape.private.channel import Frame, Ledger
from deepreshape.private.exact import Integers
from deepreshape.private.material import Reading, Writing
from deepreshape.private.plan import Plan
from deepreshape.private.server import Model
from deepreshape.private.session import Agreement, Connection, client_session, server_session
from deepreshape.private.store import Binding, Store
from deepreshape.private.wire import Endpoint, WireChannel

Progress = Callable[[int, int], None]
"""Is told, as they travel, how many of the offline phase's bytes have, and how many there are in all."""

CLAIMED = b"\x01"
STORED = b"\x02"


class Prepared(NamedTuple):
    """A batch that lies in the store: its id, the bytes of its arrays, and the traffic that made it."""

    batch: str
    nbytes: int
    ledger: Ledger


class Answer(NamedTuple):
    """The output's integers, and the traffic and seconds of the session that gave them."""

    output: Integers
    ledger: Ledger
    seconds: float


@dataclass(frozen=True)
class Client:
    """A client that can reach one server.

    Args:
        endpoint: with the client's certificate.
        host, port: where the server listens.
        plan: of the program.
        store: the client's own.
        pinned: fingerprint of the one server certificate to accept.
    """

    endpoint: Endpoint
    host: str
    port: int
    plan: Plan
    store: Store
    pinned: str | None = None

    def prepare(self, observe: client.Observer | None = None, progress: Progress | None = None) -> Prepared:
        """Make one batch.

        Args:
            observe: as :func:`deepreshape.private.client.offline` has it.
            progress: is told how far it is.

        Raises:
            ProtocolError: if the session fails; then nothing is stored.
            StoreError: if the batch cannot be written.
        """
        return self._prepare(self.endpoint.connect(self.host, self.port, self.pinned), observe, progress)

    def _prepare(self, channel: WireChannel, observe: client.Observer | None, progress: Progress | None) -> Prepared:
        if progress:
            channel.ledger.watch = lambda done: progress(done, self.plan.offline_bytes)
        with client_session(channel, Agreement(self.plan.program.digest, self.plan.agreed)) as session:
            batch = session.id.hex()
            with self.store.create(_binding(self.plan, channel), batch) as writer:
                with Writing(writer) as sink:
                    client.offline(channel, self.plan, session.id, sink, observe=observe)
                channel.receive(Frame.READY, 1)
                writer.commit()
        return Prepared(batch, sink.nbytes, channel.ledger)

    def infer(self, x: Integers, batch: str | None = None, progress: Progress | None = None) -> Answer:
        """Run one inference and use a batch up: this one, or the oldest there is, or one made for it now.

        Args:
            x: the input, int64 of the program's input shape.
            batch: its id.
            progress: is told how far a batch is that is made now.

        Raises:
            ValueError: if the input does not fit the program; no batch is used up then.
            ProtocolError: if the session fails.
            StoreError: if the batch is not in the store.
        """
        client.check_input(self.plan, x)
        start = time.perf_counter()
        channel = self.endpoint.connect(self.host, self.port, self.pinned)
        binding = _binding(self.plan, channel)
        batch = batch or next(iter(self.store.fresh(binding)), None)
        if batch is None:
            batch = self._prepare(channel, None, progress).batch
            start = time.perf_counter()
            channel = self.endpoint.connect(self.host, self.port, self.pinned)
        agreement = Agreement(self.plan.program.digest, self.plan.agreed, batch)
        with client_session(channel, agreement), self.store.claim(binding, batch) as claimed:
            channel.send(Frame.READY, CLAIMED)
            channel.receive(Frame.READY, 1)
            output = client.online(channel, self.plan, bytes.fromhex(batch), Reading(claimed), x)
        return Answer(output, channel.ledger, time.perf_counter() - start)


def serve(channel: Connection, model: Model, store: Store) -> int:
    """The server's side of one session: of :meth:`Client.prepare` if the client names no batch, else of ``infer``.

    Args:
        channel: to a client whose certificate has been verified.
        model: what is served.
        store: the server's own.

    Returns:
        The bytes of the arrays that were stored; 0 after an inference.

    Raises:
        ProtocolError: if the session fails, or the client names a batch that is not here.
        StoreError: if the batch cannot be written or claimed.
    """
    plan = model.plan
    binding = _binding(plan, channel)

    def choose(proposed: Agreement) -> Agreement:
        batch = proposed.batch if proposed.batch in store.fresh(binding) else ""
        return Agreement(plan.program.digest, plan.agreed, batch)

    with server_session(channel, choose) as session:
        if batch := session.agreement.batch:
            with store.claim(binding, batch) as claimed:
                channel.receive(Frame.READY, 1)
                channel.send(Frame.READY, CLAIMED)
                server.online(channel, model, bytes.fromhex(batch), Reading(claimed))
            return 0
        with store.create(binding, session.id.hex()) as writer:
            with Writing(writer) as sink:
                server.offline(channel, model, session.id, sink)
            writer.commit()
        channel.send(Frame.READY, STORED)
        return sink.nbytes


def _binding(plan: Plan, channel: Connection) -> Binding:
    return Binding(plan.program.digest, channel.peer.fingerprint, plan.agreed)
