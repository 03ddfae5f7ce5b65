"""What two parties make of a sign s of which the client has c = s ^ t and the server the random bit t.

:class:`SignConversion` is the seam between the carry (``transfer_relu.py``) and what comes of it: the value times the
sign, truncated (``multiplexer.py``), or the sign as a number (``sign_value.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np

from deepreshape.private.arith.ring import Modulus, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.labels import Context, Delta, derive_blinds
from deepreshape.private.errors import ProtocolError

S = TypeVar("S")


class TransferWidths(ABC):
    """What is transferred, sent and kept for each element: how many transfers, and bits of the fields of the rest."""

    @property
    @abstractmethod
    def transfers(self) -> int:
        """Those that the client receives."""

    @property
    @abstractmethod
    def offline_widths(self) -> list[int]:
        """Of what the client sends offline."""

    @property
    @abstractmethod
    def client_widths(self) -> list[int]:
        """Of what the client keeps."""

    @property
    @abstractmethod
    def server_widths(self) -> list[int]:
        """Of what the server keeps; the first is t."""


class SignConversion(TransferWidths, Generic[S]):
    """The server sends with its first message of the carry, the client last. S is what the server holds in between.

    All methods take and give fields, lists of uint64 (n,) whose widths stand beside them. Labels are (transfers, n, 2):
    the client receives :attr:`transfers` by random choices, and sends one, whose choice is t.
    """

    @property
    @abstractmethod
    def sent_widths(self) -> list[int]:
        """Of what the server sends online."""

    @property
    @abstractmethod
    def answer_widths(self) -> list[int]:
        """Of the client's answer."""

    @abstractmethod
    def client_offline(
        self, share: Words, blind: Words, labels: Words, back: Words, delta: Delta, context: Context, rng: Randomness
    ) -> tuple[list[Words], list[Words]]:
        """What the client sends, and what it keeps; ``delta`` is that of its labels ``back`` (n, 2)."""

    @abstractmethod
    def server_offline(
        self, received: list[Words], labels: Words, delta: Delta, back: Words, context: Context
    ) -> list[Words]:
        """What the server keeps; ``labels`` are its labels of zero.

        Raises:
            ProtocolError: if ``received`` holds what is no element of the modulus.
        """

    @abstractmethod
    def server_online(self, kept: list[Words], share: Words) -> tuple[list[Words], S]:
        """What the server sends; ``share`` is x_server."""

    @abstractmethod
    def client_online(self, kept: list[Words], received: list[Words], chosen: Words) -> list[Words]:
        """The client's answer; ``chosen`` is c.

        Raises:
            ProtocolError: if ``received`` holds what is no element of its group.
        """

    @abstractmethod
    def server_finish(self, state: S, received: list[Words]) -> Words:
        """The server's share of the result.

        Raises:
            ProtocolError: if ``received`` holds what is no element of its group.
        """


def both_blinds(labels: Words, delta: Delta, context: Context, tweak: str, modulus: Modulus) -> tuple[Words, Words]:
    """The blinds of a transfer's two choices, at its sender."""
    return derive_blinds(labels, context, tweak, modulus), derive_blinds(labels ^ delta.words, context, tweak, modulus)


def negated_where(bits: Words, values: Words, modulus: Modulus) -> Words:
    """(1 - 2 bit) times the value."""
    return np.where(bits, modulus.neg(values), values)


def checked(values: Words, modulus: Modulus) -> Words:
    """``values`` that the peer sent.

    Raises:
        ProtocolError: if one is no element of ``modulus``.
    """
    if values.size and int(values.max()) >= modulus.order:
        raise ProtocolError(f"the peer sent a value that is not an element of {modulus}")
    return values
