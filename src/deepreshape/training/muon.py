"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al. 2024).

A step in which no direction is larger than another trains convolutions in fewer epochs than momentum alone, for some
matrix products more a step, which do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonal"]

MOMENTUM = 0.9
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al.: singular values from nearly 0 to 1 end between 0.7 and 1.2 after five rounds."""
ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T, by a quintic Newton-Schulz iteration.

    Each round takes X to P X, with P = a + b G + c G^2 and G = X X^T. As P commutes with G, the rounds are done on the
    square matrix G alone, and X is multiplied once, by the product of all P: for the weight of a 3x3 convolution, nine
    times as wide as high, 36 of 95 n^3 multiply-adds.

    Args:
        matrix: (n, m), any floating dtype.

    Returns:
        (n, m), float32 (float64 for such a matrix), with singular values between 0.7 and 1.2 where those of ``matrix``
        are not tiny.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x if x.dtype == torch.float64 else x.float()
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.T
    product = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for left in reversed(range(ROUNDS)):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial @ product
        if left:
            gram = polynomial @ gram @ polynomial
    x = product @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for the groups that say ``orthogonal``, and Nesterov momentum for all others.

    An orthogonal step moves a weight by ``lr`` times its own length; before it, the weight is brought back to the
    length that unit rows have. Batch norm behind a convolution makes that length meaningless, so weight decay, which
    would only shrink it, has no part here.

    Args:
        groups: parameters with ``lr``, ``weight_decay`` and ``orthogonal``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.1, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of every parameter that has a gradient."""
        assert closure is None  # noqa: S101 - nobody here gives one
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad
                if not group["orthogonal"]:
                    gradient = gradient.add(weight, alpha=group["weight_decay"])
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].mul_(MOMENTUM).add_(gradient)
                update = gradient.add(momentum, alpha=MOMENTUM)
                if group["orthogonal"]:
                    update = orthogonal(update.flatten(1)).view(weight.shape).to(weight.dtype)
                    length = len(weight) ** 0.5
                    weight.mul_(length / weight.norm())
                    update = update * (length / update.norm())
                weight.sub_(update, alpha=group["lr"])
