"""From a torch network to the integer program: trace, simplify, calibrate, and choose formats.

The trace is that of ``torch.export`` (``lowering``). ``simplify.py`` folds what it comes to, and says what is fused and
what is not; ``quantize.py`` chooses formats and makes the integers. What is folded is run beside the network itself
before anything is made of it, and a difference is an error.

What cannot be lowered is refused with the layer's path; :func:`problems` lists all of it at once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepreshape.nn.polynomial import polynomial
from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Flat,
    Graph,
    Layer,
    Pick,
    Pool,
    PublicAffine,
    Quadratic,
    Rectify,
    Squared,
    Stack,
    Sum,
    Zero,
)
from deepreshape.private.program.lowering.activations import ACTIVATIONS
from deepreshape.private.program.lowering.arithmetic import ARITHMETIC
from deepreshape.private.program.lowering.moves import MOVES
from deepreshape.private.program.lowering.pools import POOLS
from deepreshape.private.program.lowering.trace import Problem, Trace, evaluating, trace
from deepreshape.private.program.ops import INPUT, ProgramError
from deepreshape.private.program.quantize import MARGIN, Lowered, Modulus, quantize
from deepreshape.private.program.scales import carry_scales
from deepreshape.private.program.simplify import simplify

__all__ = ["LOWERED", "OPERATORS", "lower", "problems", "real_layers", "unsupported"]

OPERATORS = {**ARITHMETIC, **ACTIVATIONS, **POOLS, **MOVES}
"""What can be lowered: a handler for each operator of ATen."""

LOWERED = (
    "convolutions, transposed ones and linear layers; batch norm; ReLU and what is a sum of ReLUs (ReLU6, clamp, leaky "
    "ReLU, PReLU, hard sigmoid); max and average pools; sums, differences and products with constants; what moves, "
    "splits, joins, pads or repeats elements; upsampling"
)
"""What can be lowered, in words."""

_CHUNK = 32
CALIBRATION_IMAGES = 256
"""Of a data set's training split."""


class Known(Protocol):
    """A data set (:class:`deepreshape.data.Dataset`), as far as formats and the client's facts are taken from it."""

    @property
    def train(self) -> Any: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    def normalize(self, images: Tensor) -> Tensor: ...


def lower(
    model: nn.Module,
    calibration: NDArray[np.float32] | Known,
    *,
    modulus: Modulus | None = None,
    fraction: int | None = None,
    margin: float = MARGIN,
) -> Lowered:
    """The integer program of ``model`` in evaluation mode, and how its formats were found.

    Args:
        model: maps (N, C, H, W) to logits (N, classes); it is left as it was.
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
        facts = {name: getattr(calibration, name) for name in ("class_names", "mean", "std")} | {"resize": "crop"}
        calibration = calibration.normalize(calibration.train.images[:CALIBRATION_IMAGES]).contiguous().numpy()
    if calibration.ndim != 4 or not len(calibration) or not np.isfinite(calibration).all():
        raise ValueError(f"calibration takes finite inputs of shape (N, C, H, W), not {calibration.shape}")
    shape = tuple(int(side) for side in calibration.shape[1:])
    traced = _traced(model, shape)
    graph = _simplified(traced)
    graph.layers = [*carry_scales(cast(list[Layer], graph.layers), graph.outputs)]
    layers = cast(list[Layer], graph.layers)
    ranges = _observe(model, graph, traced, calibration)
    return replace(
        quantize(layers, shape, ranges, modulus=modulus, fraction=fraction, margin=margin, outputs=graph.outputs),
        facts=facts,
    )


def real_layers(model: nn.Module, input_shape: Sequence[int]) -> list[Layer]:
    """The layers of ``model`` with real weights, folded and fused; the last gives its output.

    Args:
        model: as :func:`lower` takes it; it is left as it was.
        input_shape: of one input, (C, H, W).

    Raises:
        ProgramError: if the network cannot be lowered, naming the layer.
    """
    return cast(list[Layer], _simplified(_traced(model, input_shape)).layers)


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
    return trace(model, shape, OPERATORS)


def _simplified(traced: Trace) -> Graph:
    """The folded layers of a trace.

    Raises:
        ProgramError: if it has problems.
    """
    if traced.problems:
        known = f"; what can be lowered: {LOWERED}" if traced.shapes else ""
        raise ProgramError("; ".join(map(str, traced.problems)) + known)
    graph = traced.graph()
    simplify(graph)
    return graph


def _observe(model: nn.Module, graph: Graph, traced: Trace, calibration: NDArray[np.float32]) -> dict[str, float]:
    """The largest absolute value of each layer and of the input, from a run in float64 that must agree with ``model``.

    Raises:
        ProgramError: if it does not.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    if parameter.dtype in (torch.bfloat16, torch.float16):
        model = copy.deepcopy(model).float()
        parameter = parameter.float()
    ranges: dict[str, float] = {}
    for start in range(0, len(calibration), _CHUNK):
        chunk = torch.as_tensor(np.ascontiguousarray(calibration[start : start + _CHUNK]))
        results = _run(graph, chunk.to(torch.float64), ranges)
        with evaluating(model):
            wanted = [leaf for leaf in tree_leaves(model(chunk.to(parameter))) if isinstance(leaf, Tensor)]
        for name, result, theirs in zip(graph.outputs, results, wanted, strict=True):
            finish = traced.finishing.get(name)
            ours, theirs = (finish(result) if finish else result), theirs.cpu().to(torch.float64)
            apart = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
            if not apart <= 1e-3 * (1 + float(theirs.abs().max())):
                raise ProgramError(
                    f"the traced network gives results {apart:.3g} off the network's own; what it computes may depend "
                    "on its input, or on the other inputs of a batch, in a way that a trace does not see"
                )
    return ranges


def _run(graph: Graph, x: Tensor, ranges: dict[str, float]) -> list[Tensor]:
    """The outputs for a batch, float64; ``ranges`` grows to the largest values seen."""
    values, left = {INPUT: x}, graph.uses()
    ranges[INPUT] = max(ranges.get(INPUT, 0.0), float(x.abs().max()))
    for layer in cast(list[Layer], graph.layers):
        values[layer.name] = result = _apply(layer, [values[name] for name in layer.inputs])
        ranges[layer.name] = max(ranges.get(layer.name, 0.0), float(result.abs().max()))
        for name in layer.inputs:
            left[name] -= 1
            if not left[name]:
                del values[name]
    return [values[name] for name in graph.outputs]


def _apply(layer: Layer, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    match layer:
        case Conv():
            weight, bias = torch.as_tensor(layer.weight), torch.as_tensor(layer.bias)
            return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, 1, layer.groups)
        case Dense():
            return nn.functional.linear(x, torch.as_tensor(layer.weight), torch.as_tensor(layer.bias))
        case Sum():
            return torch.stack(inputs).sum(0)
        case Pool():
            return nn.functional.avg_pool2d(x, layer.kernel, layer.stride, divisor_override=1)
        case Rectify():
            return x.relu() if layer.mask is None else torch.where(torch.as_tensor(layer.mask), x.relu(), x)
        case Quadratic():
            coefficients = torch.as_tensor(layer.coefficients)
            if layer.mask is None:
                return polynomial(x, coefficients)
            return torch.where(torch.as_tensor(layer.mask), x.relu(), polynomial(x, coefficients))
        case Squared():
            shift, constant = (
                torch.as_tensor(amount).reshape(-1, *[1] * (x.dim() - 2)) for amount in (layer.shift, layer.constant)
            )
            square = (x + shift).square() + constant
            return square if layer.mask is None else torch.where(torch.as_tensor(layer.mask), x.relu(), square)
        case Zero():
            return torch.where(torch.as_tensor(layer.keep), x, torch.zeros((), dtype=x.dtype))
        case Flat():
            return x.flatten(1)
        case PublicAffine():
            return x * layer.factor + layer.offset
        case Pick():
            index = torch.as_tensor(layer.index, dtype=torch.int64)
            return torch.where(index < 0, 0.0, x.flatten(1)[:, index.clamp_min(0)])
        case Stack():
            return torch.cat(inputs, 1)
