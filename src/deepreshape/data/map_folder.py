"""Images of your own with a class for each pixel: pictures in ``images``, maps of the same names in ``maps``.

``ROOT/images/**/NAME.jpg`` and ``ROOT/maps/**/NAME.png``, or both in ``ROOT/{train,validation,test}``; splits that are
not there are taken as :mod:`.folder` takes them. A map has one channel or a palette, whose values are the classes, 255
where none is known. ``ROOT/classes.txt`` names them, a line each, with a colour behind the name if pictures are to have
it: ``road #804080``. Without it they are numbers, as many as the training maps have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepreshape.data.augment import VOID
from deepreshape.data.class_maps import as_class_map
from deepreshape.data.dataset import Dataset, Split
from deepreshape.data.folder import GREY, as_tensor, opened, split_files
from deepreshape.data.folder_tree import images_below, split_folders
from deepreshape.data.images import Chosen, ReadImages, statistics

__all__ = ["from_map_folder", "has_maps"]

IMAGES, MAPS, NAMES = "images", "maps", "classes.txt"
MAP_ENDINGS = (".png", ".bmp", ".gif", ".tif", ".tiff")
ORIENTATION = 0x0112
"""The field of EXIF data that says how a picture is turned."""
_LINE = re.compile(r"(?P<name>.*?)(?:\s+#(?P<colour>[0-9a-fA-F]{6}))?")

Colour = tuple[int, int, int]


def has_maps(root: Path) -> bool:
    """Whether a folder holds images with maps, and not images in folders named by class."""
    if not root.is_dir():
        return False
    where = split_folders(root).get("train", root)
    return all((where / what).is_dir() for what in (IMAGES, MAPS))


def from_map_folder(
    root: Path, side: int | None = None, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> Dataset:
    """A data set of such a folder; images are read when they are asked for, maps at once.

    Args:
        root: as the module says.
        side: images and maps are scaled and cropped at the centre to a square of so many pixels, maps to the nearest
            pixel. Without it they keep the size that they all have.
        mean: by channel, on the scale 0 to 1, that images are normalised by; of the training images without.
        std: alike.

    Raises:
        ValueError: if the folder, an image or a map is not as it should be; the message says what would work.
    """
    files = split_files(root, lambda where: _pairs_below(root, where))
    names, colours = _names(root)
    every = [file for split in files.values() for file in split]
    pictures = _Pictures(root, side)
    labels = {part: torch.stack([pictures.map_of(file, len(names) or VOID) for file in files[part]]) for part in files}
    if not names:
        names = tuple(map(str, range(_largest(labels["train"]) + 1)))
        if absent := {*range(len(names))} - {*labels["train"].unique().tolist()}:
            raise ValueError(
                f"{root}: maps of train have class {len(names) - 1} and nowhere class {min(absent)}; {NAMES} says how "
                "many classes there are"
            )
        for part, maps in labels.items():
            if _largest(maps) >= len(names):
                raise ValueError(
                    f"{root}: a map of {part} has class {_largest(maps)}, and those of train have {len(names)} "
                    f"classes, 0 to {len(names) - 1}; {NAMES} may name more"
                )
    if len(names) < 2:
        raise ValueError(f"the maps of {root} have {len(names)} class, and there are to be two or more")
    images = ReadImages(len(every), lambda place: pictures.image(every[place]), lambda place: root / every[place])
    splits: dict[str, Split] = {}
    start = 0
    for part, maps in labels.items():
        splits[part] = Split(Chosen(images, torch.arange(start, start + len(maps))), maps)
        start += len(maps)
    known = statistics(splits["train"].images) if not mean or not std else ((), ())
    word = f"folder:{root}" + (f":{side}" if side else "")
    three = splits["train"], splits["validation"], splits["test"]
    return Dataset(word, *three, names, tuple(mean) or known[0], tuple(std) or known[1], colours)


def _largest(maps: Tensor) -> int:
    """The largest class of maps that have a class anywhere; -1 of others."""
    return max(maps[maps != VOID].tolist(), default=-1) if maps.numel() else -1


class _Pictures:
    """Reads images and maps, all of one size; images are grey if all are, once their maps have been read."""

    def __init__(self, root: Path, side: int | None) -> None:
        self.root, self.side = root, side
        self.size: tuple[int, int] | None = None
        self.mode: str | None = None

    def image(self, file: str) -> Tensor:
        """The image at a path below the root, uint8 (C, H, W)."""
        from PIL import Image, ImageOps

        with opened(self.root / file) as picture:
            square = (self.side, self.side) if self.side else picture.size
            return as_tensor(ImageOps.fit(picture.convert(self.mode or "RGB"), square, Image.Resampling.BILINEAR))

    def map_of(self, file: str, classes: int) -> Tensor:
        """The map of an image, uint8 (H, W)."""
        from PIL import Image, ImageOps

        with opened(self.root / file) as picture:
            size, mode = picture.size, "L" if picture.mode in GREY else "RGB"
            turned = picture.getexif().get(ORIENTATION, 1) != 1
        if turned:
            raise ValueError(f"{self.root / file} is turned by its EXIF data, and its map is not; save it upright")
        self.mode = self.mode if self.mode == "RGB" else mode
        if not self.side and size != (self.size or size):
            (width, height), (wide, high) = size, self.size or size
            raise ValueError(
                f"images in {self.root} have several sizes, such as {wide}x{high} and {width}x{height}; say the side "
                f"of the squares that they are cropped to, as folder:{self.root}:64"
            )
        self.size = size
        path = self.root / _map_path(self.root, file)
        with opened(path) as picture:
            labels = as_class_map(picture, path, size, classes)
        if not self.side:
            return labels
        square = ImageOps.fit(Image.fromarray(labels.numpy()), (self.side, self.side), Image.Resampling.NEAREST)
        return as_class_map(square, path, square.size, classes)


def _pairs_below(root: Path, where: Path) -> list[str]:
    """Paths of the images in ``where / images`` below ``root``; each has its map, and there is no other map."""
    files = [path for path in images_below(where, root) if (root / path).is_relative_to(where / IMAGES)]
    maps = {_map_path(root, file) for file in files}
    there = {path for path in images_below(where, root) if (root / path).is_relative_to(where / MAPS)}
    if alone := sorted(there - maps):
        raise ValueError(f"{root / alone[0]} is the map of no image: there is none of that name in {where / IMAGES}")
    if not files:
        raise ValueError(f"{where / IMAGES} holds no images")
    return files


def _map_path(root: Path, file: str) -> str:
    """Where the map of an image is, below the root."""
    parts = file.split("/")
    parts[parts.index(IMAGES)] = MAPS
    stem = "/".join(parts).rpartition(".")[0]
    paths = [stem + ending for ending in MAP_ENDINGS if (root / (stem + ending)).is_file()]
    if not paths:
        raise ValueError(f"{root / file} has no map: there is no {root / stem}.png")
    return paths[0]


def _names(root: Path) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours of the classes, as ``classes.txt`` has them; none without one."""
    path = root / NAMES
    if not path.is_file():
        return (), ()
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    matches = [match for line in lines if (match := _LINE.fullmatch(line)) and match["name"]]
    colours = [match["colour"] for match in matches if match["colour"]]
    if len(matches) != len(lines) or not 2 <= len(lines) <= VOID or len(colours) not in (0, len(lines)):
        raise ValueError(
            f"{path} has {len(lines)} lines, {len(matches)} names and {len(colours)} colours; it is to name 2 to "
            f"{VOID} classes, a line each, with a colour such as #804080 behind all or none"
        )
    if len(set(names := tuple(match["name"] for match in matches))) < len(lines):
        raise ValueError(f"{path} names a class twice")
    return names, tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in colours)
