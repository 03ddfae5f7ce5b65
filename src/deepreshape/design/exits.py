"""When to stop: configurations of a trained network with exits, each with its quality, expected cost and leak.

    evidence = gather(network, batches)                    # one pass over the validation split
    search_exits(evidence, Costs((4.1, 6.3, 9.0)))         # cheapest first; nothing is trained

A policy is *static* (one exit answers everything), *anytime* (each exit's answer is given on the way to the end), or
*dynamic*: an answer whose confidence reaches a threshold is taken, and all others go on (Kouris et al., ECCV 2022,
MESS). Of the two parties, the client sees an exit's answer and decides. So a dynamic policy tells the server one
bit at each exit, whether this input went on, and the client the logits of every exit that it asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepreshape.models.exits import MultiExitNetwork
from deepreshape.private.service.stop import confidence
from deepreshape.training import Segmentation, confusion, ious

__all__ = [
    "THRESHOLDS",
    "Configuration",
    "Costs",
    "Evidence",
    "cheapest_within",
    "gather",
    "lowest_threshold",
    "search_exits",
]

Real = NDArray[np.float64]

THRESHOLDS = (*(step / 20 for step in range(1, 20)), 0.975, 0.99, 0.999)
"""Confidences that a search tries."""


@dataclass(frozen=True)
class Configuration:
    """Some of a network's exits, and when they answer.

    Attributes:
        exits: stages after which there is an answer, rising; the last takes all that came so far.
        policy: ``"static"``, ``"anytime"`` or ``"dynamic"``.
        threshold: confidence from which an answer is taken, of a dynamic policy.
        quality: percent on the validation split.
        expected_cost: of one inference, by the shares, in the unit of the search.
        shares: of the validation inputs, by exit, those that end there.
        leaked_bits: what the server learns of one input, at most: a bit for each exit before the last.
    """

    exits: tuple[int, ...]
    policy: str
    threshold: float | None
    quality: float
    expected_cost: float
    shares: tuple[float, ...]
    leaked_bits: int

    @property
    def word(self) -> str:
        """What ``--exit`` takes to run it; empty for an anytime policy, which stops nowhere."""
        if self.policy == "static":
            return str(self.exits[0])
        if self.policy == "anytime":
            return ""
        return f"dynamic:{self.threshold:g}:{'.'.join(map(str, self.exits[:-1]))}"


@dataclass(frozen=True)
class Costs:
    """What exits cost, by point.

    Attributes:
        alone: the whole plain network of each.
        heads: the part of each that its head has, if an exit that goes on keeps what the trunk gave; without, it starts
            again, as two parties do.
    """

    alone: tuple[float, ...]
    heads: tuple[float, ...] | None = None

    def to_end_at(self, places: Sequence[int]) -> list[float]:
        """By exit, what an input costs that ends there, when the exits at ``places`` answer in turn."""
        if self.heads is None:
            return list(np.cumsum([self.alone[place] for place in places]))
        trunk = [self.alone[place] - self.heads[place] for place in places]
        return [a + b for a, b in zip(trunk, np.cumsum([self.heads[place] for place in places]), strict=True)]

    def expected(self, places: Sequence[int], shares: Sequence[float]) -> float:
        """The mean over inputs of which these shares end at each exit."""
        return float(np.dot(shares, self.to_end_at(places)))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What every exit answers to some labelled inputs.

    Attributes:
        points: stages after which there is an answer.
        confidence: float64, (points, N).
        right: by point and input, what the quality is made of: bool, (points, N); of maps, the confusion of classes,
            (points, N, classes, classes + 1).
        quality: top-1 or mIoU in percent, of the answers that are taken: a row of ``right`` for each input.
    """

    points: tuple[int, ...]
    confidence: Real
    right: NDArray[np.generic]
    quality: Callable[[NDArray[np.generic]], float]

    def of(self, places: Sequence[int], threshold: float) -> tuple[NDArray[np.intp], float]:
        """For each input, by which of the exits at ``places`` it ends, (N,); and the quality of these answers."""
        sure = self.confidence[list(places)] >= threshold
        sure[-1] = True
        ends = sure.argmax(0)
        return ends, self.quality(self.right[np.array(places)[ends], np.arange(sure.shape[1])])


@torch.no_grad()
def gather(network: MultiExitNetwork, batches: Iterable[tuple[Tensor, Tensor]]) -> Evidence:
    """The evidence of labelled inputs, by one pass over them.

    Args:
        network: with exits; it is put in evaluation mode.
        batches: normalised images (n, C, H, W), with their labels: (n,), or maps of them (n, H, W).
    """
    network.eval()
    sure: list[Real] = []
    right: list[NDArray[np.generic]] = []
    weight, classes = next(network.parameters()), network.architecture.classes
    for images, labels in batches:
        answers = [answer.double().cpu() for answer in network(images.to(weight))]
        sure.append(np.stack([confidence(each.numpy()) for each in answers]))
        if labels.dim() == 1:
            right.append(np.stack([(each.argmax(1) == labels.cpu()).numpy() for each in answers]))
        else:
            pairs = [list(zip(each.split(1), labels.cpu().split(1), strict=True)) for each in answers]
            right.append(np.stack([[confusion([pair], classes).numpy() for pair in each] for each in pairs]))
    quality = _top1 if right[0].ndim == 2 else _miou
    return Evidence(network.architecture.points, np.concatenate(sure, 1), np.concatenate(right, 1), quality)


def _top1(taken: NDArray[np.generic]) -> float:
    return 100 * float(taken.astype(np.float64).mean())


def _miou(taken: NDArray[np.generic]) -> float:
    return Segmentation.mean(ious(torch.from_numpy(taken.sum(0))))


def lowest_threshold(evidence: Evidence, points: Sequence[int], loss: float) -> float:
    """The lowest of :data:`THRESHOLDS` at which answers lose at most ``loss`` points against the last point's.

    Args:
        evidence: of validation inputs.
        points: that answer in turn.
        loss: in percent.
    """
    places = [evidence.points.index(point) for point in points]
    whole = evidence.of(places[-1:], 0.0)[1]
    good = (threshold for threshold in THRESHOLDS if evidence.of(places, threshold)[1] >= whole - loss)
    return next(good, THRESHOLDS[-1])


def search_exits(
    evidence: Evidence, costs: Costs, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[Configuration, ...]:
    """Every static configuration, the anytime one, and the dynamic ones that no other beats, cheapest first.

    Args:
        evidence: of validation inputs.
        costs: by point.
        thresholds: that dynamic policies try.
    """
    last = len(evidence.points) - 1
    static = [_static(evidence, costs, place) for place in range(last + 1)]
    everywhere = list(range(last + 1))
    anytime = Configuration(
        evidence.points,
        "anytime",
        None,
        static[-1].quality,
        round(float(costs.to_end_at(everywhere)[-1]), 6),
        (*(0.0 for _ in range(last)), 1.0),
        0,
    )
    tried = [*static, *_dynamic(evidence, costs, thresholds)]
    kept = [each for each in tried if each.policy == "static" or not any(_beats(other, each) for other in tried)]
    return tuple(sorted([*kept, anytime], key=lambda each: (each.expected_cost, -each.quality)))


def _static(evidence: Evidence, costs: Costs, place: int) -> Configuration:
    _, quality = evidence.of([place], 0.0)
    point = evidence.points[place]
    return Configuration((point,), "static", None, round(quality, 3), round(costs.alone[place], 6), (1.0,), 0)


def _dynamic(evidence: Evidence, costs: Costs, thresholds: Sequence[float]) -> Iterator[Configuration]:
    last = len(evidence.points) - 1
    for number in range(1, last + 1):
        for chosen in combinations(range(last), number):
            places = [*chosen, last]
            for threshold in thresholds:
                ends, quality = evidence.of(places, threshold)
                shares = np.bincount(ends, minlength=len(places)) / len(ends)
                yield Configuration(
                    tuple(evidence.points[place] for place in places),
                    "dynamic",
                    threshold,
                    round(quality, 3),
                    round(costs.expected(places, shares.tolist()), 6),
                    tuple(round(float(share), 4) for share in shares),
                    number,
                )


def _beats(one: Configuration, other: Configuration) -> bool:
    """Whether one configuration is as good in both ways, and better in one or without the leak."""
    if one.expected_cost > other.expected_cost or one.quality < other.quality:
        return False
    return (one.expected_cost, -one.quality, one.leaked_bits) < (
        other.expected_cost,
        -other.quality,
        other.leaked_bits,
    )


def cheapest_within(configurations: Sequence[Configuration], loss: float) -> Configuration:
    """The cheapest whose quality is at most ``loss`` points below the whole network's, of several the best one's."""
    whole = max(
        (each for each in configurations if each.policy == "static"), key=lambda each: (each.exits, each.quality)
    )
    return min(
        (each for each in configurations if each.quality >= whole.quality - loss),
        key=lambda each: (each.expected_cost, each.leaked_bits, -each.quality),
    )
