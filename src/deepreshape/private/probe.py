"""Two small programs between two processes: by how much a whole run is slower than its primitives one at a time.

In a run memory is colder, caches are shared with the other party, and a core may have to be. What that costs goes with
the kind of work, so it is put into three factors: for homomorphic work, for garbling and storing, and for what is
online. Two probes, one of few products and many ReLUs and one of the reverse, are two equations for the first two.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deepreshape.cost import LINKS, CostReport, Profile, schedule
from deepreshape.private.local import run_local
from deepreshape.private.plan import Plan
from deepreshape.private.program import INPUT, Conv2d, Op, Program, Relu, Weights
from deepreshape.private.shares import Ring
from deepreshape.private.turns import Steps, turns

PROBES = ((4, 48, 4), (64, 8, 6))
"""Channels, side and depth: (4, 48, 4) has 36,864 ReLUs and few ciphertexts, (64, 8, 6) much the reverse."""
ONLINE = (
    *(".label", ".label.relu", ".evaluate", ".evaluate.gate", ".evaluate.relu", ".online"),
    *("store.read", "clear.mac", "clear.patch", "element"),
)
WHOLE = ("session", "engine")
"""Measured as they are in a run."""
LEAST, MOST = 0.5, 5.0


def program(channels: int, side: int, depth: int) -> Program:
    """Convolutions of 3x3 with a ReLU behind each, on random weights."""
    rng = np.random.default_rng(0)
    ops: list[Op] = []
    weights: dict[str, Weights] = {}
    last = INPUT
    for number in range(depth):
        conv, act = f"conv{number}", f"act{number}"
        ops += [Conv2d(conv, (last,), channels, 3, 11, 11, 1, 1), Relu(act, (conv,), 11)]
        weight = rng.integers(-20, 21, (channels, channels, 3, 3), np.int64)
        weights[conv] = Weights(weight, np.zeros(channels, np.int64))
        last = act
    return Program(Ring(32), (channels, side, side), 8, 255, tuple(ops), weights, {op.name: 1 << 22 for op in ops})


def adjusted(profile: Profile, rounds: int) -> Profile:
    """The profile with its units times the factors that the probes show; it names them."""
    predicted: list[CostReport] = []
    measured: list[dict[str, float]] = []
    for shape in PROBES:
        probe = program(*shape)
        steps = Steps.of(Plan(probe.public()))
        predicted.append(schedule(turns(steps), profile, LINKS["loopback"]))
        x = np.random.default_rng(1).integers(-255, 256, (1, *probe.input_shape))
        runs = [run_local(probe, x, workers=1)["seconds"] for _ in range(rounds)]
        measured.append({phase: min(run[phase] for run in runs) for phase in ("offline", "online")})
    he, garble = _solve(predicted, measured)
    online = sum(run["online"] for run in measured) / sum(report.only(phase="online").seconds for report in predicted)
    factors = {"he": he, "offline": garble, "online": float(np.clip(online, LEAST, MOST))}

    def factor(unit: str) -> float:
        if unit in WHOLE:
            return 1.0
        if unit.endswith(ONLINE):
            return factors["online"]
        return factors["he" if unit.startswith("he") else "offline"]

    units = {unit: seconds * factor(unit) for unit, seconds in profile.units.items()}
    return replace(profile, units=units, factors={name: round(value, 3) for name, value in factors.items()})


def _solve(predicted: list[CostReport], measured: list[dict[str, float]]) -> tuple[float, float]:
    """The factors of homomorphic and of all other work offline."""
    he = [report.only(phase="offline", kind="he").seconds for report in predicted]
    rest = [
        report.seconds - report.only(phase="online").seconds - mine for report, mine in zip(predicted, he, strict=True)
    ]
    found = np.linalg.solve(np.array([he, rest]).T, [run["offline"] for run in measured])
    first, second = np.clip(found, LEAST, MOST)
    return float(first), float(second)
