"""Other modules in a network for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import nn

__all__ = ["swap"]


@contextmanager
def swap(model: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> Generator[None]:
    """Inside, ``model`` has other modules in places, and afterwards its own again, whatever was raised.

    Args:
        model: changed in place, for a while.
        make: told the path of a module and the module, gives what stands there inside, or None to leave it. It is not
            asked about the parts of a module that it replaces. A module that has several paths is asked about at each.
    """
    places: dict[str, nn.Module] = {}
    prefix = ""
    for path, module in [*model.named_modules(remove_duplicate=False)]:
        if not path or (prefix and path.startswith(prefix)):
            continue
        other = make(path, module)
        if other is not None:
            places[path], prefix = other, f"{path}."
    before = {path: model.get_submodule(path) for path in places}
    try:
        for path, module in places.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)
