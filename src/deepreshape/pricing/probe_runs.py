"""Small programs between two processes: by how much a whole run is slower than its primitives one at a time.

In a run memory is colder, caches are shared with the other party, and a core may have to be. What that costs goes with
the kind of work, so that each kind has a factor of its own: homomorphic layers, products in the clear, filling the
store, taking from it, and for each way to compute ReLUs and each garbler the offline and the online phase. A layer of
ReLUs also costs something whatever its size: one probe has few layers of many ReLUs and one the reverse. A
least-squares fit separates them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from deepreshape.cost import LINKS, Profile, compute_schedule
from deepreshape.pricing.work import SESSION, segments
from deepreshape.private.arith.ring import Ring
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.ops import INPUT, Conv2d, Op, Relu, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, ROLES, ReluConfig, Role
from deepreshape.private.service.local_run import run_local

FEW, MANY, WIDE = (16, 48, 3), (64, 8, 20), (320, 4, 4)
"""Channels, side and depth: 3 layers of 36,864 ReLUs; 20 layers of 4,096; 4 layers of nearly a million weights."""
CONFIGS = {"gc-full": ("gc-full",), "sign": ("gc-sign", "gc-stochastic:drop=16")}
"""By the name of their units; circuits of a sign are probed at two widths, as their ReLUs cost something beside."""
SHARED = ("ot.choose", "ot.send", "element", "store.read")
"""Units that layers of ReLUs have under names of their own too, as their factors are others."""
ONLINE = ("label", "label.relu", "evaluate", "evaluate.gate", "evaluate.relu", "store.read")
WEIGHTS = (".encode", ".product")
CLEAR_WEIGHTS = (".weight",)
CLAIM = ("store.claim", "store.open", "store.destroy")
LEAST, MOST = 0.3, 5.0
Times = dict[str, float]


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
    kinds: list[tuple[str, tuple[str, ...], Role]] = [
        (f"{kind}.{role}", names, role) for kind, names in CONFIGS.items() for role in ROLES
    ]
    units = {"worker": 0.0, "he.start": 0.0, **profile.units}
    for kind, _, _ in kinds:
        units |= {f"{kind}.offline": 0.0, f"{kind}.online": 0.0}
        units |= {f"{kind}.{shared}": profile.units[shared] for shared in SHARED}
    bare = replace(profile, units=units)
    constants: Times = {}
    factors: Times = {}
    ran: list[_Run] = []
    for kind, names, garbler in kinds:
        configs = [replace(ReluConfig.parse(name), garbler=garbler) for name in names]
        probes = [_probe(shape, relu, bare, rounds) for shape in (FEW, MANY) for relu in configs]
        ran += probes
        for phase in ("offline", "online"):
            rows = [(run.depth, run.part(phase, ".relu"), run.predicted[phase]) for run in probes]
            constants[f"{kind}.{phase}"], factors[f"{kind}.{phase}.relu"], factors[f"{kind}.{phase}"] = _fitted(
                rows, [run.measured[phase] for run in probes]
            )
    wide = _probe(WIDE, GC_FULL, bare, rounds)
    every = (*ran, wide)
    rows = [(1.0, run.part("he", *WEIGHTS), run.predicted["he"]) for run in every]
    constants["he.start"], factors["he.weights"], factors["he"] = _fitted(rows, [run.measured["he"] for run in every])
    rows = [(0.0, run.part("clear", *CLEAR_WEIGHTS), run.predicted["clear"]) for run in every]
    _, factors["clear.weight"], factors["clear"] = _fitted(rows, [run.measured["clear"] for run in every])
    for name in ("store", "claim"):
        ratio = sum(run.measured[name] for run in ran) / sum(run.predicted[name] for run in ran)
        factors[name] = float(np.clip(ratio, LEAST, MOST))

    def factor(name: str) -> float:
        kind = next((kind for kind, _, _ in kinds if name.startswith(f"{kind}.")), None)
        if kind:
            phase = "online" if name.removeprefix(f"{kind}.") in ONLINE else "offline"
            return factors[f"{kind}.{phase}{'.relu' if name.endswith('.relu') else ''}"]
        if name.startswith("store"):
            return factors["claim" if name in CLAIM else "store"]
        if name.startswith("clear"):
            return factors["clear.weight" if name.endswith(CLEAR_WEIGHTS) else "clear"]
        if name.startswith("he"):
            return factors["he.weights" if name.endswith(WEIGHTS) else "he"]
        return 1.0

    units = {name: seconds * factor(name) for name, seconds in units.items()} | constants
    changed = replace(profile, units=units, factors={name: round(value, 3) for name, value in factors.items()})
    shared = _probe(WIDE, GC_FULL, changed, rounds, workers=2)
    return replace(changed, units={**units, "worker": max(shared.measured["he"] - shared.predicted["he"], 0.0)})


def _fitted(rows: Sequence[tuple[float, float, float]], measured: list[float]) -> tuple[float, float, float]:
    """A constant and two factors that explain what was measured, by least squares.

    Args:
        rows: how often the constant is paid; predicted seconds of the first part, and of both parts together.
        measured: seconds, each of which counts alike however long it is.
    """
    equations = np.array([(count, part, whole - part) for count, part, whole in rows]) / np.array(measured)[:, None]
    # where nothing is predicted of the first part, the solution of least norm leaves it out
    constant, first, second = np.linalg.lstsq(equations, np.ones(len(rows)))[0]
    return max(float(constant), 0.0), float(np.clip(first, LEAST, MOST)), float(np.clip(second, LEAST, MOST))


@dataclass(frozen=True)
class _Run:
    """A probe: predicted and measured seconds of ReLU layers by phase, of other layers by kind, and of the store."""

    depth: int
    predicted: Times
    measured: Times
    without: Callable[[tuple[str, ...]], Times]

    def part(self, of: str, *endings: str) -> float:
        """What of the predicted seconds is due to units whose names end so."""
        return self.predicted[of] - self.without(endings)[of]


def _probe(shape: tuple[int, int, int], relu: ReluConfig, profile: Profile, rounds: int, workers: int = 1) -> _Run:
    probe = program(*shape)
    taken = list(segments(Plan(probe.public(), relu).steps))

    def predicted(without: tuple[str, ...]) -> Times:
        units = {name: 0.0 if name.endswith(without) else of for name, of in profile.units.items()}
        report = compute_schedule(taken, replace(profile, units=units), LINKS["loopback"], workers)
        online = report.only(phase="online")
        he, relus = (report.only(phase="offline", kind=kind).seconds for kind in ("he", "garble"))
        layers = sum(row.seconds for row in online.rows if row.layer != SESSION)
        clear = online.only(kind="clear").seconds
        return parts(report.seconds - online.seconds, he, relus, online.seconds, layers, clear)

    setup = compute_schedule(taken, profile, LINKS["loopback"]).only(phase="setup").seconds

    def parts(offline: float, he: float, relus: float, online: float, layers: float, clear: float) -> Times:
        session = profile.units["session"]
        store = offline - he - relus - setup - session
        claim = online - layers - session
        return {"he": he, "clear": clear, "offline": relus, "online": layers - clear, "store": store, "claim": claim}

    x = np.random.default_rng(1).integers(-255, 256, (1, *probe.input_shape))
    runs: list[Times] = []
    for _ in range(rounds):
        local = run_local(probe, x, relu, workers=workers)
        took = {row["layer"]: row["seconds"]["client"] for row in local["layers"]}
        # nothing runs beside a product in the clear, and the client waits for it in the layer behind
        clear = sum(row["seconds"]["server"]["online"] for row in local["layers"] if row["layer"].startswith("conv"))
        he, relus = (
            sum(seconds["offline"] for name, seconds in took.items() if name.startswith(kind))
            for kind in ("conv", "act")
        )
        layers = sum(seconds["online"] for seconds in took.values())
        runs.append(parts(local["seconds"]["offline"], he, relus, local["seconds"]["online"], layers, clear))
    measured = {name: median(run[name] for run in runs) for name in runs[0]}
    return _Run(shape[2], predicted(()), measured, predicted)
