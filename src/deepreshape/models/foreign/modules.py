"""Any torch module as a network of this package: masked, saved, loaded, lowered and served like one by name.

:func:`convert` gives every ReLU call a module of its own (:mod:`.call_sites`) and writes the graph of what is left as
plain values: which of PyTorch's layers there are, with which arguments, and in which order they are called. A manifest
holds these values, so that loading needs neither the network's code nor a pickle, and runs no code but PyTorch's:
layers, functions and methods are looked up in the lists here, and nothing else can be named.
"""

from __future__ import annotations

import copy
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, fx, nn

from deepreshape.cost.layers import Layer
from deepreshape.counting import count
from deepreshape.models.architecture import Site
from deepreshape.models.foreign.call_sites import call_sites
from deepreshape.models.foreign.plain import plain_copy, unwrapped
from deepreshape.nn import Nonlinearity

__all__ = ["Foreign", "Network", "convert", "traced"]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{space}.{name}": getattr(holder, name)
    for space, holder, names in (
        (
            "torch",
            torch,
            "abs adaptive_avg_pool1d add amax amin avg_pool1d bmm cat channel_shuffle chunk clamp conv1d conv2d div "
            "einsum exp flatten flip matmul max max_pool2d maximum mean min minimum movedim mul neg permute "
            "pixel_shuffle pow reshape relu roll rsqrt sigmoid softmax split sqrt square squeeze stack sub sum tanh "
            "transpose unbind unflatten unsqueeze",
        ),
        (
            "functional",
            nn.functional,
            "adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d batch_norm conv2d conv_transpose2d elu gelu "
            "hardsigmoid hardswish hardtanh interpolate leaky_relu linear log_softmax max_pool2d mish normalize pad "
            "pixel_shuffle relu relu6 sigmoid silu softmax softplus tanh unfold",
        ),
        ("operator", operator, "add floordiv getitem matmul mul neg pow sub truediv"),
    )
    for name in names.split()
} | {"shape": getattr}
"""By the word in a manifest; ``shape`` reads one of the attributes below."""

ATTRIBUTES = ("shape", "ndim", "dtype", "device", "values")

METHODS = frozenset(
    """
    abs add amax amin chunk clamp clone contiguous detach dim div expand flatten flip float max mean min movedim mul
    narrow neg numel permute pow repeat reshape roll sigmoid size softmax split sqrt square squeeze sub sum t tanh to
    transpose type_as unbind unflatten unsqueeze view
    """.split()  # noqa: SIM905 - as above
)
"""Methods of a tensor."""

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_CLOSE = 1e-4
"""The most that a rewritten network's outputs may be off, for each unit of its largest output; rounding, in float32."""


@dataclass(frozen=True)
class Call:
    """One step of a network's forward pass.

    Attributes:
        name: of its value.
        kind: ``module``, ``function``, ``method``, ``tensor`` or ``input``.
        target: a module's or a tensor's path, a function's word, a method's name.
        args, kwargs: plain JSON values, in which ``{"value": name}`` is the value of an earlier step.
    """

    name: str
    kind: str
    target: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None


@final
@dataclass(frozen=True)
class Foreign:
    """A network that came as a torch module, as plain values.

    Attributes:
        label: what it is called: the class of the module.
        input, classes: shape of one input, and width of the output.
        calls: the forward pass; the last one gives the output.
        modules: PyTorch's layers by path, each with the name of its class and its arguments.
        tensors: parameters and buffers that belong to no layer, by path: shape, dtype, and whether it is a parameter.
        places: the ReLU sites, in the order they run.
    """

    family: ClassVar[str] = "foreign"

    label: str
    input: tuple[int, int, int]
    classes: int
    calls: tuple[Call, ...]
    modules: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, tuple[Sequence[int], str, bool]]
    places: tuple[Site, ...]

    @property
    def name(self) -> str:
        """What the network is called."""
        return self.label

    @property
    def relus(self) -> int:
        """How many ReLUs it has at its sites."""
        return sum(site.relus for site in self.places)

    def sites(self) -> tuple[Site, ...]:
        """Every ReLU site, in the order they run."""
        return self.places

    def relus_at(self, site: Site) -> int:
        """How many ReLUs there are at a site."""
        return site.relus

    def layers(self) -> tuple[Layer, ...]:
        """Every linear and ReLU layer, from a trace."""
        with torch.device("meta"):
            return count(self.build(), self.input).layers

    def build(self) -> nn.Module:
        """A module with fresh weights."""
        return Network(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; :meth:`from_dict` gives it back."""
        return {
            "family": self.family,
            "label": self.label,
            "input": list(self.input),
            "classes": self.classes,
            "calls": [
                [call.name, call.kind, call.target, list(call.args), dict(call.kwargs or {})] for call in self.calls
            ],
            "modules": {path: dict(module) for path, module in self.modules.items()},
            "tensors": {path: list(facts) for path, facts in self.tensors.items()},
            "places": [[site.name, site.position, site.channels, list(site.size)] for site in self.places],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Foreign:
        """The network of what :meth:`to_dict` gave.

        Raises:
            ValueError: if a field is missing or does not fit, or names what is not in the lists of this module.
        """
        try:
            network = cls(
                str(values["label"]),
                tuple(int(side) for side in values["input"]),  # pyright: ignore[reportArgumentType]
                int(values["classes"]),
                tuple(Call(*call) for call in values["calls"]),
                dict(values["modules"]),
                {
                    path: (shape, str(dtype), bool(parameter))
                    for path, (shape, dtype, parameter) in values["tensors"].items()
                },
                tuple(_site(name, place, channels, size) for name, place, channels, size in values["places"]),
            )
            for call in network.calls:
                _check(call)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a saved graph of layers: {error}") from error
        return network


class Network(nn.Module):
    """Runs the calls of a :class:`Foreign` network; maps a batch (N, *input) to logits (N, classes)."""

    def __init__(self, architecture: Foreign) -> None:
        super().__init__()
        self.architecture = architecture
        for path, facts in architecture.modules.items():
            kind = _layer_class(str(facts["class"]))
            arguments = {key: _filled(value, {}) for key, value in facts["arguments"].items()}
            _place(self, path, kind(**arguments))
        for path, (shape, dtype, parameter) in architecture.tensors.items():
            tensor = torch.zeros(tuple(shape), dtype=_dtype(dtype))
            _place(self, path, nn.Parameter(tensor, tensor.is_floating_point()) if parameter else tensor)
        self._free = _last_uses(architecture.calls)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {}
        for call in self.architecture.calls:
            args = [_filled(value, values) for value in call.args]
            kwargs = {key: _filled(value, values) for key, value in (call.kwargs or {}).items()}
            match call.kind:
                case "input":
                    values[call.name] = x
                case "module":
                    values[call.name] = self.get_submodule(call.target)(*args, **kwargs)
                case "tensor":
                    values[call.name] = operator.attrgetter(call.target)(self)
                case "function":
                    values[call.name] = FUNCTIONS[call.target](*args, **kwargs)
                case _:
                    values[call.name] = getattr(args[0], call.target)(*args[1:], **kwargs)
            for name in self._free.get(call.name, ()):
                del values[name]
        return values[self.architecture.calls[-1].name]


def convert(model: nn.Module, input: Tensor | Sequence[int]) -> nn.Module:
    """``model`` as a network of this package; one that is already is given back as it is.

    Every ReLU call becomes a ``torch.nn.ReLU`` of its own. The result computes the same: this is checked on the batch,
    in evaluation and in training mode.

    Args:
        model: maps a batch to logits, as its first argument; it is left as it was. Of ``DataParallel`` and
            ``torch.compile`` it is the network in it; weights that are computed (weight norm, pruning) become plain.
        input: a batch of at least two inputs as the network gets them, or the shape of one, for a random batch.

    Raises:
        ValueError: if the network cannot be traced, has a part that a manifest cannot name, or would compute something
            else.
    """
    model = unwrapped(model)
    if getattr(getattr(model, "architecture", None), "family", None) is not None:
        return model
    parameter = next(model.parameters(), torch.zeros(()))
    if not isinstance(input, Tensor):
        input = torch.randn(4, *input, generator=torch.Generator().manual_seed(0))
    return traced(model, input.to(parameter), type(model).__name__)


def traced(model: nn.Module, batch: Tensor, label: str) -> Network:
    """What :func:`convert` does with a module that is no network of this package, or with one that was changed.

    Args:
        model: maps a batch to logits; it is left as it was.
        batch: of at least two inputs, as the network gets them.
        label: what the network is called.

    Raises:
        ValueError: as :func:`convert`.
    """
    plain = plain_copy(model)
    root, graph = call_sites(plain, batch[:2])
    network = Network(_described(label, root, graph, batch)).to(batch)
    for path, module in root.named_modules():
        if isinstance(module, Nonlinearity) and path in network.architecture.modules:
            network.set_submodule(path, copy.deepcopy(module))
    state = root.state_dict(keep_vars=True) | {
        path: operator.attrgetter(path)(root) for path in network.architecture.tensors
    }
    network.load_state_dict({name: state[name].detach() for name in network.state_dict()})
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(state[name].requires_grad)
    _see_same(plain, network, batch)
    return network.train(model.training)


def _see_same(model: nn.Module, network: nn.Module, batch: Tensor) -> None:
    """Refuse a network that does not compute what ``model`` does, on this batch and on a smaller one, in both modes."""
    for training in (False, True):
        ours, theirs = (copy.deepcopy(each).train(training) for each in (network, model))
        for inputs in (batch, batch[: max(2, len(batch) - 1)]):
            outputs = []
            for each in (ours, theirs):
                with torch.random.fork_rng(devices=[]), torch.no_grad():
                    torch.manual_seed(0)
                    outputs.append(_only_tensor(each(inputs.clone())))
            apart, largest = (outputs[0] - outputs[1]).abs().max(), outputs[1].abs().max()
            if not apart <= _CLOSE * max(1.0, float(largest)):
                mode = "training" if training else "evaluation"
                raise ValueError(
                    f"the network cannot be rewritten as calls of layers: in {mode} mode its outputs would be "
                    f"{float(apart):.3g} off; write it without hooks, code that asks for self.training, and random "
                    "numbers other than a dropout layer's"
                )


def _only_tensor(output: Any) -> Any:
    """The one tensor of an output that may be in a tuple, a list or a dictionary."""
    parts = [*output.values()] if isinstance(output, dict) else output
    if isinstance(parts, (list, tuple)):
        if len(parts) != 1:
            raise ValueError(f"the network gives {len(parts)} outputs; one can be trained, give a network of that one")
        return _only_tensor(parts[0])
    return parts


def _described(label: str, root: nn.Module, graph: fx.Graph, batch: Tensor) -> Foreign:
    calls: list[Call] = []
    modules: dict[str, dict[str, Any]] = {}
    tensors: dict[str, tuple[Sequence[int], str, bool]] = {}
    places: list[Site] = []
    for node in graph.nodes:
        if node.op == "output":
            result = _only_tensor(node.args[0])
            while calls and calls[-1].name != result.name:  # what only a second reading would need
                calls.pop()
            continue
        target = str(node.target)
        if node.op == "call_module":
            module = root.get_submodule(target)
            modules[target] = _layer(target, module)
            if isinstance(module, nn.ReLU) or (isinstance(module, Nonlinearity) and module.mask is not None):
                channels, *size = node.meta["value"].shape[1:]
                places.append(_site(target, len(places) + 1, channels, _plane(size)))
        elif node.op == "get_attr":
            tensor = operator.attrgetter(target)(root)
            tensors[target] = (
                [*tensor.shape],
                str(tensor.dtype).removeprefix("torch."),
                isinstance(tensor, nn.Parameter),
            )
        calls.append(_call(node))
    output = next(node for node in graph.nodes if node.op == "output")
    classes = _only_tensor(output.args[0]).meta["value"].shape[-1]
    shape: Any = tuple(batch.shape[1:])
    return Foreign(label, shape, classes, tuple(calls), modules, tensors, tuple(places))


def _plane(size: Sequence[int]) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if len(size) == 2 else (prod(size), 1)


def _site(name: str, place: int, channels: int, size: Sequence[int]) -> Site:
    return Site(name, 1, place, False, int(channels), (int(size[0]), int(size[1])), reusable=False)


_KINDS = {"placeholder": "input", "call_module": "module", "get_attr": "tensor", "call_method": "method"}
_WORDS = {id(function): word for word, function in FUNCTIONS.items()}


def _call(node: fx.Node) -> Call:
    kind, target = _KINDS.get(node.op, "function"), str(node.target)
    if kind == "function":
        target = _WORDS.get(id(node.target), "")
        if not target:
            name = getattr(node.target, "__name__", node.target)
            raise ValueError(
                f"the network calls {name} at {node.name}, which a saved network cannot name; known are layers "
                f"of torch.nn and {', '.join(sorted(FUNCTIONS))}"
            )
    args = [] if kind == "input" else [_plain(value, node) for value in node.args]
    call = Call(node.name, kind, target, args, {key: _plain(value, node) for key, value in node.kwargs.items()})
    _check(call)
    return call


def _check(call: Call) -> None:
    """See that a call names nothing but what is in the lists.

    Raises:
        ValueError: naming what is not.
    """
    known = {
        "input": True,
        "module": bool(_PATH.fullmatch(call.target)),
        "tensor": bool(_PATH.fullmatch(call.target)),
        "method": call.target in METHODS,
        "function": call.target in FUNCTIONS,
    }
    reads = call.target != "shape" or call.kind != "function" or list(call.args)[1:] in [[name] for name in ATTRIBUTES]
    if not known.get(call.kind) or not reads:
        raise ValueError(f"the {call.kind} {call.target!r} at {call.name} is none that a saved network may name")


def _plain(value: Any, node: fx.Node) -> Any:
    """An argument of a call as JSON values."""
    if isinstance(value, fx.Node):
        return {"value": value.name}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_plain(part, node) for part in value]}
    if isinstance(value, slice):
        return {"slice": [_plain(part, node) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is Ellipsis:
        return {"ellipsis": True}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{node.name} has the argument {value!r}, which a saved network cannot hold")


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """What :func:`_plain` made of an argument, with the values of earlier steps in it."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "value":
            return values[content]
        case "slice":
            return slice(*(_filled(part, values) for part in content))
        case "dtype":
            return _dtype(content)
        case "ellipsis":
            return ...
        case "list":
            return [_filled(part, values) for part in content]
        case "tuple":
            return tuple(_filled(part, values) for part in content)
    raise ValueError(f"unknown kind of argument {kind!r}")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def _layer_class(name: str) -> type[nn.Module]:
    kind = getattr(nn, name, None)
    if (
        not isinstance(kind, type)
        or not issubclass(kind, nn.Module)
        or not kind.__module__.startswith("torch.nn.modules")
    ):
        raise ValueError(f"{name!r} is not a layer of torch.nn")
    return kind


def _layer(path: str, module: nn.Module) -> dict[str, Any]:
    """The class of a layer and the arguments that make another like it."""
    if isinstance(module, Nonlinearity):
        return {"class": "ReLU", "arguments": {}}
    kind = type(module)
    if getattr(nn, kind.__name__, None) is not kind:
        raise ValueError(f"{path} is a {kind.__module__}.{kind.__name__}, which is not a layer of torch.nn")
    arguments: dict[str, Any] = {}
    for name, parameter in [*inspect.signature(kind.__init__).parameters.items()][1:]:
        if name in ("device", "dtype", "inplace") or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        value = getattr(module, name, parameter.default)
        if name == "bias" and not isinstance(value, bool):
            value = value is not None
        if value is not parameter.default:
            arguments[name] = _plain(value, fx.Node(fx.Graph(), path.replace(".", "_"), "placeholder", path, (), {}))
    return {"class": kind.__name__, "arguments": arguments}


def _place(network: nn.Module, path: str, what: nn.Module | Tensor) -> None:
    """Put a module, parameter or buffer at a path; what lies between is made."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"{path!r} is not the path of a module")
    parent, _, name = path.rpartition(".")
    holder = network
    for part in parent.split(".") if parent else []:
        if part not in dict(holder.named_children()):
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    if isinstance(what, nn.Module):
        holder.add_module(name, what)
    elif isinstance(what, nn.Parameter):
        holder.register_parameter(name, what)
    else:
        holder.register_buffer(name, what)


def _last_uses(calls: Sequence[Call]) -> dict[str, list[str]]:
    """By the name of a call, the values that nobody needs after it."""
    last: dict[str, str] = {}

    def read(value: Any, by: str) -> None:
        if isinstance(value, dict):
            ((kind, content),) = value.items()
            if kind == "value":
                last[content] = by
            elif isinstance(content, list):
                for part in content:
                    read(part, by)

    for call in calls:
        for value in (*call.args, *(call.kwargs or {}).values()):
            read(value, call.name)
    free: dict[str, list[str]] = {}
    for name, by in last.items():
        free.setdefault(by, []).append(name)
    return free
