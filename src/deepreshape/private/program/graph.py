"""The layers of a network with real weights, as a trace gives them and as they become integers.

:class:`Graph` holds them while ``folding`` folds them into one another; ``quantize.py`` makes integers of what is
left. A layer's value has the layer's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.program.ops import Shape

__all__ = [
    "Affine",
    "Conv",
    "Dense",
    "Filled",
    "Flat",
    "Graph",
    "Join",
    "Layer",
    "Part",
    "Pick",
    "Pool",
    "PublicAffine",
    "Quadratic",
    "Rectify",
    "Signed",
    "Squared",
    "Stack",
    "Sum",
    "Traced",
    "Zero",
]

Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution with real weights (out, in / groups, kernel, kernel) and bias (out,); batch norm is inside.

    With ``columns`` (H', W') its value is (out, P), the P pixels where that is true.
    """

    name: str
    inputs: tuple[str, ...]
    weight: Real
    bias: Real
    stride: int = 1
    padding: int = 0
    groups: int = 1
    columns: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer with real weights (out, in) and bias (out,)."""

    name: str
    inputs: tuple[str, ...]
    weight: Real
    bias: Real


@dataclass(frozen=True)
class Sum:
    """A sum of values of one shape."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """Sums (not means) over windows without padding."""

    name: str
    inputs: tuple[str, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Rectify:
    """A ReLU where ``mask`` (C, H, W) is true, the identity elsewhere; None is true everywhere."""

    name: str
    inputs: tuple[str, ...]
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Quadratic:
    """c0 + c1 x + c2 x^2 by channel, ``coefficients`` (C, 3); a ReLU where ``mask`` (C, H, W) is true."""

    name: str
    inputs: tuple[str, ...]
    coefficients: Real
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Squared:
    """(x + shift)^2 + constant by channel, both (C,); a ReLU where ``mask`` (C, H, W) is true."""

    name: str
    inputs: tuple[str, ...]
    shift: Real
    constant: Real
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Signed:
    """+1 where the value is above ``threshold`` (C,), by channel, -1 elsewhere."""

    name: str
    inputs: tuple[str, ...]
    threshold: Real


@dataclass(frozen=True, eq=False)
class Zero:
    """The value where ``keep`` (C, H, W) is true, 0 elsewhere."""

    name: str
    inputs: tuple[str, ...]
    keep: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Filled:
    """The pixels of (C, P) where ``columns`` (H, W) is true; ``constants`` (C,) elsewhere."""

    name: str
    inputs: tuple[str, ...]
    constants: Real
    columns: NDArray[np.bool_]


@dataclass(frozen=True)
class Flat:
    """(C, H, W) as one axis."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class PublicAffine:
    """factor * x + offset, of which both parties know factor and offset: they are in the network's code."""

    name: str
    inputs: tuple[str, ...]
    factor: float
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Pick:
    """Chosen elements: ``index`` is int32 of the result's shape, places of the input in C order; -1 is a zero."""

    name: str
    inputs: tuple[str, ...]
    index: NDArray[np.int32]

    def rows(self, source: Shape) -> NDArray[np.int64]:
        """For each element of the result, in the result's rows (R, rest), the row of the input that it reads, or -1."""
        each = int(np.prod(source[1:], dtype=np.int64))
        flat = self.index.reshape(len(self.index), -1).astype(np.int64)
        return np.where(flat < 0, -1, flat // each)


@dataclass(frozen=True)
class Stack:
    """Values behind one another along their first axis."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Affine:
    """scale * x + shift for each row of the first axis. ``public``: they are one number each, of the network's code."""

    name: str
    inputs: tuple[str, ...]
    scale: Real
    shift: Real
    public: bool = False


@dataclass(frozen=True)
class Part:
    """Channels ``start`` to ``stop``."""

    name: str
    inputs: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Join:
    """Channels behind one another; as a trace gives it, before it is known how."""

    name: str
    inputs: tuple[str, ...]


Layer = (
    Conv
    | Dense
    | Sum
    | Pool
    | Rectify
    | Quadratic
    | Squared
    | Signed
    | Zero
    | Filled
    | Flat
    | PublicAffine
    | Pick
    | Stack
)
Traced = Layer | Affine | Part | Join
"""What a trace gives; :func:`~deepreshape.private.program.folding.simplify.simplify` leaves only the first kind."""


class Graph:
    """Layers in an order in which they can run, while they are changed.

    Attributes:
        layers: each after those that it reads.
        outputs: names of the values that the network gives.
        shapes: of each value for one input, by name, and of ``"input"``.
    """

    def __init__(self, layers: Sequence[Traced], outputs: Sequence[str], shapes: Mapping[str, Shape]) -> None:
        self.layers = [*layers]
        self.outputs = [*outputs]
        self.shapes = dict(shapes)

    def uses(self) -> Counter[str]:
        """How often each value is read, as an output too."""
        return Counter([*self.outputs, *(name for layer in self.layers for name in layer.inputs)])

    def place(self, name: str) -> int:
        """Where in the order the layer of that name stands."""
        return next(place for place, layer in enumerate(self.layers) if layer.name == name)

    def named(self, name: str) -> Traced | None:
        """The layer of that name; None for the input."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def readers(self, name: str) -> list[int]:
        """Where in the order the layers stand that read a value."""
        return [place for place, layer in enumerate(self.layers) if name in layer.inputs]

    def redirect(self, old: str, new: str, but: str = "") -> None:
        """Let those who read ``old`` read ``new``, but for the layer called ``but``."""
        for place, layer in enumerate(self.layers):
            if old in layer.inputs and layer.name not in (new, but):
                self.layers[place] = replace(layer, inputs=tuple(new if name == old else name for name in layer.inputs))
        self.outputs = [new if name == old else name for name in self.outputs]

    def drop(self, layer: Traced) -> None:
        """Remove a layer of one input; its readers read what it read."""
        del self.layers[self.place(layer.name)]
        self.redirect(layer.name, layer.inputs[0])

    def remove_unread(self) -> None:
        """Remove what no output depends on."""
        needed, kept = {*self.outputs}, list[Traced]()
        for layer in reversed(self.layers):
            if layer.name in needed:
                needed.update(layer.inputs)
                kept.append(layer)
        self.layers = kept[::-1]

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it if there is such a value."""
        known, unique, number = {*self.shapes, *(layer.name for layer in self.layers)}, name, 1
        while unique in known:
            number += 1
            unique = f"{name}.{number}"
        return unique
