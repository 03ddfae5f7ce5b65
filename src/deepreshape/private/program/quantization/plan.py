"""Which values are accumulators, which of those share a fraction, and where values are shifted or raised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Filled,
    Flat,
    Layer,
    Pick,
    Pool,
    PublicAffine,
    Quadratic,
    Rectify,
    Signed,
    Squared,
    Stack,
    Sum,
    Zero,
)
from deepreshape.private.program.ops import INPUT

Real = NDArray[np.float64]


@dataclass(frozen=True)
class ShiftStep:
    """An accumulator brought back to rest without a ReLU."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class RaiseStep:
    """A value at rest brought to the fraction of the accumulators it is added to."""

    name: str
    inputs: tuple[str, ...]


AnyStep = Layer | ShiftStep | RaiseStep


class QuantizationPlan:
    """Which values are accumulators, which of those share a fraction, and where values are shifted or raised."""

    def __init__(self, layers: Sequence[Layer], image: bool) -> None:
        self.steps: dict[str, AnyStep] = {}
        self.origin: dict[str, str] = {INPUT: INPUT}
        """The layer whose range a value has: its own, or that of what it was shifted or raised from."""
        self.group: dict[str, str] = {}
        """For each accumulator, a member of those it shares its fraction with; see :meth:`find`."""
        self.image = {INPUT: image}
        self.ones: set[str] = set()
        """Values without fraction bits: signs, and what moves or adds them."""
        self.uses = Counter(name for layer in layers for name in layer.inputs)
        for layer in layers:
            self._place(layer)
        self.shifted = {
            self.find(step.inputs[0])
            for step in self.steps.values()
            if step.inputs[0] in self.group and (isinstance(step, ShiftStep) or _partly(step))
        }
        """Groups of which a member is shifted without a ReLU, which takes one bit more room."""
        self.whole = {name for name, step in self.steps.items() if self._is_whole(step)}
        """Accumulators of whole numbers, which only signs read."""
        self.thresholds: dict[str, float] = {}
        """By the name of what signs read: the largest absolute threshold."""
        for step in self.steps.values():
            if isinstance(step, Signed):
                self.thresholds[step.inputs[0]] = max(
                    magnitude(step.threshold), self.thresholds.get(step.inputs[0], 0.0)
                )
        self.squared = {step.inputs[0]: step for step in self.steps.values() if isinstance(step, Squared)}
        """By the name of what is squared; where several squares read it, that of the largest shift."""
        for step in self.steps.values():
            if isinstance(step, Squared) and magnitude(step.shift) > magnitude(self.squared[step.inputs[0]].shift):
                self.squared[step.inputs[0]] = step

    def _is_whole(self, step: AnyStep) -> bool:
        if not isinstance(step, Conv | Dense) or step.inputs[0] not in self.ones:
            return False
        readers = [other for other in self.steps.values() if step.name in other.inputs]
        whole = all(np.array_equal(part, np.rint(part)) for part in (step.weight, step.bias))
        return whole and bool(readers) and all(isinstance(reader, Signed) for reader in readers)

    def find(self, name: str) -> str:
        """The representative of an accumulator's group."""
        while self.group[name] != name:
            name = self.group[name]
        return name

    def _place(self, layer: Layer) -> None:
        inputs = layer.inputs
        match layer:
            case Conv() | Dense():
                inputs = (self._at_rest(inputs[0]),)
            case Pool():
                # a sum over a large window would take bits from the whole group, unless its division is in the weights
                before = self.steps.get(inputs[0])
                if not (isinstance(before, Conv) and self.uses[inputs[0]] == 1):
                    inputs = (self._at_rest(inputs[0]),)
            case Sum():
                inputs = self._alike(layer)
            case Quadratic():
                raise TypeError(f"{layer.name}: quadratics are to be carried as squares first")
            case Pick() | Stack():
                inputs = tuple(self._at_rest(name) for name in inputs)
            case PublicAffine():
                if multiplies(layer):
                    inputs = (self._at_rest(inputs[0]),)
            case Rectify() | Squared() | Signed() | Zero() | Filled() | Flat():
                pass
        self._append(replace(layer, inputs=inputs), layer.name)
        self.image[layer.name] = self.image[inputs[0]] and not isinstance(layer, Flat)
        if isinstance(layer, Pick):
            self.image[layer.name] = layer.index.ndim == 3
        if multiplies(layer):
            self.group[layer.name] = layer.name
        elif not isinstance(layer, Rectify | Squared | Signed) and inputs[0] in self.group:
            self.group[layer.name] = self.find(inputs[0])
        moves = isinstance(layer, Zero | Flat | Pick | Pool | Stack | Sum)
        if isinstance(layer, Signed) or (moves and layer.name not in self.group and self.ones.issuperset(inputs)):
            self.ones.add(layer.name)

    def _append(self, step: AnyStep, origin: str) -> str:
        self.steps[step.name] = step
        self.origin[step.name] = origin
        return step.name

    def _at_rest(self, name: str) -> str:
        if name not in self.group:
            return name
        shifted = f"{name}.truncate"
        if shifted not in self.steps:
            self._append(ShiftStep(shifted, (name,)), name)
            self.image[shifted] = self.image[name]
        return shifted

    def _alike(self, layer: Sum) -> tuple[str, ...]:
        """The inputs of a sum, brought to one fraction."""
        moving = [name for name in layer.inputs if name in self.group]
        if not moving:
            return layer.inputs if self.ones.issuperset(layer.inputs) else self._raised(layer)
        if not self.image[layer.inputs[0]]:
            return tuple(self._at_rest(name) for name in layer.inputs)
        first = self.find(moving[0])
        for name in moving[1:]:
            self.group[self.find(name)] = first
        inputs: list[str] = []
        for number, name in enumerate(layer.inputs):
            if name not in self.group:
                raised = self._append(RaiseStep(f"{layer.name}.raise{number}", (name,)), self.origin[name])
                self.image[raised] = True
                self.group[raised] = first
                name = raised
            inputs.append(name)
        return tuple(inputs)

    def _raised(self, layer: Sum) -> tuple[str, ...]:
        """The inputs of a sum of values at rest and of signs, these brought to rest."""
        inputs: list[str] = []
        for number, name in enumerate(layer.inputs):
            if name in self.ones:
                raised = self._append(RaiseStep(f"{layer.name}.raise{number}", (name,)), self.origin[name])
                self.image[raised] = self.image[name]
                name = raised
            inputs.append(name)
        return tuple(inputs)


def magnitude(values: Real) -> float:
    """The largest absolute value."""
    return float(np.abs(values).max())


def multiplies(step: AnyStep) -> TypeGuard[Conv | Dense | PublicAffine]:
    """Whether a layer gives its value more fraction bits."""
    return isinstance(step, Conv | Dense) or (isinstance(step, PublicAffine) and abs(step.factor) != 1)


def _partly(step: AnyStep) -> bool:
    return isinstance(step, Rectify) and step.mask is not None and not step.mask.all()
