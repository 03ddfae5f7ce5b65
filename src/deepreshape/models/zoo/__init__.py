"""Small trained networks that come with the package; wherever a saved model's folder is asked for, ``zoo:NAME`` is one.

Each is a folder here, with weights (safetensors) and a manifest whose history says how it was made.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["called", "folder_of", "names"]

ZOO = Path(__file__).parent
PREFIX = "zoo:"


def names() -> tuple[str, ...]:
    """Of all networks in the zoo."""
    return tuple(sorted(manifest.parent.name for manifest in ZOO.glob("*/manifest.json")))


def called(folder: Path) -> str:
    """What a command calls a saved model: ``zoo:NAME``, or its folder's own name."""
    return f"{PREFIX}{folder.name}" if folder.parent == ZOO else folder.name


def folder_of(model: str) -> Path:
    """The folder meant by ``zoo:NAME`` or by a path.

    Raises:
        ValueError: if the zoo has no network of that name.
    """
    name = model.removeprefix(PREFIX)
    if name == model:
        return Path(model)
    if name not in names():
        raise ValueError(f"there is no {name!r} in the zoo; it has {', '.join(names())}")
    return ZOO / name
