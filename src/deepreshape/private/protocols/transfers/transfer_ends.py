"""What protocols by correlated transfers in both directions have in common: their set-up, and layers in batches.

Two sessions, each with a Delta of its own, drawn for this use. All transfers of a run are reserved at set-up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.crypto.bit_fields import packed_bytes
from deepreshape.private.crypto.labels import Delta
from deepreshape.private.crypto.ot.cot import Cot, CotReceiver, CotSender
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.crypto.ot.silent import SILENT
from deepreshape.private.crypto.ot.softspoken import SOFTSPOKEN
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols.base import Effort, Message, Prepared, Protocol, Run, Segment

COTS: dict[str, Cot] = {"silent": SILENT, "softspoken": SOFTSPOKEN, "iknp": IKNP}
"""By the names of ``relu_config.COTS``."""


@dataclass(repr=False)
class TransferEnds:
    """One party's ends of the transfers of a run, and the layers that were prepared with them."""

    sender: CotSender
    receiver: CotReceiver
    layers: set[str] = field(default_factory=set[str], init=False)


class Reservation(NamedTuple):
    """How many transfers a run takes: those in which the client chooses, and those back."""

    cot: Cot
    there: int
    back: int

    def setup(self, run: Run, use: bytes) -> TransferEnds:
        """A party's ends; ``use`` names the protocol in the ids of both sessions."""
        ids = use + run.id, use + b" back" + run.id
        if run.role == "server":
            sender = self.cot.sender(run.channel, ids[0], Delta(run.rng), run.rng)
            receiver = self.cot.receiver(run.channel, ids[1], run.rng)
            sender.reserve(run.channel, self.there)
            receiver.reserve(run.channel, self.back)
        else:
            receiver = self.cot.receiver(run.channel, ids[0], run.rng)
            sender = self.cot.sender(run.channel, ids[1], Delta(run.rng), run.rng)
            receiver.reserve(run.channel, self.there)
            sender.reserve(run.channel, self.back)
        return TransferEnds(sender, receiver)

    @property
    def declared(self) -> Segment:
        """What the set-up sends."""
        ends: tuple[tuple[Role, Role], ...] = (("client", "server"), ("server", "client"))
        messages: list[Message] = []
        for receiver, sender in ends:
            for end, nbytes in self.cot.setup_messages:
                messages.append(Message(receiver if end == "receiver" else sender, nbytes))
        for (receiver, sender), count in zip(ends, (self.there, self.back), strict=True):
            to_sender, to_receiver = self.cot.reserve_bytes(count)
            messages += [Message(receiver, to_sender), Message(sender, to_receiver)]
        return tuple(message for message in messages if message.nbytes)

    @property
    def work(self) -> Sequence[Effort]:
        """The work behind each of its messages."""
        # of either direction the second message, the base replies, ends its base transfers
        replies = [end for end, _ in self.cot.setup_messages].index("sender")
        ends = {replies, replies + len(self.cot.setup_messages)}
        base = Effort({"ot.base.receive": 1}, {"ot.base.send": 1})
        return [base if number in ends else Effort() for number in range(len(self.declared))]


class Batches:
    """A layer of ``count`` values, ``batch`` of them at a time; what is kept of a batch is one packed array."""

    name: str
    count: int
    batch: int

    @property
    def spans(self) -> list[slice]:
        """The values of each batch."""
        return [slice(first, min(first + self.batch, self.count)) for first in range(0, self.count, self.batch)]

    @property
    def sizes(self) -> list[int]:
        """How many values each batch has."""
        return [span.stop - span.start for span in self.spans]

    def nbytes(self, widths: Sequence[int]) -> int:
        """Bytes of fields of these widths, batch by batch."""
        return sum(packed_bytes(widths, size) for size in self.sizes)

    @staticmethod
    def packed(array: NDArray[np.uint8]) -> Prepared:
        """A batch to keep."""
        return Prepared({"packed": array})

    def taken(self, prepared: Iterator[Prepared]) -> list[NDArray[np.uint8]]:
        """What was kept, batch by batch; each for the one time that it can be taken.

        Raises:
            ValueError: if there are fewer batches.
            RuntimeError: if one was taken before.
        """
        arrays: list[NDArray[np.uint8]] = []
        for number in range(len(self.sizes)):
            batch = next(prepared, None)
            if batch is None:
                raise ValueError(f"layer {self.name!r} has {len(self.sizes)} batches, and {number} were given")
            arrays.append(batch.take()["packed"])
        return arrays


L = TypeVar("L", bound=Batches)


class TransferProtocol(Protocol[L, TransferEnds]):
    """A protocol whose layers take transfers that are all reserved at set-up."""

    setup_kind = "transfers"
    session: ClassVar[bytes]
    """Its name in the ids of both sessions."""

    @abstractmethod
    def reservation(self, layers: Sequence[L]) -> Reservation:
        """What these layers take."""

    def setup(self, run: Run, layers: Sequence[L]) -> TransferEnds:
        return self.reservation(layers).setup(run, self.session)

    def setup_declared(self, layers: Sequence[L]) -> Segment:
        return self.reservation(layers).declared

    def setup_work(self, layers: Sequence[L]) -> Sequence[Effort]:
        return self.reservation(layers).work
