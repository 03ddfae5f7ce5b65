"""Where images lie below a folder: which of its folders are splits, and which classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

__all__ = ["PARTS", "class_of", "images_below", "split_folders"]

PARTS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
"""Splits, and what their folders may be called, in letters of either case."""
WORDS = frozenset(chain(*PARTS.values()))
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of ``root`` that are splits; none if it has no such folders, and classes at once.

    Raises:
        ValueError: if it can be read in two ways: a split has two folders, or there are images beside the splits.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits: dict[str, Path] = {}
    for part, words in PARTS.items():
        named = [path for path in folders if path.name.lower() in words]
        if len(named) > 1:
            raise ValueError(
                f"{root} has {named[0].name} and {named[1].name}, which are both words for {part}; leave one of them"
            )
        if named:
            splits[part] = named[0]
    if "train" not in splits:
        # a class may be called "valid", and then has its images in it
        if nested := next((path for path in splits.values() if images_below(path, root)), None):
            raise ValueError(
                f"{nested} has folders of images, as a split has, and there is no {root / 'train'}; call the folder of "
                f"the training images train or, if {nested.name} is a class, give it another name"
            )
        return {}
    for path in folders:
        if path not in splits.values() and any(_images(path)):
            raise ValueError(
                f"{path} has images beside the split {splits['train'].name}; move it away or, if "
                f"{splits['train'].name} is a class, give that another name"
            )
    return splits


def images_below(where: Path, root: Path) -> list[str]:
    """Paths below ``root`` of the pictures in the folders of ``where``, sorted; what is hidden is left out.

    Raises:
        ValueError: if two folders are one, by a link.
    """
    return [path.relative_to(root).as_posix() for path in sorted(_images(where)) if path.parent != where]


def class_of(file: str) -> str:
    """The class of a path that :func:`images_below` gives."""
    first, *rest = file.split("/")
    return rest[0] if first.lower() in WORDS and len(rest) > 1 else first


def _images(where: Path) -> Iterator[Path]:
    """The pictures in ``where`` and below, through links."""
    top, seen = where.resolve(), dict[Path, Path]()
    for name, folders, files in os.walk(where, followlinks=True):
        folder = Path(name)
        real = folder.resolve()
        if real in seen or (real != top and top.is_relative_to(real)):
            other = seen.get(real, where)
            raise ValueError(
                f"{folder} and {other} are the same folder by a link, and their images would count twice; remove one"
            )
        seen[real] = folder
        folders[:] = [each for each in folders if not each.startswith(".")]
        yield from (
            folder / file for file in files if Path(file).suffix.lower() in ENDINGS and not file.startswith(".")
        )
