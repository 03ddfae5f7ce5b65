"""Correlated transfers in both directions, made before they are needed: what protocols by transfers set up.

Two sessions, each with a Delta of its own, drawn for this use. All transfers of a run are reserved at set-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deepreshape.private.crypto.labels import Delta
from deepreshape.private.crypto.ot.cot import Cot, CotReceiver, CotSender
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.crypto.ot.silent import SILENT
from deepreshape.private.crypto.ot.softspoken import SOFTSPOKEN
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols.base import Effort, Message, Run, Segment

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
