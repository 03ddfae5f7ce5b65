"""Redesign convolutional networks for private inference: count, design, train, remove ReLUs, price, run.

    import deepreshape as dr

    small, record = dr.linearize(network, SNL(budget=2_000), data)    # fewer ReLUs
    print(dr.price(small, data.shape, link="wan"))                    # what one private inference costs
    answer = dr.run_private(dr.lower(small, data), image)             # both parties, in two processes

Importing this package is cheap: each name is imported from its module, and torch with it, when it is first used.
:class:`Client`, :class:`Server` and :func:`run_private` need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepreshape.counting import count
    from deepreshape.data import Dataset
    from deepreshape.design import equalize
    from deepreshape.models import Architecture, architecture, build
    from deepreshape.models.saved import load, save
    from deepreshape.pricing.network import price
    from deepreshape.private.program.lower import lower
    from deepreshape.private.service.predict import Client, Server, run_private, segment_private
    from deepreshape.removal import linearize
    from deepreshape.training import Recipe, train

_HOME = {
    "Architecture": "deepreshape.models",
    "Client": "deepreshape.private.service.predict",
    "Dataset": "deepreshape.data",
    "Recipe": "deepreshape.training",
    "Server": "deepreshape.private.service.predict",
    "architecture": "deepreshape.models",
    "build": "deepreshape.models",
    "count": "deepreshape.counting",
    "equalize": "deepreshape.design",
    "linearize": "deepreshape.removal",
    "load": "deepreshape.models.saved",
    "lower": "deepreshape.private.program.lower",
    "price": "deepreshape.pricing.network",
    "run_private": "deepreshape.private.service.predict",
    "save": "deepreshape.models.saved",
    "segment_private": "deepreshape.private.service.predict",
    "train": "deepreshape.training",
}

__all__ = [
    "Architecture",
    "Client",
    "Dataset",
    "Recipe",
    "Server",
    "architecture",
    "build",
    "count",
    "equalize",
    "linearize",
    "load",
    "lower",
    "price",
    "run_private",
    "save",
    "segment_private",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("deepreshape")
    if name not in _HOME:
        raise AttributeError(f"module 'deepreshape' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
