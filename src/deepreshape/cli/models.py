"""The network that a word on the command line means."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from deepreshape.models import Architecture, architecture, build
from deepreshape.models.saved import Manifest, load
from deepreshape.zoo import folder_of

__all__ = ["Network", "find_network"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Network:
    """A torch module and the shape of its input; with what is known of where it comes from.

    Attributes:
        module: of a network that is known by its name only, without storage (on the ``meta`` device).
        shape: of one input.
        architecture: of a network by name.
        manifest: of a saved one.
    """

    module: nn.Module
    shape: Shape
    architecture: Architecture | None = None
    manifest: Manifest | None = None


def find_network(model: str, shape: Shape | None = None, classes: int = 100) -> Network:
    """The network meant by a name, a folder, zoo:NAME, package.module:callable or file.py:callable.

    Raises:
        ValueError: if there is none.
    """
    folder = folder_of(model)
    if folder.is_dir():
        saved, manifest = load(folder)
        return Network(saved, shape or manifest.architecture.input, manifest=manifest)
    if ":" in model:
        where, _, name = model.rpartition(":")
        try:
            made = getattr(_imported(where), name)()
        except (ImportError, AttributeError, TypeError, OSError) as error:
            raise ValueError(f"{model!r} does not give a network: {error}") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"{model!r} gives a {type(made).__name__}, not a torch module")
        return Network(made, shape or (3, 32, 32))
    if model.endswith(".py") and Path(model).is_file():
        raise ValueError(f"{model} holds code; say which callable makes the network, such as {model}:net")
    named = architecture(model, shape or (3, 32, 32), classes)
    return Network(build(named, "meta"), named.input, named)


def _imported(where: str) -> ModuleType:
    if not where.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
