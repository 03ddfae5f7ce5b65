"""One type for what private inference costs, whoever says so: a published profile, a declaration or a measurement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Cost", "CostReport", "Phase"]

Phase = Literal["setup", "offline", "online"]


@dataclass(frozen=True)
class Cost:
    """What one layer costs in one phase, for one kind of work.

    Attributes:
        layer: path of the layer.
        phase: setup (once per client), offline (once per query, before its input is known), online.
        kind: of work: ``he``, ``garble``, ``evaluate``, ``shares``, ``send`` ...
        seconds: on the critical path.
        bytes_up, bytes_down: client to server, server to client.
        rounds: waits for the other party.
        relus, squares, signs, macs, he_products, and_gates, transfers: how much was done; transfers are oblivious ones.
        stored_client, stored_server: bytes kept from offline to online.
    """

    layer: str
    phase: Phase
    kind: str
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    rounds: int = 0
    relus: int = 0
    macs: int = 0
    he_products: int = 0
    and_gates: int = 0
    transfers: int = 0
    squares: int = 0
    signs: int = 0
    stored_client: int = 0
    stored_server: int = 0


@dataclass(frozen=True)
class CostReport:
    """Every :class:`Cost` of one inference; the sums are views of the rows."""

    rows: tuple[Cost, ...]

    def only(self, *, phase: Phase | None = None, kind: str | None = None, layer: str | None = None) -> CostReport:
        """The rows of one phase, kind or layer."""
        return CostReport(
            tuple(
                row
                for row in self.rows
                if phase in (None, row.phase) and kind in (None, row.kind) and layer in (None, row.layer)
            )
        )

    @property
    def seconds(self) -> float:
        """Of all rows together; nothing overlaps."""
        return sum(row.seconds for row in self.rows)

    @property
    def rounds(self) -> int:
        """Waits for the other party."""
        return sum(row.rounds for row in self.rows)

    @property
    def bytes(self) -> int:
        """Both ways."""
        return sum(row.bytes_up + row.bytes_down for row in self.rows)

    @property
    def stored_client(self) -> int:
        """Bytes the client keeps from offline to online."""
        return sum(row.stored_client for row in self.rows)

    @property
    def stored_server(self) -> int:
        """Bytes the server keeps from offline to online."""
        return sum(row.stored_server for row in self.rows)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names, in the order they run."""
        return tuple(dict.fromkeys(row.layer for row in self.rows))

    @classmethod
    def of(cls, rows: Iterable[Cost]) -> CostReport:
        """A report of these rows."""
        return cls(tuple(rows))
