"""One party with everything it needs: certificate, wire, handshake, store, and its side of the program.

A run takes two sessions. The first prepares: both parties go through the offline phase and leave their halves in their
stores, under an id that follows from the session's. The server completes its half on disk and says so, the client
stores its own and says so, and then the server's half can be used. One session may prepare several batches; a session
that breaks off leaves those that are stored. The second uses a batch up: the client names it in the handshake, the
server claims its half durably and says so, then the client does the same, and only then the online phase begins.
Whatever happens after a claim, that half is spent. Each party keeps its half from the moment it chooses it, so that of
two queries at once each uses a batch of its own.

So a session that breaks off at any moment leaves the server no half that the client has not. It may leave the client
one that the server has not, which cannot be used: the client destroys it when it names it to the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from deepreshape.private.arith.ring import Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import prepare_aside
from deepreshape.private.errors import ConfigurationMismatchError, LostBatchError, SpentError, StoreError
from deepreshape.private.parties import client
from deepreshape.private.parties.batch import ChosenBatch
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.preprocessing import Reading, Writing
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.store import Store
from deepreshape.private.program.encoding import digest
from deepreshape.private.program.ops import Integers
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols.base import Run
from deepreshape.private.transport.channel import Channel, Frame
from deepreshape.private.transport.handshake import (
    BATCH,
    Agreement,
    Connection,
    Session,
    client_session,
    server_session,
)
from deepreshape.private.transport.ledger import Ledger
from deepreshape.private.transport.tls import Endpoint, TlsChannel

Work = Literal["prepare", "query"]
"""What a session is for."""
Admit = Callable[[Work, int], None]
"""Is asked whether a session may go on: for what, and with how many batches. It raises ``ProtocolError`` if not."""
Observer = Callable[[str, Words], None]
"""As :class:`deepreshape.private.protocols.base.Run` has it."""
Progress = Callable[[int, int], None]
"""Is told, as they travel, how many of the offline phase's bytes have, and how many there are in all."""

COUNT = "batches"
LAYOUTS = "layouts"
"""Name of the parameter that says how many batches a session shall prepare."""
MOST = 16
"""Batches that one session may prepare; more take more sessions, whose time is limited."""
CLAIMED = b"\x01"
STORED = b"\x02"


class PreparedBatch(NamedTuple):
    """A batch that lies in the store: its id, the bytes of its arrays, and the traffic that made it."""

    batch: str
    nbytes: int
    ledger: Ledger


class Answer(NamedTuple):
    """The output's integers, traffic and seconds of the session that gave them, and what other batches had wrong."""

    output: Integers
    ledger: Ledger
    seconds: float
    lost: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of the session, in both directions."""
        return sum(moved.sent + moved.received for moved in self.ledger.traffic.values())


@dataclass(frozen=True)
class InferenceClient:
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

    def prepare(self, observe: Observer | None = None, progress: Progress | None = None) -> PreparedBatch:
        """Make one batch.

        Args:
            observe: as :class:`deepreshape.private.protocols.base.Run` has it.
            progress: is told how far it is.

        Raises:
            ProtocolError: if the session fails. Nothing is stored then, unless only its farewell was lost.
            StoreError: if the batch cannot be written.
        """
        (prepared,) = self._prepare(self._connect(), 1, observe, progress)
        return prepared

    def prepare_several(self, count: int, progress: Progress | None = None) -> Iterator[PreparedBatch]:
        """Make several batches, :data:`MOST` a session; each is stored by both parties when it is given.

        Args:
            count: how many.
            progress: is told how far the session is.

        Raises:
            ProtocolError, StoreError: as :meth:`prepare`; what was given before stays, and perhaps the one after it.
        """
        for first in range(0, count, MOST):
            yield from self._prepare(self._connect(), min(MOST, count - first), None, progress)

    def _connect(self) -> TlsChannel:
        return self.endpoint.connect(self.host, self.port, self.pinned)

    def _prepare(
        self, channel: TlsChannel, count: int, observe: Observer | None, progress: Progress | None
    ) -> Iterator[PreparedBatch]:
        if progress:
            total = self.plan.offline_bytes(count)
            channel.ledger.watch = lambda done: progress(done, total)
        key, prepared = None, None
        prepare_aside()
        with client_session(channel, _to_prepare(self.plan, count)) as session:
            for number in range(count):
                batch = _batch(session, number)
                with self.store.create(_binding(self.plan, channel), batch.hex()) as writer:
                    with Writing(writer) as sink:
                        key = client.offline(_run(channel, batch, "client", observe), self.plan, sink, key=key)
                    channel.receive(Frame.READY, 1)
                    writer.commit()
                channel.send(Frame.READY, STORED)
                if prepared:
                    yield prepared
                prepared = PreparedBatch(batch.hex(), sink.nbytes, channel.ledger)  # the server may still be storing it
        if prepared:
            yield prepared

    def infer(
        self,
        x: Integers,
        batch: str | None = None,
        progress: Progress | None = None,
        observe: Observer | None = None,
    ) -> Answer:
        """Run one inference and use a batch up: this one, or the oldest there is, or one made for it now.

        A batch of which a half is damaged, or that the server has no longer, is destroyed, and the next one is used.

        Args:
            x: the input, int64 of the program's input shape.
            batch: its id; no other is used then.
            progress: is told how far a batch is that is made now.
            observe: as :meth:`prepare` has it.

        Raises:
            ValueError: if the input does not fit the program; no batch is used up then.
            LostBatchError: if the server has not the other half of ``batch``, or a damaged one; this is then destroyed.
            ProtocolError: if the session fails.
            StoreError: if ``batch`` is not in the store, another query keeps it, or it is damaged.
        """
        client.check_input(self.plan, x)
        lost: list[str] = []
        prepared = ""
        while True:
            start, channel = time.perf_counter(), self._connect()
            with _aborting(channel):
                binding = _binding(self.plan, channel)
                choice = self.store.keep(binding, batch) if batch else self.store.choose(binding)
            if choice is None:  # another query may be quicker to take what is made now; then one more is made
                (prepared,) = (each.batch for each in self._prepare(channel, 1, observe, progress))
                continue
            with choice:
                try:
                    return self._infer(start, channel, choice, x, observe)._replace(lost=tuple(lost))
                except (LostBatchError, StoreError) as error:
                    if choice.session in (batch, prepared) or choice.session in self.store.fresh(binding):
                        raise
                    lost.append(str(error))

    def _infer(
        self, start: float, channel: TlsChannel, choice: ChosenBatch, x: Integers, observe: Observer | None
    ) -> Answer:
        batch = choice.session
        try:
            with client_session(channel, _to_query(self.plan, batch)):
                channel.receive(Frame.READY, 1)  # the server has claimed its half
                with choice.claim() as claimed:
                    channel.send(Frame.READY, CLAIMED)
                    run = _run(channel, bytes.fromhex(batch), "client", observe)
                    output = client.online(run, self.plan, Reading(claimed), x)
        except ConfigurationMismatchError as error:
            if error.differing != frozenset([BATCH]):
                raise
            with suppress(StoreError):  # claimed and not used: destroyed
                choice.claim().close()
            raise LostBatchError(
                f"the server has no batch {batch[:16]}: spent, too old, gone for newer ones, or another store; "
                "destroyed here too, ask again"
            ) from None
        return Answer(output, channel.ledger, time.perf_counter() - start)


def serve(channel: Connection, models: Model | Sequence[Model], store: Store, admit: Admit | None = None) -> int:
    """The server's side of a session: :meth:`InferenceClient.prepare` if the client names no batch, else ``infer``.

    Args:
        channel: to a client whose certificate has been verified.
        models: what is served; of several, such as the exits of a network, the one whose program the client names.
        store: the server's own.
        admit: is asked before the work begins.

    Returns:
        The bytes of the arrays that were stored; 0 after an inference.

    Raises:
        ProtocolError: if the session fails, or the client names a batch that is not here.
        LostBatchError: if this half of the batch is damaged, of which the client is told.
        StoreError: if the batch cannot be written or claimed.
    """
    offered = {digest(each.program): each for each in ((models,) if isinstance(models, Model) else models)}

    def named(program: str) -> Model:
        return offered.get(program) or next(iter(offered.values()))

    chosen: list[ChosenBatch] = []

    def choose(proposed: Agreement) -> Agreement:
        plan = named(proposed.program).plan
        binding = _binding(plan, channel)
        if proposed.batch:
            if proposed.batch in store.fresh(binding):
                with suppress(SpentError):  # since a moment
                    chosen.append(kept.enter_context(store.keep(binding, proposed.batch)))
            agreed, number = _to_query(plan, proposed.batch if chosen else ""), 1
        else:
            count = proposed.parameters.get(COUNT)
            number = count if type(count) is int and 1 <= count <= MOST else 1
            agreed = _to_prepare(plan, number)
        if admit and agreed == proposed:  # what cannot go on for another reason is not counted
            admit("query" if agreed.batch else "prepare", number)
        return agreed

    with ExitStack() as kept, server_session(channel, choose) as session:
        model = named(session.agreement.program)
        binding = _binding(model.plan, channel)
        if batch := session.agreement.batch:
            with chosen[0].claim() as claimed:
                channel.send(Frame.READY, CLAIMED)
                channel.receive(Frame.READY, 1)
                try:
                    model.online(_run(channel, bytes.fromhex(batch), "server"), Reading(claimed))
                except StoreError as error:
                    raise LostBatchError(str(error)) from None
            return 0
        responder, nbytes = None, 0
        for number in range(int(session.agreement.parameters[COUNT])):
            batch = _batch(session, number)
            with store.create(binding, batch.hex()) as writer:
                with Writing(writer) as sink:
                    responder = model.offline(_run(channel, batch, "server"), sink, responder=responder)
                writer.complete()
                channel.send(Frame.READY, STORED)
                channel.receive(Frame.READY, 1)
                writer.commit()
            nbytes += sink.nbytes
        return nbytes


@contextmanager
def _aborting(channel: TlsChannel) -> Generator[None]:
    """End a connection that no session was begun on, if what is inside fails."""
    try:
        yield
    except BaseException as error:
        channel.abort(type(error).__name__)
        raise


def served_bindings(models: Model | Sequence[Model]) -> Callable[[str], tuple[Binding, ...]]:
    """What batches of a client, by its fingerprint, can be used for at a server of these models."""
    plans = [each.plan for each in ((models,) if isinstance(models, Model) else models)]
    programs = [digest(plan.program) for plan in plans]
    return lambda peer: tuple(
        Binding(program, peer, plan.agreed) for program, plan in zip(programs, plans, strict=True)
    )


def _run(channel: Channel, id: bytes, role: Role, observe: Observer | None = None) -> Run:
    return Run(channel, id, role, Randomness(), observe)


def _batch(session: Session, number: int) -> bytes:
    """The id of a batch that this session makes: public, and never that of another."""
    return session.key("batch", "", "offline", "client", number, 32)


def _to_prepare(plan: Plan, count: int) -> Agreement:
    return Agreement(digest(plan.program), {**plan.agreed, COUNT: count, LAYOUTS: plan.laid_out})


def _to_query(plan: Plan, batch: str) -> Agreement:
    return Agreement(digest(plan.program), plan.agreed, batch)


def _binding(plan: Plan, channel: Connection) -> Binding:
    return Binding(digest(plan.program), channel.peer.fingerprint, plan.agreed)
