"""What a removed ReLU is good for: batch norms fold into convolutions, and runs of layers become linear."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["Folded", "fold"]

LINEAR = (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Linear, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Folded:
    """What :func:`fold` did.

    Attributes:
        pairs: (convolution, batch norm) paths that became one convolution.
        chains: runs of at least two convolutions or linear layers with nothing nonlinear, no add and no branch between
            them: candidates for fusion into one layer when the network is lowered.
    """

    pairs: tuple[tuple[str, str], ...]
    chains: tuple[tuple[str, ...], ...]


def fold(model: nn.Module) -> tuple[fx.GraphModule, Folded]:
    """An inference copy of ``model`` in which every batch norm right after a convolution is folded into it.

    Outputs agree with those of ``model`` in evaluation mode up to rounding.
    """
    graph = fx.symbolic_trace(copy.deepcopy(model).eval())
    modules: dict[str, nn.Module] = dict(graph.named_modules())
    pairs: list[tuple[str, str]] = []
    for node in list(graph.graph.nodes):
        norm = _module(node, modules)
        if isinstance(norm, nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            continue
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = _module(before, modules)
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            path = str(before.target)
            modules[path] = fuse_conv_bn_eval(conv, norm)
            graph.set_submodule(path, modules[path])
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
            pairs.append((path, str(node.target)))
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, Folded(tuple(pairs), _chains(graph))


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _chains(graph: fx.GraphModule) -> tuple[tuple[str, ...], ...]:
    modules: dict[str, nn.Module] = dict(graph.named_modules())
    run_of: dict[fx.Node, list[str]] = {}
    runs: list[list[str]] = []
    for node in graph.graph.nodes:
        module = _module(node, modules)
        if not isinstance(module, LINEAR):
            continue
        before = node.args[0]
        alone = isinstance(before, fx.Node) and before in run_of and len(before.users) == 1
        run = run_of[before] if alone else []
        if not alone:
            runs.append(run)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            run.append(str(node.target))
        run_of[node] = run
    return tuple(tuple(run) for run in runs if len(run) > 1)
