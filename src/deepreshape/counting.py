"""ReLUs, max-pool comparisons, MACs and parameters of any torch module, seen in a trace of one forward pass.

The counter watches the operators that run (``aten.relu``, ``aten.convolution`` ...), so that a functional ReLU counts
like a module. It knows three kinds of operator: those it counts, those that are linear or only move data, and all
others, which it lists as unknown. What does not depend on the input is computed once, before any inference, and is not
counted. A linear layer over a map is a 1x1 convolution.

Conventions, which differ between papers:

* a multiply-add is one MAC; batch norm, pools and adds are not counted. What papers on private inference call FLOPs
  are MACs.
* ReLUs are reported with the stem's and without it (SNL's networks have none there).
* pixels that a convolution leaves out cost no MACs there, and the ReLU of the constant behind them counts none.
* ReLU6, leaky ReLU, hard sigmoid and ``clamp(min=0)`` count one ReLU an element; hard swish also a square.
* a max pool of k elements a window counts k - 1 comparisons an output, on a line of its own.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# (operators arrive as untyped argument lists)

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from deepreshape.cost.layers import Layer, LinearLayer, ReluLayer, SignLayer, SquareLayer, UnpricedLayer

__all__ = ["Count", "Counts", "check_one_input", "count"]


@dataclass
class Counts:
    """What one part of a network costs for one forward pass."""

    relus: int = 0
    maxpool_comparisons: int = 0
    macs: int = 0
    params: int = 0
    squares: int = 0
    signs: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.relus + other.relus,
            self.maxpool_comparisons + other.maxpool_comparisons,
            self.macs + other.macs,
            self.params + other.params,
            self.squares + other.squares,
            self.signs + other.signs,
        )

    def __str__(self) -> str:
        rare = {"squares": self.squares, "signs": self.signs, "max-pool comparisons": self.maxpool_comparisons}
        also = "".join(f", {number:,} {name}" for name, number in rare.items() if number)
        return f"{self.relus:,} ReLUs{also}, {self.macs:,} MACs, {self.params:,} parameters"


@dataclass(frozen=True)
class Count:
    """The result of :func:`count`.

    Attributes:
        by_module: what each module does itself (not in its children), by its path; ``""`` is the network.
        by_operator: by the name of the operator, such as ``aten.relu``.
        unknown: operators that are neither counted nor known to be linear: how many elements they gave.
        layers: linear and ReLU layers in the order they ran, for a cost model; of one input.
        stem_relus: ReLUs of the module called ``stem``; in networks of others, those that run before the first
            top-level module that has children.
        inputs: how many there were in the batch.
        upper_bounds: by module, elements whose ReLU has an upper bound too, as a ReLU6 has: a second comparison, which
            is priced and not counted; of one input.
    """

    by_module: dict[str, Counts]
    by_operator: dict[str, Counts]
    unknown: dict[str, int]
    layers: tuple[Layer, ...]
    stem_relus: int
    inputs: int = 1
    upper_bounds: Mapping[str, int] = field(default_factory=dict[str, int])

    def __str__(self) -> str:
        stages = "".join(f"\n  {name}: {counts}" for name, counts in self.by_stage.items() if counts != Counts())
        unknown = "".join(f"\n  not counted: {name} ({number:,} elements)" for name, number in self.unknown.items())
        return f"{self.total}{stages}{unknown}"

    def complete(self) -> Count:
        """Return this count, if its totals miss nothing.

        Raises:
            ValueError: if an unknown operator does work of a size that is not known, such as a quantised convolution.
        """
        for name, elements in self.unknown.items():
            if not name.startswith("aten.") or _HIDES_MACS.search(name):
                where = "count the network as it was before it was quantised" if "quant" in name else "rewrite it"
                raise ValueError(f"the totals would miss the multiply-adds of {name} ({elements:,} elements): {where}")
        return self

    @property
    def total(self) -> Counts:
        """Of the whole network."""
        return sum(self.by_module.values(), Counts())

    @property
    def relus_without_stem(self) -> int:
        """ReLUs after the stem."""
        return self.total.relus - self.stem_relus

    @property
    def priced_layers(self) -> tuple[Layer, ...]:
        """The layers for a price: behind them, as ReLU layers, upper bounds such as a ReLU6's, and max pools.

        Raises:
            ValueError: if an operator is unknown, whose price would be missing.
        """
        if self.unknown:
            named = ", ".join(f"{name} ({elements:,} elements)" for name, elements in self.unknown.items())
            raise ValueError(
                f"the price would miss {named}: neither linear nor a ReLU; `deepreshape check` says what to do, and a "
                "program that `lower` gives has a price"
            )
        each = {path: counts.maxpool_comparisons // self.inputs for path, counts in self.by_module.items()}
        pools = (ReluLayer(f"{path}.comparisons", number, number) for path, number in each.items() if number)
        bounds = (ReluLayer(f"{path}.upper", number, number) for path, number in self.upper_bounds.items())
        return (*self.layers, *bounds, *pools)

    @property
    def by_stage(self) -> dict[str, Counts]:
        """By top-level module."""
        stages: dict[str, Counts] = {}
        for path, counts in self.by_module.items():
            name = path.partition(".")[0]
            stages[name] = stages.get(name, Counts()) + counts
        return stages


def count(model: nn.Module, input: Tensor | Sequence[int]) -> Count:
    """Count one forward pass of ``model`` in evaluation mode.

    Args:
        model: any module; it is left as it was. One on the ``meta`` device is counted without computing.
        input: a batch to pass through, or the shape of a single input without batch size, such as ``(3, 32, 32)``.

    Returns:
        Counts of this pass: for a batch of n inputs, n times those of one (parameters once).

    Raises:
        ValueError: if the model does not run on that input, or takes several.
    """
    check_one_input(model)
    parameter = next(model.parameters(), None)
    if not isinstance(input, Tensor):
        device = parameter.device if parameter is not None else torch.device("cpu")
        dtype = parameter.dtype if parameter is not None else torch.float32
        input = torch.zeros(1, *input, device=device, dtype=dtype)
    training = {module: module.training for module in model.modules()}
    trace = _Trace(model)
    model.eval()
    try:
        with torch.no_grad(), _separate_operators(), trace.modules(), trace:
            trace.values[input] = input.shape
            model(input)
    except Exception as error:  # of the user's own code
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the model does not run on an input of shape {tuple(input.shape)}: {reason}") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    layers = tuple(_of_one(layer, len(input)) for layer in trace.layers)
    bounds = {path: elements // len(input) for path, elements in trace.upper_bounds.items()}
    stem = _stem_relus(model, trace.layers)
    return Count(trace.by_module, trace.by_operator, trace.unknown, layers, stem, len(input), bounds)


def check_one_input(model: nn.Module) -> None:
    """Refuse a network that cannot be called with one input alone, or whose operators cannot be followed.

    Raises:
        ValueError: naming its inputs, or the part in TorchScript, and what to do.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = path or "the network"
            raise ValueError(
                f"{what} is in TorchScript, whose operators cannot be followed; give the module that it was made from"
            )
    needed = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        names = ", ".join(needed)
        raise ValueError(
            f"the network takes {len(needed)} inputs ({names}), and only networks of one input are counted, priced and "
            f"run privately; join them along the channels, and begin its code with `{names} = x.split([...], 1)`"
        )


def _of_one(layer: Layer, inputs: int) -> Layer:
    """What a layer does for one of a batch of inputs."""
    counted = {name: value // inputs for name, value in vars(layer).items() if name in _COUNTED}
    return replace(layer, **counted)


@contextmanager
def _separate_operators() -> Generator[None]:
    """Keep torch from taking one operator for a whole encoder layer, which would hide its parts."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _stem_relus(model: nn.Module, layers: Sequence[Layer]) -> int:
    children = dict(model.named_children())
    containers = {name for name, child in children.items() if [*child.children()]}
    total = 0
    for layer in layers:
        top = layer.name.partition(".")[0]
        relus = layer.relus if isinstance(layer, ReluLayer) else 0
        if "stem" in children:
            total += relus if top == "stem" else 0
        elif top in containers:
            return total
        else:
            total += relus
    return total if "stem" in children else 0


class _Trace(TorchDispatchMode):
    """Watches every operator of a forward pass and the module it runs in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.by_operator: dict[str, Counts] = {}
        self.unknown: dict[str, int] = {}
        self.layers: list[Layer] = []
        self.by_module: dict[str, Counts] = {}
        self.upper_bounds: dict[str, int] = {}
        self.values = WeakTensorKeyDictionary()
        """Tensors that depend on the input, and the shape that each had before its leading axes became one."""
        seen: set[int] = set()
        for path, module in model.named_modules():
            fresh = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
            seen.update(id(parameter) for parameter in fresh)
            self.by_module[path] = Counts(params=sum(parameter.numel() for parameter in fresh))
        self._path = [""]

    @contextmanager
    def modules(self) -> Generator[None]:
        """Follow which module is running."""

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: self._path.append(path)

        def leave(*_: object) -> None:
            self._path.pop()

        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for path, module in self.model.named_modules():
                handles += [
                    module.register_forward_pre_hook(enter(path)),
                    module.register_forward_hook(leave, always_call=True),
                ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name, plain = _names(func)
        if not self._depends((*args, *kwargs.values())):
            return out
        for tensor in _tensors(out):
            self.values[tensor] = self._map_shape(plain, args, tensor)
        if plain in _LINEAR_OR_DATA and not (plain in _BATCH_NORMS and args[5]):
            return out
        counts = Counts()
        path = self._path[-1]
        if plain in _ATTENTION:
            queries, keys, values = args[:3]
            counts.macs = (
                queries.numel() * keys.shape[-2]
                + queries.numel() // queries.shape[-1] * values.shape[-2] * values.shape[-1]
            )
            self._unknown("aten._softmax", queries.numel() // queries.shape[-1] * keys.shape[-2])
            self.layers.append(UnpricedLayer(path, f"{name}, a product of two values", counts.macs))
        elif func._overloadpacket in flop_registry:
            counts.macs = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out) // 2
            self.layers.append(self._linear_layer(path, plain, args, out, counts.macs))
        elif plain == "deepreshape.masked_conv2d":
            x, weight, bias, columns, (groups, *pairs) = args
            counts.macs = len(x) * int(columns.sum()) * weight.numel()
            usual = x, weight, bias, pairs[:2], pairs[2:4], pairs[4:], False, (), groups
            layer = _convolution(path, usual, out, counts.macs)
            self.layers.append(replace(layer, left_out=int((~columns).sum())))
        elif plain == "deepreshape.known_relu":
            known = int(args[1].sum()) * (out.numel() // args[1].numel())
            if isinstance(self.layers[-1], ReluLayer):
                self.layers[-1] = replace(self.layers[-1], elements=self.layers[-1].elements - known)
            return out
        elif plain in _RELUS and _RELUS[plain](args, kwargs):
            elements = args[0].numel()
            counts.relus = elements
            if plain in _MASKED:
                counts.relus = int(args[1].sum()) * (elements // args[1].numel())
            if plain == "deepreshape.polynomial_relu":
                counts.squares = elements - counts.relus
            self.layers.append(ReluLayer(path, counts.relus, elements - counts.squares))
            if plain in _BOUNDED and _BOUNDED[plain](args, kwargs):
                self.upper_bounds[path] = self.upper_bounds.get(path, 0) + elements
            if plain == "aten.hardswish":
                counts.squares = elements
            if counts.squares:
                self.layers.append(SquareLayer(path, counts.squares))
        elif plain == "deepreshape.herpn":
            counts.squares = args[0].numel()
            self.layers.append(SquareLayer(path, counts.squares))
        elif plain == "deepreshape.sign":
            counts.signs = args[0].numel()
            self.layers.append(SignLayer(path, counts.signs))
        elif plain in _MAX_POOLS:
            counts.maxpool_comparisons = _MAX_POOLS[plain](args, kwargs, out)
        elif self._scales_by_constant(plain, args):
            return out
        elif squares := _squares_an_element(plain, args):
            counts.squares = squares * out.numel()
            self.layers.append(SquareLayer(path, counts.squares))
        else:
            self._unknown(name, sum(part.numel() for part in _tensors(out)))
            return out
        self.by_operator[name] = self.by_operator.get(name, Counts()) + counts
        self.by_module[path] = self.by_module[path] + counts
        return out

    def _unknown(self, name: str, elements: int) -> None:
        self.unknown[name] = self.unknown.get(name, 0) + elements

    def _depends(self, value: Any) -> bool:
        """Whether any tensor in ``value`` depends on the input."""
        return any(tensor in self.values for tensor in _tensors(value))

    def _map_shape(self, operator: str, args: tuple[Any, ...], out: Tensor) -> torch.Size:
        """The shape of a value, or the one that it had before a linear layer made fewer axes of all but the last."""
        if operator in _RESHAPES and out.dim() <= args[0].dim() and args[0].shape[-1] == out.shape[-1]:
            return self.values[args[0]] if args[0] in self.values else args[0].shape
        return out.shape

    def _scales_by_constant(self, operator: str, args: tuple[Any, ...]) -> bool:
        """A product is linear if a side does not depend on the input, a quotient if its second side does not."""
        if operator not in ("aten.mul", "aten.div"):
            return False
        return not self._depends(args[1]) or (operator == "aten.mul" and not self._depends(args[0]))

    def _linear_layer(self, path: str, operator: str, args: tuple[Any, ...], out: Any, macs: int) -> Layer:
        if operator in ("aten.convolution", "aten._convolution"):
            return _convolution(path, args, out, macs) if not self._depends(args[1]) else _product(path, operator, macs)
        left, right = args[1:3] if operator == "aten.addmm" else args[:2]
        # a matrix for each of a batch is one matrix if the batch was expanded
        one = operator in ("aten.addmm", "aten.mm") or (operator == "aten.bmm" and right.stride(0) == 0)
        if not one or self._depends(right):
            return _product(path, operator, macs)
        shape = self.values[left]
        size = shape[1:-1] if len(shape) <= 4 else (1, prod(shape[1:-1]))
        return LinearLayer(path, shape[-1], right.shape[-1], (1, 1), 1, _plane(size), _plane(size), macs)


@cache
def _names(func: Any) -> tuple[str, str]:
    """An operator's name, and the one without the mark of the in-place form."""
    name = str(func._overloadpacket)
    return name, name if name.endswith("__") else name.rstrip("_")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _tensors(part)


def _convolution(path: str, args: tuple[Any, ...], out: Tensor, macs: int) -> Layer:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if x.dim() > 4:
        return UnpricedLayer(path, f"a convolution over {x.dim() - 2} axes", macs)

    def sides(value: Sequence[int], missing: int = 1) -> tuple[int, int]:
        return _plane([*value] * ((x.dim() - 2) // len(value)), missing)

    return LinearLayer(
        path,
        x.shape[1],
        out.shape[1],
        _plane(weight.shape[2:]),
        groups,
        _plane(x.shape[2:]),
        _plane(out.shape[2:]),
        macs,
        sides(stride),
        sides(padding, 0),
        sides(dilation),
        transposed,
    )


def _product(path: str, operator: str, macs: int) -> UnpricedLayer:
    return UnpricedLayer(path, f"{operator}, a product of two values", macs)


def _plane(size: Sequence[int], missing: int = 1) -> tuple[int, int]:
    """(height, width) of what has up to two axes; those that are missing are ``missing``."""
    height, width = (missing, missing, *size)[-2:]
    return height, width


def _min_is_zero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    return isinstance(low, (int, float)) and low == 0


def _squares_an_element(operator: str, args: tuple[Any, ...]) -> int:
    """Of a power of two or of a product of two values, a b = ((a + b) / 2)^2 - ((a - b) / 2)^2; 0 of all else."""
    if operator == "aten.pow":
        return int(not isinstance(args[1], Tensor) and args[1] == 2)
    if operator == "aten.mul":
        return 1 if args[0] is args[1] else 2
    return 0


def _is_relu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return True


def _zero_threshold(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return args[1] == 0 and args[2] == 0


def _zero_floor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return kwargs.get("min_val", args[1] if len(args) > 1 else -1) == 0


def _has_maximum(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return kwargs.get("max", args[2] if len(args) > 2 else None) is not None


_RELUS: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], bool]] = {
    "aten.relu": _is_relu,
    "aten.leaky_relu": _is_relu,
    "aten.hardsigmoid": _is_relu,
    "aten.hardswish": _is_relu,
    "aten._prelu_kernel": _is_relu,
    "aten.hardtanh": _zero_floor,
    "aten.clamp": _min_is_zero,
    "aten.clamp_min": _min_is_zero,
    "aten.threshold": _zero_threshold,
    "deepreshape.masked_relu": _is_relu,
    "deepreshape.polynomial_relu": _is_relu,
}

_BOUNDED: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], bool]] = {
    "aten.hardsigmoid": _is_relu,
    "aten.hardswish": _is_relu,
    "aten.hardtanh": _is_relu,
    "aten.clamp": _has_maximum,
}
"""Of these ReLUs, which have an upper bound too."""

_MASKED = ("deepreshape.masked_relu", "deepreshape.polynomial_relu")
"""Those whose second argument says at which positions there is a ReLU."""


def _window(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    result = next(_tensors(out))
    kernel: Any = args[1]
    sides: list[int] = [*kernel] if isinstance(kernel, Sequence) else [kernel]
    size = sides[0] ** (result.dim() - 2) if len(sides) == 1 else prod(sides)
    return result.numel() * (size - 1)


def _adaptive(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Adaptive windows are [floor(i n/k), ceil((i+1) n/k)) along each side."""
    result = next(_tensors(out))
    sides = zip(args[0].shape[2:], result.shape[2:], strict=True)
    covered = prod(sum(-(-(i + 1) * n // k) - i * n // k for i in range(k)) for n, k in sides)
    return covered * result.shape[0] * result.shape[1] - result.numel()


def _reduction(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    return args[0].numel() - next(_tensors(out)).numel()


_MAX_POOLS: dict[str, Callable[[tuple[Any, ...], dict[str, Any], Any], int]] = {
    "aten.max_pool1d": _window,
    "aten.max_pool2d": _window,
    "aten.max_pool2d_with_indices": _window,
    "aten.max_pool3d_with_indices": _window,
    "aten.adaptive_max_pool2d": _adaptive,
    "aten.adaptive_max_pool3d": _adaptive,
    "aten.amax": _reduction,
    "aten.amin": _reduction,
    "aten.max": _reduction,
    "aten.min": _reduction,
}

_COUNTED = ("macs", "relus", "elements", "squares", "signs")

_RESHAPES = ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.expand", "aten.clone")

_HIDES_MACS = re.compile(r"conv|mm$|_mm_|mv$|dot$|rnn|lstm|gru|attention|transformer|trilinear$|cdist|fft")
"""Operators of torch whose work would be missing from the totals."""

_ATTENTION = {
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
}

_BATCH_NORMS = tuple(f"aten.{name}batch_norm" for name in ("native_", "cudnn_", "mkldnn_"))
"""Linear by stored statistics; their sixth argument says that they take the input's, as an instance norm does."""

_LINEAR_OR_DATA = frozenset(
    f"aten.{name}"
    for name in """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_tensor_metadata _batch_norm_impl_index _conj
    _native_batch_norm_legit_no_training _reshape_alias _to_copy _unsafe_view adaptive_avg_pool1d add alias
    arange as_strided avg_pool1d avg_pool2d avg_pool3d cat channel_shuffle clone col2im constant_pad_nd
    contiguous copy cudnn_batch_norm cumsum detach empty empty_like empty_strided expand fill flip full
    full_like gather im2col index index_select lift_fresh mean mkldnn_batch_norm narrow native_batch_norm
    neg new_empty new_full new_ones new_zeros ones ones_like permute pixel_shuffle pixel_unshuffle
    reflection_pad1d reflection_pad2d repeat replication_pad2d reshape resize roll rsub scalar_tensor select
    set slice slice_scatter split split_with_sizes squeeze stack sub sum t to transpose tril triu unbind
    unfold unsqueeze upsample_bilinear2d upsample_nearest2d view zeros zeros_like
    """.split()  # noqa: SIM905 - a list of 90 quoted names is harder to read
) | {
    "deepreshape.zeroed",
    "prim.device",
    "profiler._record_function_enter_new",
    "profiler._record_function_exit",
    "quantized_decomposed.dequantize_per_tensor",
    "quantized_decomposed.dequantize_per_channel",
}
