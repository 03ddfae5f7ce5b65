"""The optimizer of a recipe, with the parameters in groups, and its learning rate over a run."""

from __future__ import annotations

from math import cos, pi

import torch
from torch import nn

from deepreshape.training.hooks import Hook
from deepreshape.training.muon import Muon
from deepreshape.training.recipe import Recipe

__all__ = ["make_optimizer", "set_rate"]


def make_optimizer(model: nn.Module, recipe: Recipe, hook: Hook | None) -> torch.optim.Optimizer:
    """The recipe's optimizer; each group has its peak learning rate as ``peak``.

    Args:
        model: whose parameters it moves.
        recipe: with rates and decay.
        hook: whose gates are a group of their own.
    """
    gates = hook.gates() if hook else []
    convolutions = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    named = {id(parameter) for parameter in (*gates, *convolutions, *linear)}
    other = recipe.lr * recipe.lr_other
    kinds = (
        (convolutions, recipe.weight_decay, recipe.lr, True),
        (linear, recipe.weight_decay, other, False),
        ([parameter for parameter in model.parameters() if id(parameter) not in named], 0.0, other, False),
        (gates, 0.0, hook.gate_lr if hook else 0.0, False),
    )
    groups = [
        {"params": some, "weight_decay": decay, "peak": peak, "orthogonal": orthogonal}
        for some, decay, peak, orthogonal in kinds
        if some
    ]
    if recipe.optimizer == "muon":
        return Muon(groups)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    """Set the learning rates of the step at this share of the run."""
    share = _share(recipe, done)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _share(recipe: Recipe, done: float) -> float:
    """Share of the peak learning rate when this share of the run is done."""
    if done < recipe.warmup:
        return done / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    left = (1 - done) / (1 - recipe.warmup) if recipe.warmup < 1 else 1.0
    return left if recipe.schedule == "onecycle" else (1 - cos(pi * left)) / 2
