"""From a torch network to the integer program: trace, simplify, calibrate, and choose formats.

The trace is that of ``torch.export``. ``layers.py`` folds what it comes to, and says what is fused and what is not;
``fixed.py`` chooses formats and makes the integers. A padded average pool that counts its padding is lowered as a
depthwise convolution.

What cannot be lowered is refused with the layer's path; :func:`unsupported` lists all of it at once.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from math import prod
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from deepreshape.nn.herpn import quadratic
from deepreshape.nn.polynomial import polynomial
from deepreshape.private.program.graph import (
    Affine,
    Conv,
    Dense,
    Flat,
    Join,
    Layer,
    Part,
    Pool,
    Quadratic,
    Rectify,
    Squared,
    Sum,
    Traced,
    Zero,
    simplify,
)
from deepreshape.private.program.ops import INPUT, ProgramError
from deepreshape.private.program.program import NAME
from deepreshape.private.program.quantize import MARGIN, Lowered, Modulus, quantize
from deepreshape.private.program.scales import carry_scales

__all__ = ["LOWERED", "lower", "real_layers", "unsupported"]

LOWERED = (
    "convolutions (square, undilated), linear layers, batch norm, ReLU (masked and reused ones too), average pools, "
    "adds, flatten, and split and concatenate around convolutions"
)
"""What can be lowered, in words."""

INSTEAD = {
    "max_pool2d": "take an average pool or a stride",
    **dict.fromkeys(("hardtanh", "silu", "gelu", "hardswish", "leaky_relu", "prelu", "elu"), "take a ReLU"),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm"), "take a batch norm"),
}
"""What does much the same as an operator that cannot be lowered."""

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
    shape = cast(tuple[int, int, int], calibration.shape[1:])
    traced = _trace(model, shape)
    if traced.problems:
        known = f"; what can be lowered: {LOWERED}" if traced.shapes else ""
        raise ProgramError("; ".join(traced.problems) + known)
    layers = simplify(traced.layers, traced.output, traced.shapes)
    layers = carry_scales(layers, (traced.output,))
    ranges = _observe(model, layers, calibration)
    return replace(quantize(layers, shape, ranges, modulus=modulus, fraction=fraction, margin=margin), facts=facts)


def real_layers(model: nn.Module, input_shape: Sequence[int]) -> list[Layer]:
    """The layers of ``model`` with real weights, folded and fused; the last gives its output.

    Args:
        model: as :func:`lower` takes it; it is left as it was.
        input_shape: of one input, (C, H, W).

    Raises:
        ProgramError: if the network cannot be lowered, naming the layer.
    """
    traced = _trace(model, input_shape)
    if traced.problems:
        raise ProgramError("; ".join(traced.problems))
    return simplify(traced.layers, traced.output, traced.shapes)


def unsupported(model: nn.Module, input_shape: Sequence[int]) -> tuple[str, ...]:
    """Everything in ``model`` that cannot be lowered, a line each, with the layer's path; empty if it can be.

    Args:
        model: needs no training for this; it is left as it was.
        input_shape: of one input, (C, H, W).
    """
    traced = _trace(model, input_shape)
    problems = list(traced.problems)
    if not problems:
        try:
            simplify(traced.layers, traced.output, traced.shapes)
        except ProgramError as error:
            problems.append(str(error))
    return tuple(problems)


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _quiet() -> Generator[None]:
    """Keep torch from printing whole graphs and warnings beside the one line that is raised."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _trace(model: nn.Module, shape: Sequence[int]) -> _Trace:
    parameter = next(model.parameters(), torch.zeros(()))
    example = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    with _evaluating(model):
        try:
            with _quiet():
                exported = torch.export.export(model, (example,), strict=False)
        except Exception as error:  # whatever the network's own code raises; torch wraps it in many types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if "data-dependent" in reason:
                reason = "it decides by the values of its input, and a program is the same for all inputs"
            trace = _Trace(model, {})
            trace.problems.append(f"the network cannot be traced on an input of shape {tuple(shape)}: {reason}")
            return trace
    signature = exported.graph_signature
    held = {**exported.state_dict, **exported.constants}
    targets = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    trace = _Trace(model, {name: cast(Tensor, held[target]).detach().cpu() for name, target in targets.items()})
    for node in exported.graph.nodes:
        trace.add(node)
    return trace


@dataclass
class _Trace:
    """Turns the nodes of an exported graph into layers, in order, and gathers what it cannot turn."""

    model: nn.Module
    constants: Mapping[str, Tensor]
    layers: list[Traced] = field(default_factory=list[Traced])
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    problems: list[str] = field(default_factory=list[str])
    output: str = ""
    _names: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])
    _parts: dict[tuple[fx.Node, int], str] = field(default_factory=dict[tuple[fx.Node, int], str])

    def add(self, node: fx.Node) -> None:
        """Turn one node."""
        match node.op:
            case "placeholder":
                if node.name not in self.constants:
                    self._names[node] = INPUT
                    self.shapes[INPUT] = _shape(node)
            case "output":
                results = cast(Sequence[fx.Node], node.args[0])
                if len(results) != 1:
                    self.problems.append(f"the network gives {len(results)} results; one can be computed")
                else:
                    self.output = self._names[results[0]]
            case _ if node.target is operator.getitem:
                self._names[node] = self._parts.get(cast(Any, node.args), node.name)
            case _:
                self._call(node)

    def _call(self, node: fx.Node) -> None:
        name = str(node.target).removeprefix("aten.").rpartition(".")[0]
        self._names[node] = path = self._path(node, name.rstrip("_"))
        if any(source not in self._names and source.name not in self.constants for source in node.all_input_nodes):
            self.problems.append(f"{path}: {node.target} reads a value that was overwritten in place")
            return
        handler = _HANDLERS.get(name)
        if handler:
            reason = handler(self, node, path)
        else:
            reason = f"{node.target} cannot be lowered" + (f"; {INSTEAD[name]}" if name in INSTEAD else "")
        if reason:
            self.problems.append(f"{path}: {reason}")
        if name.endswith("_") and handler:
            # in place: who reads the old value later would get the new one
            self._names[cast(fx.Node, node.args[0])] = self._names[node]
            if cast(fx.Node, node.args[0]).target is operator.getitem:
                self.problems.append(f"{path}: {node.target} works in place on a part of another value")

    def _path(self, node: fx.Node, kind: str) -> str:
        """The layer's path; for an operator in a larger module's own code, that and the operator."""
        stack = list(cast(dict[str, tuple[str, Any]], node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        module = self.model.get_submodule(path) if path else self.model
        if not path or list(module.children()):
            path = f"{path}.{kind}" if path else kind
        taken = set(self._names.values()) | {INPUT}
        unique, number = path, 1
        while unique in taken:
            number += 1
            unique = f"{path}.{number}"
        return unique if NAME.fullmatch(unique) else node.name

    def name(self, node: fx.Node) -> str:
        """Of a node's value."""
        return self._names[node]

    def value(self, node: fx.Node, index: int = 0) -> str:
        """Name of a node's argument."""
        return self._names[cast(fx.Node, node.args[index])]

    def same(self, node: fx.Node) -> None:
        """Let the value of ``node`` be that of its first argument."""
        self._names[node] = self.value(node)

    def constant(self, argument: Any, default: float, size: int) -> NDArray[np.float64]:
        """A constant argument as float64, or ``size`` times ``default`` if there is none."""
        if argument is None:
            return np.full(size, float(default))
        return self.constants[argument.name].to(torch.float64).numpy()

    def append(self, layer: Traced, node: fx.Node) -> None:
        """Add a layer that makes the value of ``node``."""
        self.layers.append(layer)
        self.shapes[layer.name] = _shape(node)
        self._names[node] = layer.name

    def is_constant(self, argument: Any) -> bool:
        """Whether an argument is one of the network's own tensors."""
        return isinstance(argument, fx.Node) and argument.name in self.constants

    def part(self, node: fx.Node, index: int, layer: Part, shape: tuple[int, ...]) -> None:
        """Add a part of a value, read as item ``index`` of ``node``."""
        self.layers.append(layer)
        self.shapes[layer.name] = shape
        self._parts[node, index] = layer.name


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's value for one input."""
    return tuple(int(side) for side in cast(Tensor, node.meta["val"]).shape[1:])


def _arguments(node: fx.Node, *defaults: Any) -> list[Any]:
    """All arguments of a node in the operator's order, of which ``defaults`` are the last."""
    given = list(node.args)
    names = [argument.name for argument in cast(Any, node.target)._schema.arguments]
    total = len(names)
    given += list(defaults[len(defaults) - (total - len(given)) :]) if total > len(given) else []
    for name, value in node.kwargs.items():
        given[names.index(name)] = value
    return given


def _pair(value: Any) -> tuple[int, int]:
    sides = cast(Sequence[int], value) if isinstance(value, Sequence) else [cast(int, value)]
    return int(sides[0]), int(sides[-1])


_Handler = Callable[[_Trace, fx.Node, str], str | None]


def _conv(trace: _Trace, node: fx.Node, path: str) -> str | None:
    _, weight, bias, stride, padding, dilation, groups = _arguments(node, None, 1, 0, 1, 1)
    if not trace.is_constant(weight):
        return "its weights are computed, not the network's own"
    if isinstance(padding, str):
        return f"padding {padding!r}; give it as a number"
    kernel = trace.constants[weight.name].shape[2:]
    (rows, columns), (down, across), (above, beside) = _pair(list(kernel)), _pair(stride), _pair(padding)
    if rows != columns or down != across or above != beside or above >= rows or _pair(dilation) != (1, 1):
        return (
            f"kernel {tuple(kernel)}, stride {_pair(stride)}, padding {_pair(padding)}, dilation {_pair(dilation)}; "
            "kernels must be square and undilated, with less padding than kernel"
        )
    real = trace.constant(weight, 0, 0)
    shift = trace.constant(bias, 0, len(real))
    trace.append(Conv(path, (trace.value(node),), real, shift, down, above, int(groups)), node)
    return None


def _linear(trace: _Trace, node: fx.Node, path: str) -> str | None:
    _, weight, bias = _arguments(node, None)
    if not trace.is_constant(weight):
        return "its weights are computed, not the network's own"
    if len(_shape(node)) != 1:
        return f"a linear layer over {_shape(node)}; it takes one axis, flatten before it"
    real = trace.constant(weight, 0, 0)
    trace.append(Dense(path, (trace.value(node),), real, trace.constant(bias, 0, len(real))), node)
    return None


def _batch_norm(trace: _Trace, node: fx.Node, path: str) -> str | None:
    _, weight, bias, mean, variance, training, _, eps, _ = _arguments(node)
    if training or mean is None or variance is None:
        return "a batch norm without running statistics depends on the other inputs of its batch"
    size = _shape(node)[0]
    scale = trace.constant(weight, 1, size) / np.sqrt(trace.constant(variance, 1, size) + eps)
    shift = trace.constant(bias, 0, size) - scale * trace.constant(mean, 0, size)
    trace.append(Affine(path, (trace.value(node),), scale, shift), node)
    return None


def _add(trace: _Trace, node: fx.Node, path: str) -> str | None:
    left, right, alpha = [*node.args, node.kwargs.get("alpha", 1)][:3]
    if not all(isinstance(side, fx.Node) and not trace.is_constant(side) for side in (left, right)) or alpha != 1:
        return "adds a constant or a multiple; only sums of two values can be lowered"
    if _shape(cast(fx.Node, left)) != _shape(cast(fx.Node, right)):
        return f"adds {_shape(cast(fx.Node, left))} and {_shape(cast(fx.Node, right))}; shapes must agree"
    trace.append(Sum(path, (trace.value(node, 0), trace.value(node, 1))), node)
    return None


def _relu(trace: _Trace, node: fx.Node, path: str) -> str | None:
    trace.append(Rectify(path, (trace.value(node),)), node)
    return None


def _masked_relu(trace: _Trace, node: fx.Node, path: str) -> str | None:
    if not trace.is_constant(node.args[1]):
        return "its mask is computed, not the network's own"
    mask = trace.constants[cast(fx.Node, node.args[1]).name].numpy().astype(np.bool_)
    if not mask.any():
        return _same(trace, node, path)
    trace.append(Rectify(path, (trace.value(node),), None if mask.all() else mask), node)
    return None


def _zeroed(trace: _Trace, node: fx.Node, path: str) -> str | None:
    if not trace.is_constant(node.args[1]):
        return "where it is zero is computed, not the network's own"
    keep = trace.constants[cast(fx.Node, node.args[1]).name].numpy().astype(np.bool_)
    trace.append(Zero(path, (trace.value(node),), keep), node)
    return None


def _same(trace: _Trace, node: fx.Node, path: str) -> str | None:
    trace.same(node)
    return None


def _dropout(trace: _Trace, node: fx.Node, path: str) -> str | None:
    return "dropout that is active in evaluation mode" if node.args[2] else _same(trace, node, path)


def _avg_pool(trace: _Trace, node: fx.Node, path: str) -> str | None:
    _, window, stride, padding, ceil, counts_padding, divisor = _arguments(node, [], 0, False, True, None)
    kernel, step = _pair(window), _pair(stride or window)
    if ceil or divisor is not None:
        return "an average pool with ceil_mode or divisor_override"
    if _pair(padding) == (0, 0):
        return _average(trace, node, path, kernel, step)
    (side, other), (above, beside) = kernel, _pair(padding)
    if not counts_padding or side != other or step[0] != step[1] or above != beside:
        return "a padded average pool that is not square or does not count its padding"
    channels = _shape(node)[0]
    weight = np.full((channels, 1, side, side), 1 / side**2)
    layer = Conv(path, (trace.value(node),), weight, np.zeros(channels), step[0], above, channels)
    trace.append(layer, node)
    return None


def _adaptive_avg_pool(trace: _Trace, node: fx.Node, path: str) -> str | None:
    size, wanted = _shape(cast(fx.Node, node.args[0]))[1:], _shape(node)[1:]
    if len(size) != 2 or any(side % out for side, out in zip(size, wanted, strict=True)):
        return f"an adaptive pool from {size} to {wanted}, whose windows differ in size"
    window = size[0] // wanted[0], size[1] // wanted[1]
    return _average(trace, node, path, window, window)


def _mean(trace: _Trace, node: fx.Node, path: str) -> str | None:
    size = _shape(cast(fx.Node, node.args[0]))
    axes = sorted(axis % 4 for axis in cast(Sequence[int], node.args[1] or []))
    if len(size) != 3 or axes != [2, 3]:
        return f"a mean over axes {axes}; only that over height and width can be lowered"
    window = size[1], size[2]
    if len(_shape(node)) == 3:
        return _average(trace, node, path, window, window)
    trace.layers += [Pool(f"{path}.sum", (trace.value(node),), window, window), Flat(f"{path}.flat", (f"{path}.sum",))]
    trace.shapes |= {f"{path}.sum": (size[0], 1, 1), f"{path}.flat": (size[0],)}
    scale = np.full(size[0], 1 / prod(window))
    trace.append(Affine(path, (f"{path}.flat",), scale, np.zeros(size[0])), node)
    return None


def _average(trace: _Trace, node: fx.Node, path: str, window: tuple[int, int], stride: tuple[int, int]) -> str | None:
    """A sum over windows, then its division."""
    channels = _shape(node)[0]
    trace.layers.append(Pool(path, (trace.value(node),), window, stride))
    trace.shapes[path] = _shape(node)
    trace.append(Affine(f"{path}.mean", (path,), np.full(channels, 1 / prod(window)), np.zeros(channels)), node)
    return None


def _flatten(trace: _Trace, node: fx.Node, path: str) -> str | None:
    before, after = _shape(cast(fx.Node, node.args[0])), _shape(node)
    batch = cast(Tensor, node.meta["val"]).shape[0]
    if batch != 1 or after not in (before, (prod(before),)):
        return f"a reshape of {before} to {after}; only flattening to one axis can be lowered"
    if after == before:
        return _same(trace, node, path)
    trace.append(Flat(path, (trace.value(node),)), node)
    return None


def _split(trace: _Trace, node: fx.Node, path: str) -> str | None:
    _, _, axis = _arguments(node, 0)
    before = _shape(cast(fx.Node, node.args[0]))
    if axis not in (1, -3) or len(before) != 3:
        return "a split along another axis than the channels"
    widths = [int(value.shape[1]) for value in cast(Sequence[Tensor], node.meta["val"])]
    start = 0
    for index, width in enumerate(widths):
        layer = Part(f"{path}.{index}", (trace.value(node),), start, start + width)
        trace.part(node, index, layer, (width, *before[1:]))
        start += width
    return None


def _cat(trace: _Trace, node: fx.Node, path: str) -> str | None:
    pieces = cast(Sequence[fx.Node], node.args[0])
    axis = node.args[1] if len(node.args) > 1 else 0
    if axis not in (1, -3) or len(_shape(node)) != 3:
        return "a concatenation along another axis than the channels"
    trace.append(Join(path, tuple(trace.name(piece) for piece in pieces)), node)
    return None


def _herpn(trace: _Trace, node: fx.Node, path: str) -> str | None:
    tensors = [trace.constants[cast(fx.Node, argument).name].double() for argument in node.args[1:]]
    trace.append(Quadratic(path, (trace.value(node),), quadratic(*tensors).numpy()), node)
    return None


def _polynomial_relu(trace: _Trace, node: fx.Node, path: str) -> str | None:
    mask, coefficients = (trace.constants[cast(fx.Node, argument).name] for argument in node.args[1:])
    trace.append(Quadratic(path, (trace.value(node),), coefficients.double().numpy(), mask.numpy()), node)
    return None


_HANDLERS: dict[str, _Handler] = {
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "add": _add,
    "add_": _add,
    "alias": _same,
    "avg_pool2d": _avg_pool,
    "batch_norm": _batch_norm,
    "cat": _cat,
    "clone": _same,
    "contiguous": _same,
    "conv2d": _conv,
    "deepreshape.herpn": _herpn,
    "deepreshape.masked_relu": _masked_relu,
    "deepreshape.polynomial_relu": _polynomial_relu,
    "deepreshape.zeroed": _zeroed,
    "detach": _same,
    "dropout": _dropout,
    "flatten": _flatten,
    "linear": _linear,
    "mean": _mean,
    "relu": _relu,
    "relu_": _relu,
    "reshape": _flatten,
    "split": _split,
    "split_with_sizes": _split,
    "view": _flatten,
}


def _observe(model: nn.Module, layers: Sequence[Layer], calibration: NDArray[np.float32]) -> dict[str, float]:
    """The largest absolute value of each layer and of the input, from a run in float64 that must agree with ``model``.

    Raises:
        ProgramError: if it does not.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    ranges: dict[str, float] = {}
    for start in range(0, len(calibration), _CHUNK):
        chunk = torch.as_tensor(np.ascontiguousarray(calibration[start : start + _CHUNK]))
        result = _run(layers, chunk.to(torch.float64), ranges)
        with _evaluating(model):
            wanted = model(chunk.to(parameter)).cpu().to(torch.float64)
        apart = float((result - wanted).abs().max())
        if apart > 1e-3 * (1 + float(wanted.abs().max())):
            raise ProgramError(
                f"the traced network gives results {apart:.3g} off the network's own; what it computes may depend on "
                "its input in a way that a trace does not see"
            )
    return ranges


def _run(layers: Sequence[Layer], x: Tensor, ranges: dict[str, float]) -> Tensor:
    """The layers on a batch, float64; ``ranges`` grows to the largest values seen."""
    values, left = {INPUT: x}, Counter(name for layer in layers for name in layer.inputs)
    ranges[INPUT] = max(ranges.get(INPUT, 0.0), float(x.abs().max()))
    for layer in layers:
        values[layer.name] = made = _apply(layer, [values[name] for name in layer.inputs])
        ranges[layer.name] = max(ranges.get(layer.name, 0.0), float(made.abs().max()))
        for name in layer.inputs:
            left[name] -= 1
            if not left[name]:
                del values[name]
    return values[layers[-1].name]


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
