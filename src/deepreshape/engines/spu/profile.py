"""What SPU says about itself: the profile that each party logs after every run, read into numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["RELU", "Kernel", "PartyRun", "parse"]

_TOTAL = re.compile(r"\[Profiling\] SPU execution \S+ completed,.* total time ([\d.e+-]+)s")
_SECTION = re.compile(r"\] (HLO|HAL|MPC) profiling: total time")
_KERNEL = re.compile(
    r"\] - (.+), executed (\d+) times, duration ([\d.e+-]+)s, "
    r"send bytes (\d+) recv bytes \d+, send actions (\d+), recv actions \d+"
)
_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes \d+, send actions (\d+)")

RELU = {"msb_a2b", "mul_a1b"}
"""The kernels that a ReLU comes to: the sign bit of a shared value, and a shared value times a shared bit."""


class Kernel(NamedTuple):
    """One kind of work in one run, as one party saw it; its waits for the others are in its seconds."""

    calls: int
    seconds: float
    sent: int
    sends: int


@dataclass
class PartyRun:
    """One run, as one party saw it.

    Attributes:
        seconds: of the run, without placing the input and revealing the output.
        sent, sends: bytes and messages that this party sent.
        kernels: by name (``mmul_sv``, ``msb_a2b``, ``trunc_a`` ...); they do not overlap.
    """

    seconds: float
    sent: int = 0
    sends: int = 0
    kernels: dict[str, Kernel] = field(default_factory=dict[str, Kernel])

    @property
    def relu(self) -> Kernel:
        """All that went into ReLUs. The rest is linear layers, their truncations, and moving values about."""
        kernels = [kernel for name, kernel in self.kernels.items() if name in RELU]
        return Kernel(
            sum(kernel.calls for kernel in kernels),
            sum(kernel.seconds for kernel in kernels),
            sum(kernel.sent for kernel in kernels),
            sum(kernel.sends for kernel in kernels),
        )


def parse(log: str) -> list[PartyRun]:
    """The runs that a party's log tells of, in order.

    Raises:
        ValueError: if the log ends within a run's profile.
    """
    runs: list[PartyRun] = []
    section, complete = "", True
    for line in log.splitlines():
        if match := _TOTAL.search(line):
            runs.append(PartyRun(float(match[1])))
            complete = False
        elif match := _SECTION.search(line):
            section = match[1]
        elif (match := _KERNEL.search(line)) and section == "MPC":
            runs[-1].kernels[match[1]] = Kernel(int(match[2]), float(match[3]), int(match[4]), int(match[5]))
        elif match := _LINK.search(line):
            runs[-1].sent, runs[-1].sends, complete = int(match[1]), int(match[2]), True
    if not complete:
        raise ValueError(f"the log ends within the profile of run {len(runs)}")
    return runs
