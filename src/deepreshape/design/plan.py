"""Which coarse steps bring a network to a ReLU budget, and the network they give.

The order of steps is DeepReShape's Algorithm 2: cull the first stage where it holds the most ReLUs, thin, then reuse
(or, as in DeepReDuce, reshape).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from torch import nn

from deepreshape.design.coarse_steps import Cull, Reuse, Scale, Thin
from deepreshape.models import Architecture, build, relus, relus_at, sites

__all__ = ["FACTORS", "Plan", "Record", "Step", "apply", "candidates", "plan"]

Step = Callable[[Architecture], Architecture]

FACTORS = (2, 4, 8, 16)
"""Reuse factors tried, as in the paper."""


@dataclass(frozen=True)
class Plan:
    """A sequence of coarse steps and what it comes to.

    Attributes:
        steps: in order; each turns an architecture into one with fewer ReLUs.
        architecture: what they make of the network.
        relus: its count, predicted by arithmetic; a count of the built network gives the same.
    """

    steps: tuple[Step, ...]
    architecture: Architecture
    relus: int

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps)) or "all ReLUs"


@dataclass(frozen=True)
class Record:
    """What a transform did.

    Attributes:
        method: and its settings.
        relus_before, relus_after: counts.
        granularity: of the choice: ``"layer"`` for the coarse steps.
        carried, fresh: names of the weights taken over, and of those that start anew.
    """

    method: str
    relus_before: int
    relus_after: int
    granularity: Literal["pixel", "position", "channel", "layer"]
    carried: tuple[str, ...]
    fresh: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, weights as numbers."""
        return {
            "method": self.method,
            "relus_before": self.relus_before,
            "relus_after": self.relus_after,
            "granularity": self.granularity,
            "weights_carried": len(self.carried),
            "weights_fresh": len(self.fresh),
        }


def plan_of(architecture: Architecture, *steps: Step) -> Plan:
    """The plan of given steps.

    Raises:
        ValueError: if a step does not fit the network.
    """
    made = reduce(lambda before, step: step(before), steps, architecture)
    return Plan(steps, made, relus(made))


def candidates(architecture: Architecture, shrink: Literal["reuse", "reshape"] = "reuse") -> Iterator[Plan]:
    """Every sequence that the pipeline allows, gentlest first.

    Args:
        architecture: the unreduced network.
        shrink: what comes after thinning: ReLU reuse, or DeepReDuce's channel and resolution scaling.
    """
    held = dict.fromkeys(range(len(architecture.phi) + 1), 0)
    for site in sites(architecture):
        held[site.stage] += relus_at(architecture, site)
    first_dominates = held[1] == max(held.values())
    last: tuple[Step, ...] = (Cull(1), Thin())
    sequences: list[tuple[Step, ...]] = [(), (Cull(1),) if first_dominates else (Thin(),)]
    sequences += [last] if first_dominates else [(Cull(1),), last]
    if shrink == "reuse":
        sequences += [(*last, Reuse(factor)) for factor in FACTORS]
    else:
        sequences += [(*last, Scale(*by)) for by in ((2, 1), (1, 2), (2, 2), (4, 2), (2, 4))]
    for steps in sequences:
        try:
            yield plan_of(architecture, *steps)
        except ValueError:  # a narrow network cannot be split as often, a pre-activation one not at all
            continue


def plan(architecture: Architecture, budget: int, shrink: Literal["reuse", "reshape"] = "reuse") -> Plan:
    """The sequence that keeps the most ReLUs within ``budget``.

    Raises:
        ValueError: if the budget is larger than the network or smaller than the pipeline can reach.
    """
    everything = relus(architecture.unreduced)
    if budget > everything:
        raise ValueError(f"a budget of {budget:,} ReLUs is larger than the network, which has {everything:,}")
    found = list(candidates(architecture.unreduced, shrink))
    fitting = [candidate for candidate in found if candidate.relus <= budget]
    if not fitting:
        least = min(candidate.relus for candidate in found)
        raise ValueError(f"no coarse plan reaches {budget:,} ReLUs; the smallest has {least:,}")
    return max(fitting, key=lambda candidate: candidate.relus)


def apply(chosen: Plan, model: nn.Module, seed: int = 0) -> tuple[nn.Module, Record]:
    """A new network of the plan's architecture, with the weights of ``model`` wherever name and shape agree.

    Args:
        chosen: the plan.
        model: of the same family; it is left as it was.
        seed: of the weights that start anew.
    """
    made = build(chosen.architecture, seed=seed)
    state, target = model.state_dict(), made.state_dict()
    carried = {
        name: state[name] for name, tensor in target.items() if name in state and state[name].shape == tensor.shape
    }
    made.load_state_dict(target | carried)
    before = relus(model.architecture)  # pyright: ignore[reportArgumentType]
    fresh = tuple(name for name in target if name not in carried)
    return made, Record(str(chosen), before, chosen.relus, "layer", tuple(carried), fresh)
