"""What a two-party protocol on shares promises. Each protocol is one file with one final subclass of :class:`Protocol`.

Model: two semi-honest parties, a value x shared as x = x_client + x_server, of which x_client is known offline. After
a step they share its result; the client's part is a blind that it chose offline, or what the protocol gave it.

A protocol says what it sends (:meth:`Protocol.declared`), what it costs (:meth:`Protocol.work`), what the plain
interpreter must do to agree with it bit for bit (:meth:`Protocol.replay`), and how the parties do it, offline and
online. Plans, prices and the order of both parties are made of these (``steps.py``). Use, at either party::

    run = Run(channel, id, "client", Randomness())
    setup = protocol.setup(run, layers)
    side_by_side(run, "offline", [(name, protocol.offline(run, setup, layer, share, blind))], keep)
    side_by_side(run, "online", [(name, protocol.online(run, layer, prepared, None))])

It owns no channel, no store, and no order of layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepreshape.cost import Work
from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.labels import refuse_copy
from deepreshape.private.program.interpret import coins_of
from deepreshape.private.program.ops import Relu
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import Role
from deepreshape.private.transport.channel import Channel
from deepreshape.private.transport.ledger import Phase

Arrays = dict[str, NDArray[Any]]
Integers = NDArray[np.int64]
WORD_BYTES = 8
"""Of a share in memory and in the store."""


@dataclass(frozen=True)
class Run:
    """One inference at one party.

    Attributes:
        channel: to the other party.
        id: of the offline batch; both parties have compared it, and it never repeats.
        role: of this party.
        rng: what this party draws from.
        observe: at the client, is shown its share of every value, by name, and the coins of protocols that have some
            (:meth:`show_coins`), so that the plain interpreter can round as this run does. For checks on one machine:
            whoever sees them and the server's shares sees the input.
    """

    channel: Channel
    id: bytes
    role: Role
    rng: Randomness
    observe: Callable[[str, Words], None] | None = None

    def show_coins(self, layer: str, coins: Words) -> None:
        """At the client: what, beside its share of the input, has decided how the layer rounds; one word a value."""
        if self.observe:
            self.observe(coins_of(layer), coins)


class Prepared:
    """Named arrays that one party keeps from the offline to the online phase; they are secret and used once.

    A store takes them to write them down, and makes another of what it reads back.
    """

    __reduce_ex__ = refuse_copy

    def __init__(self, arrays: Arrays) -> None:
        self._left = [arrays]
        self.nbytes = sum(array.nbytes for array in arrays.values())
        """Their size, which is public."""

    def take(self) -> Arrays:
        """The arrays.

        Raises:
            RuntimeError: the second time.
        """
        try:
            return self._left.pop()  # of two threads one gets them
        except IndexError:
            raise RuntimeError("this preprocessing was used; it serves one inference, prepare another") from None


class Message(NamedTuple):
    """Who sends how many bytes; none means work of this party alone."""

    sender: Role
    nbytes: int


Segment = tuple[Message, ...]
"""What passes between two yields of a step, in order."""


class Effort(NamedTuple):
    """The work behind one message, in units that ``pricing.calibrate`` measures.

    ``make``, ``take``, ``pieces``, ``parallel`` and ``aside`` are those of :class:`deepreshape.cost.Turn`.
    """

    make: Work = {}  # noqa: RUF012 - never written to
    take: Work = {}  # noqa: RUF012
    pieces: int = 1
    parallel: int = 1
    aside: Work = {}  # noqa: RUF012


@dataclass(frozen=True)
class Declared:
    """What one layer sends, keeps and counts, known beforehand from public facts.

    Attributes:
        offline, online: what passes in each phase, segment by segment.
        stored: bytes of arrays that (client, server) keep between the phases.
        counts: by phase, what there is of ``relus``, ``squares``, ``macs``, ``he_products``, ``and_gates``,
            ``transfers``.
        waiting: bytes of the offline phase that lie in memory between its segments.
        transient: bytes that a party holds at most while the layer runs.
        resident: bytes that the server holds all along.
    """

    offline: tuple[Segment, ...]
    online: tuple[Segment, ...]
    stored: tuple[int, int] = (0, 0)
    counts: Mapping[Phase, Mapping[str, int]] = field(default_factory=dict[Phase, Mapping[str, int]])
    waiting: int = 0
    transient: int = 0
    resident: int = 0

    @property
    def traffic(self) -> dict[Phase, tuple[int, int]]:
        """Bytes in each phase, (client to server, server to client)."""
        return {"offline": _sum(self.offline), "online": _sum(self.online)}


def _sum(segments: Sequence[Segment]) -> tuple[int, int]:
    sent = [message for segment in segments for message in segment]
    return (
        sum(nbytes for sender, nbytes in sent if sender == "client"),
        sum(nbytes for sender, nbytes in sent if sender == "server"),
    )


Offline = Generator[Prepared | None, None, Words | None]
"""An offline step: gives what its party keeps, and None where what follows waits for the other party. It returns the
client's share of the output if the protocol decides that, and None elsewhere."""
Online = Generator[None, None, Words | None]
"""An online step: yields where other steps of the same operation may go on. It returns the server's share of the
output, and None at the client."""
L = TypeVar("L")
S = TypeVar("S")


class Protocol(ABC, Generic[L, S]):
    """A protocol for layers of type L, public and alike at both parties; S is what a party's set-up gives it."""

    kinds: ClassVar[tuple[str, str]]
    """Under which kind of work its offline and its online phase are booked."""
    setup_kind: ClassVar[str]
    """The same for its set-up."""
    decides: ClassVar[bool] = False
    """Whether it decides the client's share of the output; elsewhere the client chooses it before, uniform."""
    by_shares: ClassVar[bool] = False
    """Whether the client's share of the input decides how values are rounded, or what their signs are."""
    by_coins: ClassVar[bool] = False
    """Whether more decides it that the client knows: its part of :meth:`online` gives it to :meth:`Run.show_coins`."""

    def serving(self, layers: Sequence[L], program: Program, *, keep: bool, workers: int) -> Self:
        """The same at the server, which knows the weights.

        Args:
            layers: all of the program's that it will be given.
            program: with its weights.
            keep: hold what is made of weights between runs.
            workers: how many processes may do the work.
        """
        return self

    @abstractmethod
    def setup(self, run: Run, layers: Sequence[L]) -> S:
        """What this party needs to prepare ``layers``, at least one; once a run. The peer does the same."""

    @abstractmethod
    def setup_declared(self, layers: Sequence[L]) -> Segment:
        """What :meth:`setup` sends."""

    @abstractmethod
    def setup_work(self, layers: Sequence[L]) -> Sequence[Effort]:
        """The work behind each message of :meth:`setup_declared`."""

    @abstractmethod
    def offline(self, run: Run, setup: S, layer: L, share: Words | None, blind: Words | None) -> Offline:
        """Prepare one layer.

        Args:
            run: of this party.
            setup: what :meth:`setup` gave.
            layer: what to prepare, once a run.
            share: the client's share of the input, uint64; None at the server.
            blind: what shall be the client's share of the output, uniform, uint64; None where the protocol decides it.
        """

    @abstractmethod
    def online(self, run: Run, layer: L, prepared: Iterator[Prepared], share: Words | None) -> Online:
        """Run one layer.

        Args:
            run: of this party, with the id of the offline phase.
            layer: what was prepared.
            prepared: what :meth:`offline` gave; used up.
            share: the server's share of the input, uint64; None at the client.

        Raises:
            ProtocolError: if what the peer sends is not what the protocol says.
            RuntimeError: if ``prepared`` was used before.
        """

    @abstractmethod
    def declared(self, layer: L) -> Declared:
        """What the layer sends, keeps and counts."""

    @abstractmethod
    def work(self, layer: L) -> Mapping[Phase, Sequence[Effort]]:
        """The work behind each message of :meth:`declared`, offline and online, in the same order."""

    @abstractmethod
    def replay(self, layer: L, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        """What both parties make of ``x`` when the client's share of it is ``client``, bit for bit.

        All are of one shape, or of shapes that broadcast; without the server's weights.

        Args:
            layer: whose values they are.
            x: the values, (..., what the layer reads).
            client: the client's share of them.
            coins: what the client gave to :meth:`Run.show_coins`, (..., what the layer computes), uniform below the
                modulus where they are drawn; None unless ``by_coins``.
        """

    @abstractmethod
    def max_input(self, layer: L) -> int:
        """The largest absolute value of an input for which the output is as good as the protocol promises."""


class ReluProtocol(Protocol[L, S]):
    """A protocol for layers of ReLUs with truncation: shares of x to shares of max(x, 0) / 2^shift, rounded."""

    @abstractmethod
    def layer(self, modulus: Ring | Field, op: Relu, count: int) -> L:
        """The layer of ``count`` ReLUs that an operation of the program is.

        Raises:
            ProgramError: naming the layer, if the protocol cannot take it.
        """


Places = NDArray[np.intp] | slice
"""Flat positions of elements of a value."""


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of one protocol, and its place in an operation.

    Attributes:
        name: of the operation.
        protocol, layer: what is to do.
        reads: which elements of the operation's input the layer takes.
        writes: which elements of its result the layer computes. What no step computes stays what it is.
    """

    name: str
    protocol: Protocol[Any, Any]
    layer: Any
    reads: Places = field(default_factory=lambda: slice(None))
    writes: Places = field(default_factory=lambda: slice(None))

    @cached_property
    def declared(self) -> Declared:
        """What it sends, keeps and counts."""
        return self.protocol.declared(self.layer)

    @cached_property
    def work(self) -> Mapping[Phase, Sequence[Effort]]:
        """The work behind each message that it declares."""
        return self.protocol.work(self.layer)

    @property
    def stream(self) -> str:
        """What its preprocessing is called among that of its operation."""
        return self.protocol.kinds[0]


Flight = tuple[Step, ...]
"""Steps that go side by side."""


def side_by_side(
    run: Run,
    phase: Phase,
    steps: Sequence[tuple[str, Offline | Online]],
    keep: Callable[[int, Prepared], None] = lambda number, prepared: None,
) -> list[Words | None]:
    """Several steps: all of them up to where they yield, then on from there, until all have ended.

    Args:
        run: of this party.
        phase: where they are booked.
        steps: with the name of each one's layer; both parties have them in the same order.
        keep: is given the number of a step and what it prepares, as it comes.

    Returns:
        What each step returned.
    """
    results: list[Words | None] = [None] * len(steps)
    going = dict(enumerate(steps))
    while going:
        for number, (name, step) in list(going.items()):
            state: Prepared | StopIteration | None = _advance(run, phase, name, step)
            while isinstance(state, Prepared):
                keep(number, state)
                state = _advance(run, phase, name, step)
            if isinstance(state, StopIteration):
                results[number] = state.value
                del going[number]
    return results


def _advance(run: Run, phase: Phase, name: str, step: Offline | Online) -> Prepared | StopIteration | None:
    with run.channel.ledger.at(name, phase):
        try:
            return next(step)
        except StopIteration as end:
            return end


def check_shares(name: str, modulus: Ring | Field, count: int, **arrays: Words) -> None:
    """Refuse shares that are no ``count`` elements of ``modulus``; a share past it would get past a protocol's checks.

    Raises:
        ValueError: naming the layer and the array.
    """
    for what, array in arrays.items():
        if array.shape != (count,) or array.dtype != np.uint64:
            raise ValueError(
                f"the {what} of layer {name!r} is {array.dtype} of shape {array.shape}; "
                f"it must be uint64 of shape ({count},)"
            )
        if int(array.max()) >= modulus.order:
            raise ValueError(f"the {what} of layer {name!r} holds a value that is not in {modulus}")


def claim(prepared: set[str], name: str) -> None:
    """Note that a layer is prepared.

    Raises:
        RuntimeError: if it was prepared before in this run, which would use its keys twice.
    """
    if name in prepared:
        raise RuntimeError(f"layer {name!r} was prepared before in this session; start another session for it")
    prepared.add(name)


def base_transfers(pairs: int) -> list[Effort]:
    """The work of base transfers: of each pair of messages, the second ends them."""
    return [Effort(), Effort({"ot.base.receive": 1}, {"ot.base.send": 1})] * pairs
