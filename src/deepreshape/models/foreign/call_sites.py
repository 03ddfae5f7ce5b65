"""Every ReLU call of any torch module as a module of its own: a rewrite of its torch.fx graph, the same function.

A network's code may call ``F.relu``, use one ``nn.ReLU`` at several places, or work in place on a value that is read
again. :func:`call_sites` traces it, gives each call a ``torch.nn.ReLU`` with a path, and takes in-place operators out
of place, with later readers reading what they read before. What is a ReLU is decided by what runs: a subclass of
``nn.ReLU`` with a ``forward`` of its own is traced through like any other code.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import operator
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere

from deepreshape.counting import check_one_input
from deepreshape.nn import Nonlinearity

__all__ = ["call_sites", "raised_at"]

SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
SHAPE_METHODS = ("size", "dim", "numel", "is_floating_point")
IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
RELUS = (F.relu, torch.relu, torch.relu_, F.relu_)
FLOORS = (torch.clamp, torch.clamp_min, torch.clip)
ACTIVATIONS = {
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.mish: nn.Mish,
    F.relu6: nn.ReLU6,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
    torch.sigmoid: nn.Sigmoid,
    torch.tanh: nn.Tanh,
}
DROPOUTS = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
}


def call_sites(model: nn.Module, example: Tensor) -> tuple[nn.Module, fx.Graph]:
    """A copy of ``model`` with a ``torch.nn.ReLU`` for each ReLU call, and the graph that calls its parts.

    Args:
        model: any module that takes one batch; it is left as it was.
        example: a batch, at least two inputs.

    Raises:
        ValueError: if the model takes several inputs, its code decides by values of its input, or what works in place
            cannot be taken out of place.
    """
    check_one_input(model)
    root = copy.deepcopy(model).eval()
    tracer = _Tracer(root, example)
    try:
        with torch.no_grad():
            graph = tracer.trace(root)
    except Exception as error:  # whatever the network's own code raises while it is traced
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        layer, line = raised_at(root, error)
        at = f"{layer}: " if layer else ""
        raise ValueError(
            f"{at}the network cannot be traced on inputs of shape {tuple(example.shape)}{line}: {reason}"
        ) from error
    for node in [*graph.nodes]:
        if node.target is torch._assert:
            graph.erase_node(node)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or _writes(root, node))
    _out_of_place(root, graph)
    _own_modules(root, graph)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return root, graph


def raised_at(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """Where a network's own code raised an error that has been caught: the layer's path, and words for the line.

    Args:
        model: that ran.
        error: as the frame that called it caught it.

    Returns:
        The path of the innermost module whose code was running; " at line N of FILE, `CODE`" if it is not torch's.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    layer, line = "", ""
    for frame, number in [*walk_tb(error.__traceback__)][1:]:  # the first is the frame that caught it
        path = paths.get(id(frame.f_locals.get("".join(frame.f_code.co_varnames[:1]))))
        if path is None:
            continue
        line = line if path == layer else ""
        layer, code = path, frame.f_code.co_filename
        if not frame.f_globals["__name__"].startswith("torch."):
            line = f" at line {number} of {Path(code).name}, `{linecache.getline(code, number).strip()}`"
    return layer, line


class _Value(fx.Proxy):
    """A traced value whose shape can be read, unpacked, compared and counted with."""

    @property
    def example(self) -> Any:
        return self.node.meta["value"]

    def __getattr__(self, name: str) -> Any:
        if name in SHAPE_ATTRIBUTES:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def _known(self) -> Any:
        if not _follows_from_shapes(self.node):
            raise TypeError("it decides by the values of its input")
        return self.example

    def __len__(self) -> int:
        return len(self.example)

    def __int__(self) -> int:
        return int(self._known())

    def __index__(self) -> int:
        return operator.index(self._known())

    def __float__(self) -> float:
        return float(self._known())


class _Tracer(fx.Tracer):
    """Runs each node on an example while it is recorded."""

    def __init__(self, root: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.shadow = copy.deepcopy(root)  # what runs: the parameters of the traced module give proxies meanwhile
        self.example = example.clone()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The batch is the only input: what else ``forward`` takes has its default."""
        del is_module, concrete_args
        _, name, *_ = [*inspect.signature(root_fn).parameters, "input"]
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("torch.nn.modules") and not [*m.children()]
        return ours or isinstance(m, Nonlinearity)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "get_attr":  # buffers and constants, for which torch makes a node and no proxy
            node.meta["value"] = self._run(node)
        return node

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        proxy.node.meta["value"] = self._run(proxy.node)
        return proxy

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda other: other.meta["value"])
        match node.op:
            case "placeholder":
                return self.example
            case "get_attr":
                try:
                    return operator.attrgetter(str(node.target))(self.shadow)
                except AttributeError:  # a tensor that the code has just made, which torch keeps at the traced module
                    return operator.attrgetter(str(node.target))(self.root)
            case "call_module":
                module = self.shadow.get_submodule(str(node.target))
                return type(module).forward(module, *args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "call_function":
                return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        return None

    def to_bool(self, obj: fx.Proxy) -> bool:
        if not _follows_from_shapes(obj.node):
            raise ValueError("it decides by the values of its input, and a saved network is the same for all inputs")
        return bool(obj.node.meta["value"])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = obj.node.meta["value"]
        if not isinstance(value, (tuple, list, Tensor)):
            return super().iter(obj)
        return iter([obj[index] for index in range(len(value))])  # pyright: ignore[reportIndexIssue]


def _follows_from_shapes(node: fx.Node) -> bool:
    """Whether a value is the same for all inputs of one shape."""
    if isinstance(node.meta["value"], Tensor) or node.op not in ("call_function", "call_method"):
        return False
    reads = node.target in SHAPE_METHODS or (node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES)
    return reads or all(_follows_from_shapes(source) for source in node.all_input_nodes)


def _writes(root: nn.Module, node: fx.Node) -> bool:
    """Whether an operator changes its first argument."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    named = isinstance(name, str) and name.endswith("_") and not name.endswith("__")
    return node.target in IN_PLACE or named or bool(node.kwargs.get("inplace"))


def _out_of_place(root: nn.Module, graph: fx.Graph) -> None:
    """Take every operator that works in place out of place; who read the changed value later reads the new one."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in [*graph.nodes]:
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or not _writes(root, node):
            continue
        value = changed.meta["value"]
        if isinstance(value, Tensor):
            for other in order:
                if order[other] < order[node] and _share(other.meta.get("value"), value):
                    later = [user for user in other.users if order[user] > order[node]]
                    if later and not _same_view(other.meta["value"], value):
                        raise ValueError(
                            f"{node.name} works in place on a part of a value that {later[0].name} reads again; "
                            "write it out of place"
                        )
                    other.replace_all_uses_with(node, lambda user, later=later: user in later)
        _plain(root, node)


def _plain(root: nn.Module, node: fx.Node) -> None:
    """The operator that does the same and leaves its argument alone."""
    if node.op == "call_module":
        root.get_submodule(str(node.target)).inplace = False  # pyright: ignore[reportArgumentType]
    elif node.target in IN_PLACE:
        node.target = IN_PLACE[node.target]  # pyright: ignore[reportArgumentType]
    elif node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
    elif node.target is F.relu_ or node.target is torch.relu_:
        node.target = torch.relu
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}


def _share(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or not one.numel():
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _same_view(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.stride(), one.storage_offset()) == (other.shape, other.stride(), other.storage_offset())


def _own_modules(root: nn.Module, graph: fx.Graph) -> None:
    """A module of its own for each call of a ReLU, and of a function that torch.nn has as a layer."""
    taken: set[str] = set()
    for node in graph.nodes:
        module = _module_of(root, node)
        if module is None:
            continue
        called = node.op == "call_module"
        path = str(node.target) if called else _place(node, type(module).__name__.lower())
        if not called or path in taken:
            path = _free(root, path)
            root.get_submodule(path.rpartition(".")[0]).add_module(path.rpartition(".")[2], module)
        taken.add(path)
        node.op, node.target, node.args, node.kwargs = "call_module", path, (node.args[0],), {}


def _module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The layer of its own that stands for a call; None where the call stays."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return nn.ReLU() if type(module) is nn.ReLU else None
    if node.target in DROPOUTS:
        given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
        if given.get("training", True):
            raise ValueError(
                f"{_place(node, node.name)}: dropout is called without training=self.training, and drops in evaluation "
                "too; say it there, or take torch.nn.Dropout"
            )
        return DROPOUTS[node.target](given.get("p", 0.5))  # pyright: ignore[reportArgumentType]
    if node.target in ACTIVATIONS:
        return ACTIVATIONS[node.target](**node.kwargs)  # pyright: ignore[reportArgumentType]
    if node.target in (F.max_pool2d, torch.max_pool2d):
        names = ("kernel_size", "stride", "padding", "dilation")
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        plain = not any(isinstance(value, fx.Node) for value in given.values())
        return nn.MaxPool2d(**{name: given[name] for name in names if given.get(name)}) if plain else None  # pyright: ignore
    method = node.op == "call_method"
    if node.target in RELUS or (method and node.target == "relu"):
        return nn.ReLU()
    if node.target in FLOORS or (method and node.target in ("clamp", "clamp_min", "clip")):
        low, high = [*node.args[1:], None, None][:2]
        low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
        return nn.ReLU() if isinstance(low, (int, float)) and low == 0 and high is None else None
    return None


def _place(node: fx.Node, name: str) -> str:
    """Where in the network's own code a call stands, with ``name`` behind it."""
    stack = [*(node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1][0] if stack else ""
    return f"{path}.{name}" if path else name


def _free(root: nn.Module, path: str) -> str:
    """A path like ``path`` at which there is nothing yet."""
    parent, _, name = path.rpartition(".")
    number, unique = 1, name
    while hasattr(root.get_submodule(parent), unique):
        number += 1
        unique = f"{name}_{number}"
    return f"{parent}.{unique}" if parent else unique
