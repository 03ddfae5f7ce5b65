"""Which coarse steps bring a network to a ReLU budget, and the network they give.

The order of steps is DeepReShape's Algorithm 2: cull the first stage where it holds the most ReLUs, thin, then reuse
(or, as in DeepReDuce, reshape).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from torch import nn

from deepreshape.counting import count
from deepreshape.design.base_width import multiply_adds
from deepreshape.design.coarse_steps import Cull, Reuse, Scale, Thin
from deepreshape.models import Staged, build
from deepreshape.nn import Nonlinearity, Zeroed

__all__ = ["FACTORS", "CoarsePlan", "Record", "Step", "apply", "coarse_plans", "plan", "plan_of"]

Step = Callable[[Staged], Staged]

FACTORS = (2, 4, 8, 16)
"""Reuse factors tried, as in the paper."""


@dataclass(frozen=True)
class CoarsePlan:
    """A sequence of coarse steps and what it comes to.

    Attributes:
        steps: in order; each turns an architecture into one with fewer ReLUs.
        architecture: what they make of the network.
        relus: its count, predicted by arithmetic; a count of the built network gives the same.
    """

    steps: tuple[Step, ...]
    architecture: Staged
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


def plan_of(architecture: Staged, *steps: Step) -> CoarsePlan:
    """The plan of given steps.

    Raises:
        ValueError: if a step does not fit the network.
    """
    reduced = reduce(lambda before, step: step(before), steps, architecture)
    return CoarsePlan(steps, reduced, reduced.relus)


def coarse_plans(architecture: Staged, shrink: Literal["reuse", "reshape"] = "reuse") -> Iterator[CoarsePlan]:
    """Every sequence that the pipeline allows, gentlest first.

    Args:
        architecture: the unreduced network.
        shrink: what comes after thinning: ReLU reuse, or DeepReDuce's channel and resolution scaling.
    """
    held = dict.fromkeys(range(len(architecture.phi) + 1), 0)
    for site in architecture.sites():
        held[site.stage] += architecture.relus_at(site)
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


def plan(
    architecture: Staged,
    budget: int,
    shrink: Literal["reuse", "reshape"] = "reuse",
    *,
    max_macs: float | None = None,
) -> CoarsePlan:
    """The sequence that keeps the most ReLUs within ``budget``, and within so many multiply-adds if they are given.

    Raises:
        ValueError: if a budget is larger than the network or smaller than the pipeline can reach.
    """
    everything = architecture.unreduced.relus
    if budget > everything:
        raise ValueError(f"a budget of {budget:,} ReLUs is larger than the network, which has {everything:,}")
    plans = list(coarse_plans(architecture.unreduced, shrink))
    fitting = [candidate for candidate in plans if candidate.relus <= budget]
    if not fitting:
        fewest = min(candidate.relus for candidate in plans)
        raise ValueError(
            f"no coarse plan reaches {budget:,} ReLUs; the smallest has {fewest:,}, and fewer take `linearize`"
        )
    if max_macs is not None:
        least = min(map(_macs, fitting))
        fitting = [candidate for candidate in fitting if _macs(candidate) <= max_macs]
        if not fitting:
            raise ValueError(
                f"no coarse plan has {budget:,} ReLUs and {max_macs:,.0f} multiply-adds; with so few ReLUs the "
                f"least is {least:,}, so take a narrower network"
            )
    return max(fitting, key=lambda candidate: candidate.relus)


def _macs(candidate: CoarsePlan) -> int:
    return multiply_adds(candidate.architecture)


def apply(chosen: CoarsePlan, model: nn.Module, seed: int = 0) -> tuple[nn.Module, Record]:
    """A new network of the plan's architecture, with what ``model`` has wherever name and shape agree.

    Weights are carried over, and masks to sites that the plan leaves whole; a site that the plan empties needs none.

    Args:
        chosen: the plan.
        model: of the same family; it is left as it was.
        seed: of the weights that start anew.

    Raises:
        ValueError: if the model is of another family, or has a mask that the new network has no place for.
    """
    whole = getattr(model, "architecture", None)
    if type(whole) is not type(chosen.architecture):
        name = getattr(whole, "family", type(model).__name__)
        raise ValueError(f"a plan for a {chosen.architecture.family} does not fit a {name}, whose sites are others")
    built = build(chosen.architecture, seed=seed)
    _carry_masks(model, built)
    state, target = model.state_dict(), built.state_dict()
    carried = {
        name: state[name] for name, tensor in target.items() if name in state and state[name].shape == tensor.shape
    }
    built.load_state_dict(target | carried)
    before, after = (count(each, chosen.architecture.input).total.relus for each in (model, built))
    fresh = tuple(name for name in target if name not in carried)
    return built, Record(str(chosen), before, after, "layer", tuple(carried), fresh)


def _carry_masks(model: nn.Module, built: nn.Module) -> None:
    """Put what stands at the sites of ``model`` at those of ``built``, which has the same architecture type."""
    modules = dict(built.named_modules())
    sizes = {site.name: (site.channels, *site.size) for site in built.architecture.sites()}  # pyright: ignore
    factors = dict(built.architecture.reduction.reused)  # pyright: ignore
    seen: set[str] = set()
    for path, site in model.named_modules():
        if not isinstance(site, Nonlinearity) or path.rpartition(".")[0] in seen:
            continue
        seen.add(path)
        if path not in factors and isinstance(modules.get(path), nn.Identity):
            continue
        positions = site.keep if isinstance(site, Zeroed) else site.mask
        if positions is None and type(modules.get(path)) is type(site):
            continue  # such as a sign, whose tensors are carried by name
        if path in factors or path not in sizes or (positions is not None and tuple(positions.shape) != sizes[path]):
            what = "mask" if positions is not None else site.kind
            raise ValueError(
                f"the {what} at {path} has no place in the new network, where that site is reused, missing or of "
                "another size; apply the plan before ReLUs are removed one by one"
            )
        built.set_submodule(path, copy.deepcopy(site))
