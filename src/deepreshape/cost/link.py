"""Network links: rates each way and latency, and how to divide one between its directions.

What overlaps, wherever this package turns bytes into seconds:

- Parties take turns. The messages of one turn follow each other in the pipe; one turn pays the latency once.
- Of a message that is made piece by piece (circuits, labels) the sender makes the next piece while the receiver takes
  the last; carrying a piece takes both. Any other message is made, then sent, then taken.
- The two directions are never busy at once, and nothing of the offline phase runs beside the online phase.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf, isfinite, sqrt

__all__ = ["LINKS", "Link", "read_link", "split"]


@dataclass(frozen=True)
class Link:
    """A connection, seen from the client.

    Attributes:
        up, down: bits a second to the server and from it.
        latency: seconds for one way, half a round trip.
    """

    up: float
    down: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not (self.up > 0 and self.down > 0 and 0 <= self.latency < inf):
            raise ValueError(f"{self}: rates must be positive, and the latency finite and at least 0")

    def seconds(self, bytes_up: float, bytes_down: float, rounds: float = 0) -> float:
        """Time to move these bytes, one direction after the other, and to wait ``rounds`` times for an answer."""
        return 8 * (bytes_up / self.up + bytes_down / self.down) + 2 * self.latency * rounds

    def __str__(self) -> str:
        return f"{_rate(self.up)}/{_rate(self.down)}/{2000 * self.latency:g}ms"


def split(total: float, bytes_up: float, bytes_down: float, latency: float = 0.0) -> Link:
    """Wireless slot allocation (Garimella et al. 2023): the division of ``total`` bits a second that is fastest.

    The time u/r + d/(total - r) is least where the rates go as the square roots of the bytes.
    """
    if not isfinite(total):
        return Link(total, total, latency)
    # a direction without any bytes still has to carry the acknowledgements
    up = total * min(max(sqrt(bytes_up) / (sqrt(bytes_up) + sqrt(bytes_down) or 1), 0.001), 0.999)
    return Link(up, total - up, latency)


LINKS: dict[str, Link] = {
    "loopback": Link(inf, inf),
    "lan": Link(1e9, 1e9, 0.25e-3),
    "wan": Link(100e6, 100e6, 25e-3),
    "wireless": Link(500e6, 500e6),
}
"""Links by name; ``wireless`` is the ASPLOS'23 study's 1 Gbit/s in halves, ``loopback`` no link at all."""

_UNITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def read_link(text: str) -> Link:
    """A link by its name, or as UP/DOWN/ROUND-TRIP, such as ``20mbit/100mbit/40ms``; one rate is for both ways.

    Raises:
        ValueError: if it is neither.
    """
    if text in LINKS:
        return LINKS[text]
    *rates, trip = text.lower().split("/")
    values = [_read(rate, _UNITS) for rate in rates]
    seconds = _read(trip, _TIMES)
    if len(values) not in (1, 2) or not all(values) or seconds is None:
        raise ValueError(
            f"unknown link {text!r}; known are {', '.join(LINKS)}, and up/down/round trip such as 20mbit/100mbit/40ms"
        )
    return Link(values[0] or inf, values[-1] or inf, seconds / 2)


def _read(text: str, units: dict[str, float]) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", text)
    return float(match[1]) * units[match[2]] if match and match[2] in units else None


def _rate(bits: float) -> str:
    return f"{bits / 1e6:g}mbit" if isfinite(bits) else "unlimited"
