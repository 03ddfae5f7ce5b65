"""What every operation of the integer program says, and the words for its values, shapes and weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring, Words

Shape = tuple[int, ...]
Integers = NDArray[np.int64]
Exact = NDArray[np.int64] | NDArray[np.object_]
"""Integers of any size: int64 where they fit, else Python's."""

INPUT = "input"
LARGEST = 1 << 31
"""No integer of an operation may be larger."""
MOST_ELEMENTS = 1 << 24
"""Of one value: the largest of a ResNet-50 on ImageNet has 2^20."""
MOST_WEIGHTS = 1 << 28
"""Of one layer."""


class ProgramError(ValueError):
    """A program that makes no sense, or cannot be run safely; the text names the layer and what would help."""


class Value(NamedTuple):
    """The public facts of a value: its shape, and how many of its bits stand behind the binary point."""

    shape: Shape
    fraction: int

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """Weights and bias of one operation, int64; the server's secret."""

    weight: Integers
    bias: Integers

    @cached_property
    def reach(self) -> int:
        """The largest sum of the absolute weights of one output."""
        return int(np.abs(self.weight.reshape(len(self.weight), -1)).sum(1).max())


class Rounding(Protocol):
    """How an interpreter rounds: what may depend on the parties' shares."""

    def rounded(self, op: Op, x: Integers, exact: Exact) -> Exact:
        """What the parties make of ``x`` by their protocols for ``op``; ``exact`` where no share decides anything."""
        ...


@dataclass(frozen=True)
class Op(ABC):
    """One operation: it makes the value ``name`` from the values ``inputs``."""

    name: str
    inputs: tuple[str, ...]

    kind: ClassVar[str]
    """What it is called in a program's bytes."""
    several: ClassVar[bool] = False
    """Whether it takes two or more inputs; all others take one."""

    @abstractmethod
    def value(self, *sources: Value) -> Value:
        """The value made from ``sources``.

        Raises:
            ProgramError: if they do not fit.
        """

    @abstractmethod
    def worst(self, inputs: Sequence[int], weights: Weights | None) -> int:
        """The largest absolute value of the result, from those of the inputs.

        Raises:
            ProgramError: if weights are needed and there are none.
        """

    @abstractmethod
    def interpret(self, inputs: Sequence[Integers], weights: Weights | None, rounding: Rounding) -> Exact:
        """The result for a batch of inputs, (N, *shape) each."""

    def reach(self, bound: int, weights: Weights | None) -> int:
        """The largest absolute value that a protocol is given for inputs up to ``bound``."""
        return bound

    def require(self, holds: bool, otherwise: str) -> None:
        """Raise a ``ProgramError`` that names this operation unless ``holds``."""
        if not holds:
            raise ProgramError(f"{self.name}: {otherwise}")


@dataclass(frozen=True)
class Local(Op):
    """What each party does on its own shares, without a word to the other: a linear map with public coefficients."""

    @abstractmethod
    def on_share(self, shares: Sequence[Words], modulus: Ring | Field, *, server: bool) -> Words:
        """A party's share of the result. ``server``: whether it is the party that adds constants."""


@dataclass(frozen=True)
class Secret(Op):
    """What has weights of the server's, in :attr:`Program.weights`."""

    holds: ClassVar[str] = "weights"
    """What they are called in errors."""

    @abstractmethod
    def weight_shape(self, source: Value) -> Shape:
        """Shape of the weights for an input like ``source``; there is a bias for each of its rows."""

    def secret(self, weights: Weights | None) -> Weights:
        """The weights.

        Raises:
            ProgramError: if there are none: the program is public.
        """
        if weights is None:
            raise ProgramError(f"{self.name}: a public program has no {self.holds} to run with")
        return weights


def roomy(x: Integers, terms: int) -> Exact:
    """``x``, as Python integers if a sum of that many might leave int64."""
    return x if terms * max(int(np.abs(x).max()), 1) < 1 << 63 else x.astype(np.object_)
