"""How many bytes and frames one end of a channel has sent and received, and how long that took, by layer and phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["setup", "offline", "online"]


@dataclass
class Traffic:
    """Bytes and frames of one layer and phase, as one party saw them. Payload only; framing is the transport's."""

    sent: int = 0
    received: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    rounds: int = 0
    """How often this party had to wait for the other after having sent something."""


@dataclass
class Ledger:
    """Traffic by (layer, phase), of one end of a channel; not shared between threads."""

    traffic: dict[tuple[str, Phase], Traffic] = field(default_factory=dict[tuple[str, Phase], Traffic])
    seconds: dict[tuple[str, Phase], float] = field(default_factory=dict[tuple[str, Phase], float])
    """Wall-clock time this party spent there, waiting for the other included."""
    layer: str = ""
    phase: Phase = "setup"
    watch: Callable[[int], None] | None = None
    """Is called after every frame with the bytes of all layers so far, in both directions."""
    _sent_last: bool = False
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def at(self, layer: str, phase: Phase) -> Generator[None]:
        """Count what happens inside for this layer and phase."""
        before = self.layer, self.phase
        self._clock()
        self.layer, self.phase = layer, phase
        try:
            yield
        finally:
            self._clock()
            self.layer, self.phase = before

    def _clock(self) -> None:
        """Add the time since the last call to the current layer and phase."""
        now = time.perf_counter()
        place = self.layer, self.phase
        self.seconds[place] = self.seconds.get(place, 0.0) + now - self._since
        self._since = now

    def current(self) -> Traffic:
        """Traffic of the current layer and phase."""
        return self.traffic.setdefault((self.layer, self.phase), Traffic())

    def sent(self, nbytes: int) -> None:
        """Count one frame sent."""
        current = self.current()
        current.sent += nbytes
        current.frames_sent += 1
        self._sent_last = True
        self._notify()

    def received(self, nbytes: int) -> None:
        """Count one frame received."""
        current = self.current()
        current.received += nbytes
        current.frames_received += 1
        current.rounds += self._sent_last
        self._sent_last = False
        self._notify()

    def _notify(self) -> None:
        if self.watch:
            self.watch(sum(each.sent + each.received for (layer, _), each in self.traffic.items() if layer))
