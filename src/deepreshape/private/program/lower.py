"""From a torch network to the integer program: trace, simplify, calibrate, and choose formats.

The trace is that of ``torch.export`` (``lowering``). ``folding`` folds what it comes to, and says what is fused and
what is not; ``quantize.py`` chooses formats and makes the integers. What is folded is run beside the network itself
before anything is made of it, and a difference is an error.

What cannot be lowered is refused with the layer's path; :func:`problems` lists all of it at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deepreshape.models.react import fuse_thresholds
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.program.folding.equalization import equalized
from deepreshape.private.program.folding.simplify import simplify
from deepreshape.private.program.graph import Graph, Layer
from deepreshape.private.program.lowering.activations import ACTIVATIONS
from deepreshape.private.program.lowering.arithmetic import ARITHMETIC
from deepreshape.private.program.lowering.moves import MOVES
from deepreshape.private.program.lowering.pools import POOLS
from deepreshape.private.program.lowering.real import largest_rows, observed_rows, precision_losses
from deepreshape.private.program.lowering.trace import Problem, Trace, UnsupportedNetworkError, trace
from deepreshape.private.program.one_bit import make_exact
from deepreshape.private.program.ops import ProgramError
from deepreshape.private.program.quantize import MARGIN, Lowered, quantize
from deepreshape.private.program.scales import carry_scales

__all__ = ["LOWERED", "OPERATORS", "lower", "problems", "real_layers", "unsupported"]

OPERATORS = {**ARITHMETIC, **ACTIVATIONS, **POOLS, **MOVES}
"""What can be lowered: a handler for each operator of ATen."""

LOWERED = (
    "convolutions, transposed ones and linear layers; batch norm; ReLU and what is a sum of ReLUs (ReLU6, clamp, leaky "
    "ReLU, PReLU, hard sigmoid); max and average pools; sums, differences and products with constants; squares, and "
    "products of two values; what moves, splits, joins, pads or repeats elements; upsampling"
)
"""What can be lowered, in words."""

CALIBRATION_IMAGES = 256
"""Of a data set's training split."""
PROBED = 2
"""Of the calibration inputs, those on which the program is compared with its layers."""


class Known(Protocol):
    """A data set (:class:`deepreshape.data.Dataset`), as far as formats and the client's facts are taken from it."""

    @property
    def train(self) -> Any: ...
    @property
    def facts(self) -> dict[str, Any]: ...
    def normalize(self, images: Tensor) -> Tensor: ...


def lower(
    model: nn.Module,
    calibration: NDArray[np.float32] | Known,
    *,
    modulus: Ring | Field | None = None,
    fraction: int | None = None,
    margin: float = MARGIN,
) -> Lowered:
    """The integer program of ``model`` in evaluation mode, and how its formats were found.

    Args:
        model: maps (N, C, H, W) to logits (N, classes), or to maps of them; it is left as it was.
        calibration: a data set, of which the first training images are taken; or real inputs as the network gets them,
            normalised, float32 (N, C, H, W), a hundred or more.
        modulus: where the integers live; by default the narrowest ring that is wide enough.
        fraction: fraction bits of activations; chosen by default.
        margin: how many times larger than in calibration a value may become before it overflows.

    Returns:
        The program with its formats; its text says how far they were proven and how far they rest on calibration.

    Raises:
        ValueError: if the calibration set does not fit the network.
        ProgramError: if the network cannot be lowered or does not fit ``modulus``, naming the layer.
    """
    facts: dict[str, Any] = {}
    if not isinstance(calibration, np.ndarray):
        facts = calibration.facts
        calibration = calibration.normalize(calibration.train.images[:CALIBRATION_IMAGES]).contiguous().numpy()
    if calibration.ndim != 4 or not len(calibration) or not np.isfinite(calibration).all():
        raise ValueError(f"calibration takes finite inputs of shape (N, C, H, W), not {calibration.shape}")
    shape = tuple(int(side) for side in calibration.shape[1:])
    traced = _traced(model, shape)
    graph = _simplified(traced)
    graph.layers[:] = carry_scales(cast(list[Layer], graph.layers), graph.outputs)
    rows = observed_rows(model, graph, traced.finishing, calibration)
    if make_exact(graph):
        rows = largest_rows(graph, calibration)

    def formatted(these: Graph, seen: Mapping[str, NDArray[np.float64]]) -> Lowered:
        ranges = {name: float(largest.max()) for name, largest in seen.items()}
        layers = cast(list[Layer], these.layers)
        return quantize(layers, shape, ranges, modulus=modulus, fraction=fraction, margin=margin, outputs=graph.outputs)

    lowered = formatted(graph, rows)
    even = equalized(graph, rows)
    if even is not None:
        with suppress(ProgramError):  # then the formats are taken that there are
            if (level := formatted(*even)).error.max() < lowered.error.max() / 2:
                graph, lowered = even[0], level
    lowered = replace(lowered, facts=facts, losses=precision_losses(lowered.program, graph, calibration[:PROBED]))
    if lowered.losses:
        warnings.warn(lowered.losses[0], stacklevel=2)
    return lowered


def real_layers(model: nn.Module, input_shape: Sequence[int]) -> list[Layer]:
    """The layers of ``model`` with real weights, folded and fused; the last gives its output, of several the first.

    Args:
        model: as :func:`lower` takes it; it is left as it was.
        input_shape: of one input, (C, H, W).

    Raises:
        ProgramError: if the network cannot be lowered, naming the layer.
    """
    graph = _simplified(_traced(model, input_shape))
    layers: list[Layer] = []
    needed = {graph.outputs[0]}
    for layer in reversed(cast(list[Layer], graph.layers)):
        if layer.name in needed:
            needed.update(layer.inputs)
            layers.append(layer)
    return layers[::-1]


def problems(model: nn.Module, input_shape: Sequence[int]) -> tuple[Problem, ...]:
    """Everything in ``model`` that cannot be lowered; empty if it can be.

    Args:
        model: needs no training for this; it is left as it was.
        input_shape: of one input, (C, H, W).
    """
    return tuple(_traced(model, input_shape).problems)


def unsupported(model: nn.Module, input_shape: Sequence[int]) -> tuple[str, ...]:
    """The :func:`problems` of a network, a line each, with the layer's path."""
    return tuple(map(str, problems(model, input_shape)))


def _traced(model: nn.Module, shape: Sequence[int]) -> Trace:
    return trace(fuse_thresholds(model), shape, OPERATORS)


def _simplified(traced: Trace) -> Graph:
    """The folded layers of a trace.

    Raises:
        UnsupportedNetworkError: if it has problems.
    """
    if traced.problems:
        known = f"; what can be lowered: {LOWERED}" if traced.shapes else ""
        raise UnsupportedNetworkError(traced.problems, known)
    graph = traced.graph()
    simplify(graph)
    return graph
