"""Redesign convolutional networks for private inference: count, design, train, remove ReLUs, price.

Importing this package is cheap: each name is imported from its module, and torch with it, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepreshape.cost import CostReport, price
    from deepreshape.counting import Count, count
    from deepreshape.data import Dataset
    from deepreshape.design import equalize
    from deepreshape.models import Architecture, architecture, build
    from deepreshape.models.saved import load, save
    from deepreshape.removal import apply, plan
    from deepreshape.training import Recipe, train

_HOME = {
    "Architecture": "deepreshape.models",
    "Count": "deepreshape.counting",
    "CostReport": "deepreshape.cost",
    "Dataset": "deepreshape.data",
    "Recipe": "deepreshape.training",
    "apply": "deepreshape.removal",
    "architecture": "deepreshape.models",
    "build": "deepreshape.models",
    "count": "deepreshape.counting",
    "equalize": "deepreshape.design",
    "load": "deepreshape.models.saved",
    "plan": "deepreshape.removal",
    "price": "deepreshape.cost",
    "save": "deepreshape.models.saved",
    "train": "deepreshape.training",
}

__all__ = [
    "Architecture",
    "CostReport",
    "Count",
    "Dataset",
    "Recipe",
    "apply",
    "architecture",
    "build",
    "count",
    "equalize",
    "load",
    "plan",
    "price",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deepreshape' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
