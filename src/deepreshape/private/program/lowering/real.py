"""The layers of a network run in float64, beside the network itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepreshape.nn.polynomial import polynomial
from deepreshape.private.program import interpret
from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Filled,
    Flat,
    Graph,
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
from deepreshape.private.program.lowering.trace import evaluating
from deepreshape.private.program.ops import INPUT, Integers, ProgramError
from deepreshape.private.program.program import Program, from_fixed, to_fixed

__all__ = ["largest_rows", "observed_rows", "precision_losses", "run_layers"]

Finishing = Mapping[str, Callable[[Tensor], Tensor]]
CHUNK = 32
CLOSE = 1e-3
"""The most that results may be off, for each unit of the largest result: rounding, in the network's own float32."""


def observed_rows(
    model: nn.Module, graph: Graph, finishing: Finishing, calibration: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """The largest absolute value in each row (along the first axis) of each layer's value and of the input.

    Args:
        model: the network of which the graph was made.
        graph: only ``Layer`` in it.
        finishing: what the network does with its outputs, by name, that the graph leaves out.
        calibration: inputs, (N, C, H, W).

    Raises:
        ProgramError: if the layers do not compute what ``model`` does on these inputs.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    if parameter.dtype in (torch.bfloat16, torch.float16):
        model = copy.deepcopy(model).float()
        parameter = parameter.float()
    if any(isinstance(layer, Signed) for layer in graph.layers):
        # in float32 some values fall on the other side of a threshold
        model = copy.deepcopy(model).double()
        parameter = parameter.double()
    rows: dict[str, NDArray[np.float64]] = {}
    for start in range(0, len(calibration), CHUNK):
        chunk = torch.as_tensor(np.ascontiguousarray(calibration[start : start + CHUNK]))
        results = run_layers(graph, chunk.to(torch.float64), partial(_note, rows))
        with evaluating(model):
            wanted = [leaf for leaf in tree_leaves(model(chunk.to(parameter))) if isinstance(leaf, Tensor)]
        for name, result, theirs in zip(graph.outputs, results, wanted, strict=True):
            ours, theirs = finishing.get(name, lambda same: same)(result), theirs.cpu().to(torch.float64)
            apart = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
            if not apart <= CLOSE * float(theirs.abs().max()) + 1e-6:
                raise ProgramError(
                    f"the traced network gives results {apart:.3g} off the network's own; what it computes may depend "
                    "on its input, or on the other inputs of a batch, in a way that a trace does not see"
                )
    return rows


def largest_rows(graph: Graph, calibration: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """What :func:`observed_rows` gives, of a graph that has been compared with its network before."""
    rows: dict[str, NDArray[np.float64]] = {}
    for start in range(0, len(calibration), CHUNK):
        chunk = torch.as_tensor(np.ascontiguousarray(calibration[start : start + CHUNK]))
        run_layers(graph, chunk.to(torch.float64), partial(_note, rows))
    return rows


def _note(rows: dict[str, NDArray[np.float64]], name: str, value: Tensor) -> None:
    """Take the largest absolute value of each row of a batch into ``rows``."""
    largest = value.abs().transpose(0, 1).flatten(1).amax(1).numpy()
    rows[name] = np.maximum(rows[name], largest) if name in rows else largest


def run_layers(graph: Graph, x: Tensor, observe: Callable[[str, Tensor], None] | None = None) -> list[Tensor]:
    """The outputs for a batch, float64; ``observe`` is shown every value by name, the input's too."""
    values, left = {INPUT: x}, graph.uses()
    if observe:
        observe(INPUT, x)
    for layer in cast(list[Layer], graph.layers):
        values[layer.name] = _apply(layer, [values[name] for name in layer.inputs])
        if observe:
            observe(layer.name, values[layer.name])
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
            whole = nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, 1, layer.groups)
            return whole if layer.columns is None else whole[:, :, torch.as_tensor(layer.columns)]
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
        case Signed():
            above = x > torch.as_tensor(layer.threshold).reshape(-1, *[1] * (x.dim() - 2))
            return torch.where(above, 1.0, -1.0).to(x.dtype)
        case Zero():
            return torch.where(torch.as_tensor(layer.keep), x, torch.zeros((), dtype=x.dtype))
        case Filled():
            result = torch.as_tensor(layer.constants)[:, None, None].repeat(len(x), 1, *layer.columns.shape)
            result[:, :, torch.as_tensor(layer.columns)] = x
            return result
        case Flat():
            return x.flatten(1)
        case PublicAffine():
            return x * layer.factor + layer.offset
        case Pick():
            index = torch.as_tensor(layer.index, dtype=torch.int64)
            return torch.where(index < 0, 0.0, x.flatten(1)[:, index.clamp_min(0)])
        case Stack():
            return torch.cat(inputs, 1)


OFF = 0.05
"""Of the largest output; what a program is off by more than this on its own calibration inputs is said."""


def precision_losses(program: Program, graph: Graph, inputs: NDArray[np.float32]) -> tuple[str, ...]:
    """A line for each output of a program that is far from the layers it was made of, and where most of that arises."""
    real: dict[str, NDArray[np.float64]] = {}
    wrong: dict[str, float] = {}
    makers = {op.name: op for op in program.ops}

    def compare(name: str, integers: Integers) -> None:
        if name not in real:  # a value in another format
            real[name] = real[makers[name].inputs[0]]
        value = program.values[name]
        apart = np.abs(from_fixed(integers, value.fraction) - real[name]).max()
        wrong[name] = float(apart / max(np.abs(real[name]).max(), 2.0**-60))

    run_layers(graph, torch.as_tensor(inputs).double(), lambda name, value: real.update({name: value.numpy()}))
    try:
        interpret.run(program, to_fixed(inputs, program.input_fraction), observe=compare)
    except OverflowError:  # says so itself, when it is run
        return ()
    known = {INPUT: wrong[INPUT]}  # of values at rest, which have the fewest bits; accumulators are not blamed
    for op in program.ops:
        resting = program.values[op.name].fraction == program.input_fraction or op.name in program.outputs
        known[op.name] = wrong[op.name] if resting else max(known[source] for source in op.inputs)
    added = {op.name: known[op.name] - max(known[source] for source in op.inputs) for op in program.ops}
    name = max(added, key=lambda name: added[name])
    largest, fraction = float(np.abs(real[name]).max()), program.values[name].fraction
    return tuple(
        f"{output} is {wrong[output]:.0%} of its largest value off with these formats, most of which arises at {name}: "
        f"values reach {largest:.3g}, {largest * 2**fraction:.0f} units of 2^-{fraction}; use more fraction bits, a "
        "wider ring, or weights of one size in the layers around it"
        for output in program.outputs
        if wrong[output] > OFF
    )
