"""Network links, and how to divide one between its directions."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

__all__ = ["Link", "split"]


@dataclass(frozen=True)
class Link:
    """A connection, seen from the client.

    Attributes:
        up, down: bits a second to the server and from it.
        latency: seconds for one way.
    """

    up: float
    down: float
    latency: float = 0.0

    def seconds(self, bytes_up: float, bytes_down: float) -> float:
        """Time to move these bytes, one direction after the other."""
        return 8 * (bytes_up / self.up + bytes_down / self.down)


def split(total: float, bytes_up: float, bytes_down: float) -> Link:
    """Wireless slot allocation (Garimella et al. 2023): the division of ``total`` bits a second that is fastest.

    The time u/r + d/(total - r) is least where the rates go as the square roots of the bytes.
    """
    up = total * sqrt(bytes_up) / (sqrt(bytes_up) + sqrt(bytes_down))
    return Link(up, total - up)
