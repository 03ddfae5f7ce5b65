"""Where inferences of a network with exits end: the words for it, and how sure an answer has to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stop", "confidence"]

SURE, NEAR_EDGE = 0.9, 0.25
"""Probability from which a pixel of a map is sure, and the weight of pixels next to one of another predicted class."""


def confidence(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """How sure answers are, from 0 to 1, (N,).

    Of logits (N, classes), the largest probability. Of maps of them (N, classes, h, w), the share of pixels whose
    largest probability is :data:`SURE`; pixels next to a predicted edge, where every network is unsure, count
    :data:`NEAR_EDGE` (MESS's edge-aware confidence; its threshold and weight are not public, these are ours).
    """
    apart = (logits - logits.max(1, keepdims=True)).astype(np.float64)
    largest = 1 / np.exp(apart).sum(1)
    if logits.ndim == 2:
        return largest
    weights = np.where(_near_edges(logits.argmax(1)), NEAR_EDGE, 1.0)
    return ((largest >= SURE) * weights).sum((1, 2)) / weights.sum((1, 2))


def _near_edges(classes: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which pixels of maps (N, h, w) have another class among the eight around them."""
    height, width = classes.shape[1:]
    padded = np.pad(classes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.any([each != classes for each in around], axis=0)


@dataclass(frozen=True)
class Stop:
    """Where an inference ends, as a word says it: ``2``, ``dynamic``, ``dynamic:0.8`` or ``dynamic:0.8:1.2``.

    Attributes:
        static: the stage of the one exit that answers everything; None for a dynamic policy.
        threshold: confidence from which an answer is taken; None leaves it to validation inputs.
        exits: the exits that are asked before the end; all of them if empty.
    """

    static: int | None = None
    threshold: float | None = None
    exits: tuple[int, ...] = ()

    @classmethod
    def parse(cls, word: str) -> Stop:
        """What a word means.

        Raises:
            ValueError: if it means nothing.
        """
        if word.isdecimal():
            return cls(int(word))
        kind, *rest = word.split(":")
        try:
            threshold = float(rest[0]) if rest else None
            exits = tuple(int(point) for point in rest[1].split(".")) if len(rest) > 1 else ()
        except ValueError:
            kind, threshold, exits = "", None, ()
        if kind != "dynamic" or len(rest) > 2 or not 0 <= (threshold or 0.0) <= 1:
            raise ValueError(
                f"--exit {word}: give the stage of an exit, such as 1, or dynamic, dynamic:0.8 (the confidence that "
                "ends, 0 to 1) or dynamic:0.8:1.2 (and the exits that are asked)"
            )
        return cls(None, threshold, exits)

    def points(self, known: tuple[int, ...]) -> tuple[int, ...]:
        """The points that answer in turn, of those that a network has, the end last.

        Raises:
            ValueError: if one is asked for that the network does not have.
        """
        wanted = self.exits or known[:-1]
        if list(wanted) != sorted(set(wanted)) or not set(wanted) <= set(known[:-1]):
            listed, all_of = ".".join(map(str, wanted)), ".".join(map(str, known[:-1]))
            raise ValueError(f"--exit dynamic with exits {listed}: the network has exits {all_of}; name some, rising")
        return (*wanted, known[-1])
