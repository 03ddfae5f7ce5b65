"""ReLU equalization: stage widths such that the stages' ReLU counts follow their criticality.

DeepReShape (Jha and Reagen, TMLR 2024), section 3 and Algorithm 1. With stage widths m, m a, m a b, ... the ReLU count
of stage s is k_s m times a product of multipliers, where k_s comes from a count of the real graph. Demanding
R_first > R_second > ... in order of criticality bounds, for each pair of neighbours in that order, the product of the
multipliers between the two stages from below or from above. So the problem is: integers in a box under bounds on
products of consecutive ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from deepreshape.counting import count
from deepreshape.models import Staged, build

__all__ = ["GREEK", "PUBLISHED_ORDER", "Design", "Inequality", "coefficients", "equalize", "inequalities"]

GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
"""What the stagewise channel multipliers are called, first to last."""

PUBLISHED_ORDER = (3, 2, 4, 1)
"""Stages of a four-stage ResNet, most critical first (DeepReDuce, DeepReShape)."""


@dataclass(frozen=True)
class Inequality:
    """``R_larger > R_smaller``, as bounds on the product of ``multipliers[first:last]``; both bounds inclusive."""

    larger: int
    smaller: int
    first: int
    last: int
    low: int | None
    high: int | None

    def __str__(self) -> str:
        factors = "*".join(GREEK[self.first : self.last])
        need = f"{factors} >= {self.low}" if self.low is not None else f"{factors} <= {self.high}"
        return f"R{self.larger} > R{self.smaller} ({need})"


@dataclass(frozen=True)
class Design:
    """A network that ReLU equalization found, and what a count of it says."""

    architecture: Staged
    relus: int
    macs: int
    params: int


def coefficients(architecture: Staged) -> tuple[int, ...]:
    """k_s: ReLUs of each stage per channel of its width, counted in the real graph, without the stem's."""
    thin = replace(architecture.unreduced, base=1, multipliers=(1,) * len(architecture.multipliers))
    stages = count(build(thin, "meta"), thin.input).by_stage
    return tuple(stages[f"stage{stage}"].relus for stage in range(1, len(thin.phi) + 1))


def inequalities(coefficients: Sequence[int], order: Sequence[int]) -> tuple[Inequality, ...]:
    """The chain R_{o1} > R_{o2} > ... over neighbours of ``order`` (1-based stages, most critical first)."""
    chain: list[Inequality] = []
    for larger, smaller in pairwise(order):
        above, below = coefficients[larger - 1], coefficients[smaller - 1]
        if larger > smaller:
            chain.append(Inequality(larger, smaller, smaller - 1, larger - 1, below // above + 1, None))
        else:
            chain.append(Inequality(larger, smaller, larger - 1, smaller - 1, None, (above - 1) // below))
    return tuple(chain)


def equalize(
    architecture: Staged,
    order: Sequence[int] | None = None,
    *,
    fixed: Mapping[str, int] | None = None,
    bounds: tuple[int, int] = (2, 12),
) -> tuple[Design, ...]:
    """The ReLU-equalized relatives of a network: all its fields but the multipliers stay.

    Args:
        architecture: gives phi, base, block, strides and input.
        order: stages, most critical first; the published 3 > 2 > 4 > 1 by default (four stages only).
        fixed: multipliers that may not move, by name: ``{"alpha": 2}``. If that leaves no solution, the least critical
            stage is left out of the chain, as DeepReShape does for alpha = 2.
        bounds: smallest and largest multiplier allowed.

    Returns:
        The component-wise minimal solutions (nothing can be narrowed further), or every solution where the least
        critical stage was left out (there the smallest one alone would hide the widths worth having); sorted by ReLUs.

    Raises:
        ValueError: if an argument does not fit the network, or nothing satisfies the chain; the message then names the
            inequalities that exclude each other.
    """
    stages = len(architecture.phi)
    order = _checked_order(order, stages)
    box = _box(stages, bounds, fixed or {})
    chain = inequalities(coefficients(architecture), order)
    solutions = list(_solutions(chain, box, minimal=True))
    if not solutions and fixed:
        solutions = list(_solutions(chain[:-1], box))
    if not solutions:
        raise ValueError(_conflict(chain[:-1] if fixed else chain, box))
    designs: list[Design] = []
    for values in solutions:
        design = replace(architecture.unreduced, multipliers=values)
        total = count(build(design, "meta"), design.input).total
        designs.append(Design(design, total.relus, total.macs, total.params))
    return tuple(sorted(designs, key=lambda design: (design.relus, design.macs)))


def _checked_order(order: Sequence[int] | None, stages: int) -> tuple[int, ...]:
    if stages > len(GREEK) + 1:
        raise ValueError(f"{len(GREEK) + 1} stages are the most that are equalized, not {stages}")
    if order is None:
        if stages != len(PUBLISHED_ORDER):
            raise ValueError(
                f"the published order {PUBLISHED_ORDER} is for four stages; give the order of these {stages}, most "
                "critical first (`deepreshape criticality` measures it)"
            )
        return PUBLISHED_ORDER
    if sorted(order) != list(range(1, stages + 1)):
        raise ValueError(f"an order of {stages} stages names each of 1 to {stages} once, not {tuple(order)}")
    return tuple(order)


Box = tuple[tuple[int, int], ...]


def _box(stages: int, bounds: tuple[int, int], fixed: Mapping[str, int]) -> Box:
    low, high = bounds
    if not 1 <= low <= high:
        raise ValueError(f"bounds on multipliers are 1 <= low <= high, not {low} and {high}")
    names = GREEK[: stages - 1]
    for name, value in fixed.items():
        if name not in names or value < 1:
            raise ValueError(f"cannot fix {name}={value}; {stages} stages have {', '.join(names)}, each at least 1")
    return tuple((fixed[name], fixed[name]) if name in fixed else (low, high) for name in names)


def _solutions(
    chain: Sequence[Inequality], box: Box, *, minimal: bool = False, chosen: tuple[int, ...] = ()
) -> Iterator[tuple[int, ...]]:
    """Depth first, one multiplier after the other; a branch ends where it can no longer lead anywhere.

    With ``minimal``, only solutions with no component-wise smaller one. For those, looking one step down is enough:
    from any smaller solution one gets to a neighbour of this one by growing, which keeps every lower bound, and that
    neighbour is below this one, which keeps every upper bound.
    """
    place = len(chosen)
    if place == len(box):
        if not minimal or all(_needed(chosen, at, chain, box) for at in range(place)):
            yield chosen
        return
    low, high = box[place]
    for value in range(low, high + 1):
        trial = (*chosen, value)
        smallest = (*trial, *(side[0] for side in box[place + 1 :]))
        largest = (*trial, *(side[1] for side in box[place + 1 :]))
        if any(item.high is not None and prod(smallest[item.first : item.last]) > item.high for item in chain):
            return
        if minimal and not _needed(smallest, place, chain, box):
            return
        if all(item.low is None or prod(largest[item.first : item.last]) >= item.low for item in chain):
            yield from _solutions(chain, box, minimal=minimal, chosen=trial)


def _needed(values: tuple[int, ...], place: int, chain: Sequence[Inequality], box: Box) -> bool:
    """Whether the multiplier at ``place`` is at its smallest: one less would leave the box or break a lower bound."""
    if values[place] == box[place][0]:
        return True
    smaller = (*values[:place], values[place] - 1, *values[place + 1 :])
    return any(
        item.low is not None and item.first <= place < item.last and prod(smaller[item.first : item.last]) < item.low
        for item in chain
    )


def _conflict(chain: Sequence[Inequality], box: Box) -> str:
    """Leaves out inequalities one by one as long as the rest still excludes everything; what stays is the conflict."""
    core = list(chain)
    for item in chain:
        rest = [other for other in core if other is not item]
        if next(_solutions(rest, box), None) is None:
            core = rest
    limits = ", ".join(
        f"{name}={low}" if low == high else f"{low} <= {name} <= {high}"
        for name, (low, high) in zip(GREEK, box, strict=False)
    )
    which = f"{core[0]} cannot hold" if len(core) == 1 else " and ".join(map(str, core)) + " exclude each other"
    return (
        f"no ReLU equalization: {which} with {limits}; widen the bounds, free a multiplier or change phi or the order"
    )
