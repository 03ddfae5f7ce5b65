"""The trace of a torch network: torch.export's graph, node by node, as layers with real weights.

The exported graph is functional: nothing in it works in place, dropout is gone, and every value has one node. A node
whose inputs are the network's own tensors is computed at once, so that weights which are themselves computed
(parametrizations, ``weight * 2``) are constants like others. Every value has a name that no other one gets.
"""

from __future__ import annotations

import logging
import operator
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from deepreshape.counting import check_one_input
from deepreshape.models.foreign.call_sites import raised_at
from deepreshape.private.program.graph import Graph, Traced
from deepreshape.private.program.ops import INPUT, ProgramError, Shape
from deepreshape.private.program.program import NAME

__all__ = [
    "Handler",
    "Problem",
    "Trace",
    "UnsupportedNetworkError",
    "UnsupportedOperatorError",
    "by_kind",
    "evaluating",
    "trace",
]

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What cannot be lowered: the layer's path, the operator, why not, and what would do instead if that is known."""

    layer: str
    operator: str
    reason: str
    instead: str = ""

    def __str__(self) -> str:
        where = f"{self.layer}: " if self.layer else ""
        return f"{where}{self.reason}" + (f"; {self.instead}" if self.instead else "")


def by_kind(problems: Sequence[Problem]) -> list[str]:
    """A line for each kind of problem, with the layers that have it; of many layers the first three, and how many."""
    layers: dict[Problem, list[str]] = {}
    for problem in problems:
        layers.setdefault(replace(problem, layer=""), []).append(problem.layer)
    more = [f" and {len(names) - 3} more" * (len(names) > 3) for names in layers.values()]
    return [
        str(replace(problem, layer=", ".join(names[:3]) + rest))
        for (problem, names), rest in zip(layers.items(), more, strict=True)
    ]


class UnsupportedNetworkError(ProgramError):
    """A network has parts that cannot be lowered.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: Sequence[Problem], known: str = "") -> None:
        super().__init__("; ".join(by_kind(problems)) + known)
        self.problems = tuple(problems)


class UnsupportedOperatorError(Exception):
    """Raised by a handler: why its operator cannot be lowered, and what would do instead."""

    def __init__(self, reason: str, instead: str = "") -> None:
        super().__init__(reason)
        self.instead = instead


class Trace:
    """Turns the nodes of an exported graph into layers, in order, and gathers what it cannot turn.

    Attributes:
        layers, shapes: so far; shapes are without the batch axis.
        problems: what cannot be lowered.
        outputs: names of the values that the network gives.
        finishing: for outputs by name, what is left to the client: a softmax over an axis of the batch.
    """

    def __init__(self, model: nn.Module, handlers: Mapping[str, Handler]) -> None:
        self.model = model
        self.handlers = handlers
        self.layers: list[Traced] = []
        self.shapes: dict[str, Shape] = {}
        self.problems: list[Problem] = []
        self.outputs: list[str] = []
        self.finishing: dict[str, Callable[[Tensor], Tensor]] = {}
        self._constants: dict[fx.Node, Any] = {}
        self._names: dict[fx.Node, str] = {}
        self._parts: dict[fx.Node, Sequence[str]] = {}
        self._shapeless: set[fx.Node] = set()
        """Values of problems, whose first axis is not the batch: what reads them says nothing new."""

    def graph(self) -> Graph:
        """What has been traced, if there are no problems."""
        return Graph(self.layers, self.outputs, self.shapes)

    def add(self, node: fx.Node, held: Mapping[str, tuple[str, Tensor]]) -> None:
        """Turn one node. ``held``: path and value of the network's own tensors, by the name of their node."""
        if node.op == "placeholder":
            if node.name in held:
                path, tensor = held[node.name]
                self._constants[node] = tensor
                if node.users:
                    self._check_constant(path, tensor)
            else:
                self._names[node] = INPUT
                self.shapes[INPUT] = self.shape(node)
        elif node.op == "call_function" and not self._fold(node) and not self._take_part(node):
            self._call(node)

    def end(self, outputs: Sequence[Any]) -> None:
        """Note which nodes the network gives."""
        for output in outputs:
            if not isinstance(output, fx.Node) or output in self._constants:
                self.problems.append(Problem("", "output", "an output does not depend on the input"))
            elif output in self._names:
                self.outputs.append(self._names[output])
        if len(set(self.outputs)) < len(self.outputs):
            self.problems.append(Problem("", "output", "the network gives one value twice", "return it once"))

    def _fold(self, node: fx.Node) -> bool:
        """Compute a node that depends on nothing but the network's own tensors; whether it was one."""
        if any(source not in self._constants for source in node.all_input_nodes):
            return False
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            return False
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._constants[source])
        self._constants[node] = cast(Callable[..., Any], node.target)(*args, **kwargs)
        return True

    def _take_part(self, node: fx.Node) -> bool:
        """Name one of several values that an operator gives; whether the node reads one."""
        if node.target is not operator.getitem:
            return False
        source, index = cast(tuple[fx.Node, int], node.args)
        parts = self._parts.get(source, ())
        if index < len(parts):
            self._names[node] = parts[index]
        else:  # of an operator that is a problem, or becomes one here
            if parts:
                name = str(source.target).removeprefix("aten.").rpartition(".")[0]
                self.problems.append(Problem(parts[0], name, "only the values are computed, not where they were"))
            self._stand_in(node, node.name)
        return True

    def _stand_in(self, node: fx.Node, path: str) -> None:
        """Name a value that cannot be computed, so that what reads it is looked at too."""
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            self._names[node] = self.unique(path)
            self.shapes[self._names[node]] = tuple(value.shape[1:])
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != 1:
            self._shapeless.add(node)

    def _check_constant(self, path: str, tensor: Tensor) -> None:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            layer, _, name = path.rpartition(".")
            reason = f"{count} of {tensor.numel()} values of its {name} are NaN or infinite"
            self.problems.append(Problem(layer or path, name, reason, "load the weights again, or train again"))

    def _call(self, node: fx.Node) -> None:
        name = str(node.target).removeprefix("aten.").rpartition(".")[0]
        path = self._path(node, KINDS.get(name, name))
        handler = self.handlers.get(name)
        try:
            if handler is None:
                raise UnsupportedOperatorError(f"{name} cannot be lowered", INSTEAD.get(name, ""))
            if self._shapeless.isdisjoint(node.all_input_nodes):
                handler(self, node, path)
            else:
                self._stand_in(node, path)
        except UnsupportedOperatorError as error:
            self.problems.append(Problem(path, name, str(error), error.instead))
            self._stand_in(node, path)

    def _path(self, node: fx.Node, kind: str) -> str:
        """The layer's path; for an operator in a larger module's own code, that and the operator."""
        stack = list(cast(dict[str, tuple[str, Any]], node.meta.get("nn_module_stack") or {}).values())
        path = re.sub(r"@\d+", "", stack[-1][0]) if stack else ""
        module = self.model.get_submodule(path) if path else self.model
        if not path or list(module.children()):
            path = f"{path}.{kind}" if path else kind
        path = self.unique(path)
        return path if NAME.fullmatch(path) else self.unique(node.name)

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it if a value has it."""
        unique, number = name, 1
        while unique in self.shapes or unique == INPUT:
            number += 1
            unique = f"{name}.{number}"
        return unique

    def append(self, layer: Traced, shape: Sequence[int]) -> str:
        """Add a layer, whose value has that shape; its name."""
        if layer.name in self.shapes:
            raise RuntimeError(f"two values are called {layer.name}")
        self.layers.append(layer)
        self.shapes[layer.name] = tuple(int(side) for side in shape)
        return layer.name

    def bind(self, node: fx.Node, *names: str) -> None:
        """Let the value of ``node`` be the one of that name; of several names if it gives several values."""
        if isinstance(node.meta.get("val"), Tensor):
            self._names[node] = names[0]
        else:
            self._parts[node] = names

    def shape(self, node: fx.Node) -> Shape:
        """Shape of a node's value for one input.

        Raises:
            UnsupportedOperatorError: if it has no axis for the batch.
        """
        size = cast(Tensor, node.meta["val"]).shape
        if not len(size) or size[0] != 1:
            raise UnsupportedOperatorError(
                f"gives a value of shape {tuple(size)} {NO_BATCH}", "keep the first axis for the batch"
            )
        return tuple(int(side) for side in size[1:])

    def source(self, argument: Any) -> str:
        """Name of the value that an argument is.

        Raises:
            UnsupportedOperatorError: if it is one of the network's own tensors or a number.
        """
        if not isinstance(argument, fx.Node) or argument in self._constants:
            raise UnsupportedOperatorError("works on the network's own tensors where it needs a value")
        return self._names[argument]

    def is_value(self, argument: Any) -> bool:
        """Whether an argument depends on the network's input."""
        return isinstance(argument, fx.Node) and argument not in self._constants

    def constant(self, argument: Any, *, as_is: bool = False) -> Tensor:
        """A constant argument as a tensor of float64, or of its own type.

        Raises:
            UnsupportedOperatorError: if it depends on the network's input, or is complex.
        """
        if isinstance(argument, fx.Node):
            if argument not in self._constants:
                raise UnsupportedOperatorError("its weights are computed from the input", "only its own can be used")
            argument = self._constants[argument]
        tensor = torch.as_tensor(argument).detach().cpu()
        if tensor.is_complex():
            raise UnsupportedOperatorError(
                "its weights are complex numbers", "take a channel for each of the two parts"
            )
        return tensor if as_is else tensor.to(torch.float64)

    def is_public(self, argument: Any) -> bool:
        """Whether a constant is a number in the network's code, and none of its weights."""
        if not isinstance(argument, fx.Node):
            return True
        return argument.op != "placeholder" and not argument.all_input_nodes and self._constants[argument].dim() == 0

    def arguments(self, node: fx.Node) -> list[Any]:
        """All arguments of a node in the operator's order, its defaults filled in."""
        known = cast(Any, node.target)._schema.arguments
        given = [*node.args, *(argument.default_value for argument in known[len(node.args) :])]
        names = [argument.name for argument in known]
        for name, value in node.kwargs.items():
            given[names.index(name)] = value
        return given

    def is_output(self, node: fx.Node) -> bool:
        """Whether nothing but the network's end reads a node."""
        return all(user.op == "output" for user in node.users)


Handler = Callable[[Trace, fx.Node, str], None]
"""Turns a node into layers; the last argument is the path, a new name."""

KINDS = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_unsafe_view": "reshape",
    "view": "reshape",
}
"""What an operator of a network's own code is called in the name of its value, if not as the operator is."""

NO_BATCH = "for a batch of one"
ATTENTION = "scaled_dot_product_attention"
SUBSTITUTE = "take a ReLU (`deepreshape substitute --activation relu`)"
HARD = "take a hard {} (`deepreshape substitute --activation hard`)"
NORM = "write torch.nn.BatchNorm2d there and train the network again"
GROUPS = "take a batch norm (`deepreshape substitute --norm batch`)"
NO_PRODUCT = "of two values, only products element by element are computed"
INSTEAD = {
    **dict.fromkeys(("gelu", "elu", "celu", "selu", "mish", "softplus"), SUBSTITUTE),
    **dict.fromkeys(("logsigmoid", "log_sigmoid", "softsign", "glu", "rrelu"), SUBSTITUTE),
    "silu": f"{SUBSTITUTE}, or {HARD}".format("swish"),
    "tanh": f"{SUBSTITUTE}, or {HARD}".format("tanh"),
    "sigmoid": f"{HARD} inside, and let the client apply it at the end".format("sigmoid"),
    "layer_norm": NORM,
    "group_norm": GROUPS,
    **dict.fromkeys(("softmax", "log_softmax"), "at the end it is the client's; inside, nothing exact does instead"),
    **dict.fromkeys(("max_pool3d", "avg_pool3d", "conv3d"), "take layers over two axes"),
    ATTENTION: "attention multiplies values by one another; take convolutions",
    **dict.fromkeys(("bmm", "baddbmm", "div"), NO_PRODUCT),
    "einsum": f"if it is by weights, write matmul or a convolution; {NO_PRODUCT}",
}
"""What does much the same as an operator that cannot be lowered."""


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """A network in evaluation mode, without gradients; modes are as they were afterwards."""
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
    names = "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor"
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _failure(model: nn.Module, shape: Sequence[int], error: BaseException) -> Problem:
    """Why a network has no trace."""
    layer, line = raised_at(model, error)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if "data-dependent" in reason:
        reason = f"it decides by the values of its input{line}, and a program is the same for all inputs"
        instead = "leave such a check to who calls the network" if "assert" in line else ""
        return Problem(layer, "", f"the network cannot be traced: {reason}", instead)
    return Problem(layer, "", f"the network cannot be traced on an input of shape {tuple(shape)}{line}: {reason}")


def trace(model: nn.Module, shape: Sequence[int], handlers: Mapping[str, Handler]) -> Trace:
    """The layers of ``model`` in evaluation mode for an input of that shape, or why there are none."""
    try:
        check_one_input(model)
    except ValueError as error:
        result = Trace(model, handlers)
        result.problems.append(Problem("", "input", *str(error).split("; ")))
        return result
    parameter = next(model.parameters(), torch.zeros(()))
    example = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    result = Trace(model, handlers)
    with evaluating(model):
        try:
            with _quiet():
                exported = torch.export.export(model, (example,), strict=False)
                exported = exported.run_decompositions({})  # pyright: ignore[reportUnknownMemberType]
        except Exception as error:  # whatever the network's own code raises; torch wraps it in many types
            result.problems.append(_failure(model, shape, error))
            return result
        signature = exported.graph_signature
        tensors = {**exported.state_dict, **exported.constants}
        paths = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        held = {name: (path, cast(Tensor, tensors[path]).detach().cpu()) for name, path in paths.items()}
        for node in exported.graph.nodes:
            result.add(node, held)
    ends = {node.name: node for node in exported.graph.nodes}
    result.end([ends.get(name) for name in signature.user_outputs if isinstance(name, str)])
    result.problems[:] = _without_consequences(result.problems)
    return result


def _without_consequences(problems: Sequence[Problem]) -> list[Problem]:
    """The problems without those of axes that are moved around an attention, which go with it."""
    layers = [each.layer.rpartition(".")[0] for each in problems if each.operator == ATTENTION]
    around = tuple(f"{layer}." for layer in layers if layer)
    return [each for each in problems if NO_BATCH not in each.reason or not each.layer.startswith(around)]
