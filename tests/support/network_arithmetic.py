"""ReLUs, comparisons, squares and multiply-adds of a network by the shapes of its calls, beside our counter.

The counter watches ATen's operators in a dispatch mode. Here the functions are watched that modules call, and each
number is the textbook's formula on the shapes that go in and come out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode


def _pooled(x: Tensor, out: Tensor, kernel: Any) -> int:
    sides = [kernel, kernel] if isinstance(kernel, int) else [*kernel]
    return out.numel() * (prod(sides) - 1)


def _adaptive(x: Tensor, out: Tensor) -> int:
    """Windows from floor(i n / k) to ceil((i + 1) n / k) along each side."""
    lengths = [
        sum((-(-(i + 1) * n // k)) - i * n // k for i in range(k))
        for n, k in zip(x.shape[2:], out.shape[2:], strict=True)
    ]
    return x.shape[0] * x.shape[1] * prod(lengths) - out.numel()


class Arithmetic(TorchFunctionMode):
    """Adds up ``relus``, ``maxpool_comparisons``, ``macs``, ``squares`` and ``pairs`` of what runs inside ``with``.

    A product of two values is two squares an element.

    ``pairs`` are comparisons of activations that the counter does not call ReLUs: two an element of a clamp between
    two bounds, a second one of a ReLU6, a hard sigmoid or a hard swish, one of a maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if rule := RULES.get(func):
            given = dict(zip(NAMES.get(func, ()), args[1:], strict=False)) | (kwargs or {})
            self.total.update(rule(args[0], out, given))
        return out


NAMES: dict[Any, tuple[str, ...]] = {
    torch.conv2d: ("weight",),
    torch.conv_transpose2d: ("weight",),
    F.linear: ("weight",),
    F.max_pool2d: ("kernel_size",),
    F.hardtanh: ("min_val", "max_val"),
    Tensor.clamp: ("min", "max"),
    Tensor.mul: ("other",),
}
Rule = Callable[[Tensor, Tensor, dict[str, Any]], dict[str, int]]
_relu: Rule = lambda x, out, given: {"relus": x.numel()}  # noqa: E731
_sixth: Rule = lambda x, out, given: {"relus": x.numel(), "pairs": x.numel()}  # noqa: E731
_two: Rule = lambda x, out, given: {"pairs": 2 * x.numel()}  # noqa: E731
RULES: dict[Any, Rule] = {
    torch.conv2d: lambda x, out, given: {"macs": out.numel() * given["weight"][0].numel()},
    torch.conv_transpose2d: lambda x, out, given: {"macs": x.numel() * given["weight"][0].numel()},
    F.linear: lambda x, out, given: {"macs": out.numel() * x.shape[-1]},
    F.max_pool2d: lambda x, out, given: {"maxpool_comparisons": _pooled(x, out, given["kernel_size"])},
    F.adaptive_max_pool2d: lambda x, out, given: {"maxpool_comparisons": _adaptive(x, out)},
    Tensor.amax: lambda x, out, given: {"maxpool_comparisons": x.numel() - out.numel()},
    F.relu: _relu,
    F.relu_: _relu,
    torch.relu_: _relu,
    F.leaky_relu: _relu,
    torch.prelu: _relu,
    F.hardtanh: _sixth,  # of ReLU6
    Tensor.clamp: _two,
    F.hardsigmoid: _sixth,
    F.hardswish: lambda x, out, given: {**_sixth(x, out, given), "squares": x.numel()},
    torch.maximum: lambda x, out, given: {"pairs": out.numel()},
    Tensor.mul: lambda x, out, given: {"squares": 2 * out.numel() * isinstance(given["other"], Tensor)},
}


def arithmetic(model: nn.Module, x: Tensor) -> Counter[str]:
    """The numbers of one pass of a batch through ``model``."""
    with torch.no_grad(), Arithmetic() as mode:
        model(x)
    return mode.total
