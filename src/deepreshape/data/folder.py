"""Images of your own in folders named by class, as torchvision's ImageFolder has them.

``ROOT/CLASS/**/image.jpg``, or ``ROOT/{train,validation,test}/CLASS/**/image.jpg``, also by the other words of
:data:`.folder_tree.PARTS`. Splits that are not there are taken from train, the same ones every time: a file's place
follows from its name alone. They are written to ``ROOT/splits.json``, and read from there from then on, so that images
which are added later never move one from test to train.

A folder with ``images`` and ``maps`` in it has a class for each pixel (:mod:`.map_folder`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deepreshape.data.dataset import Dataset, Split
from deepreshape.data.folder_tree import PARTS, class_of, images_below, split_folders
from deepreshape.data.images import Chosen, ReadImages, statistics

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["as_tensor", "from_folder", "load_word", "opened", "split_files"]

SPLITS = "splits.json"
SHARES = {"test": 0.15, "validation": 0.10}
"""Of the images of each class, where a split is not there."""
GREY = ("1", "L", "LA")
WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Of more than 8 bits a pixel, which a conversion would clip."""


def load_word(word: str) -> Dataset:
    """The data set meant by ``folder:PATH`` or ``folder:PATH:SIDE``."""
    path = word.removeprefix("folder:")
    start, colon, side = path.rpartition(":")
    if colon and side.isdigit():
        if not int(side):
            raise ValueError(f"{word} has images of no pixels; give the side of the squares that they are cropped to")
        return from_folder(start, side=int(side))
    return from_folder(path)


def from_folder(
    folder: Path | str,
    *,
    side: int | None = None,
    transform: Callable[[Any], Any] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Dataset:
    """A data set of the images in a folder; they are read when they are asked for.

    Args:
        folder: with a folder for each class, or with ``train`` and the like and classes in them. With ``train`` and
            ``val`` only, ``val`` is the test split and validation is taken from train, as the papers do it.
        side: images are scaled and cropped at the centre to a square of so many pixels. Without it they keep the size
            that they all have.
        transform: from a PIL image to a PIL image, or to a tensor (C, H, W): uint8, or floats as the network sees
            them. Then ``side`` is left out.
        mean: by channel, on the scale 0 to 1, that uint8 images are normalised by, or that the transform has normalised
            by; of the training images without.
        std: alike.

    Raises:
        ValueError: if the folder, a class or an image is not as it should be; the message says what would work.
    """
    from deepreshape.data.map_folder import from_map_folder, has_maps

    root = Path(folder)
    if has_maps(root):
        if transform:
            raise ValueError(f"{root} has maps of classes, which a transform of images alone would leave behind")
        return from_map_folder(root, side, mean, std)
    files, names = _files(root)
    paths = [root / file for split in files.values() for file in split]
    if not transform:
        transform = _converted(_mode(root, files, names, side), side)
    elif side:
        raise ValueError(f"side={side} and a transform both say the size of images; leave one out")

    def read(place: int) -> Tensor:
        with opened(paths[place]) as picture:
            return as_tensor(transform(picture))

    images = ReadImages(len(paths), read, lambda place: paths[place])
    splits: dict[str, Split] = {}
    start = 0
    for name, split in files.items():
        labels = torch.tensor([names.index(class_of(file)) for file in split], dtype=torch.int64)
        splits[name] = Split(Chosen(images, torch.arange(start, start + len(split))), labels)
        start += len(split)
    known = statistics(splits["train"].images) if not mean or not std else ((), ())
    word = f"folder:{folder}" + (f":{side}" if side else "")
    return Dataset(
        word,
        splits["train"],
        splits["validation"],
        splits["test"],
        tuple(names),
        tuple(mean) or known[0],
        tuple(std) or known[1],
    )


def as_tensor(image: Any) -> Tensor:
    """A PIL image, an array (H, W, C) or (H, W), or a tensor (C, H, W), as a tensor (C, H, W): uint8 or float32.

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(image, Tensor):
        tensor = image
    else:
        if hasattr(image, "convert") and image.mode not in ("L", "RGB", *WIDE):
            image = image.convert("L" if image.mode in GREY else "RGB")
        array = np.array(image)
        tensor = torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).movedim(-1, 0)
    if tensor.dim() != 3 or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        raise ValueError(
            f"an image is a PIL image, an array (H, W, C) or a tensor (C, H, W), of uint8 or floats; this is "
            f"{type(image).__name__} of {tensor.dtype}, shape {tuple(tensor.shape)}"
        )
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _files(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """By split, paths of images below ``root``; and the names of the classes, sorted."""
    if not root.is_dir():
        raise ValueError(
            f"there is no folder {root}; --data folder:PATH takes one with a folder of images for each class"
        )
    names: list[str] = []

    def listed(where: Path) -> list[str]:
        files = images_below(where, root)
        classes = {class_of(file) for file in files}
        folders = {path.name for path in where.iterdir() if path.is_dir() and not path.name.startswith(".")}
        if empty := folders - classes:
            raise ValueError(f"{where / min(empty)} has no image; a class needs some, so remove the folder or fill it")
        if not names:  # those of train, which comes first
            names.extend(sorted(classes))
            if len(names) < 2:
                raise ValueError(
                    f"{root} holds images of {len(names)} classes; it is to hold a folder of images for each of two or "
                    "more, such as cat/1.jpg and dog/1.jpg"
                )
        if strange := classes - set(names):
            raise ValueError(f"{root} has no training images of {', '.join(sorted(strange))}, which another split has")
        return files

    return split_files(root, listed), names


def split_files(root: Path, listed: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """By split, paths of images below ``root``, as its folders or its ``splits.json`` say.

    Args:
        root: with folders for splits, or without.
        listed: gives the paths in a folder, of train first.

    Raises:
        ValueError: if ``splits.json`` is for other images, or there are too few.
    """
    folders = split_folders(root) or {"train": root}
    if "validation" in folders and "test" not in folders:
        folders["test"] = folders.pop("validation")
    files = {part: listed(where) for part, where in folders.items()}
    missing = [part for part in SHARES if part not in files]
    if missing:
        files = _written(root, files, missing)
    return {part: files[part] for part in PARTS}


def _written(root: Path, files: dict[str, list[str]], missing: list[str]) -> dict[str, list[str]]:
    """The splits as ``splits.json`` has them; made now, and written there if the folder takes it."""
    path = root / SPLITS
    if path.is_file():
        try:
            splits = {part: list(map(str, json.loads(path.read_text())[part])) for part in PARTS}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path} does not hold the splits train, validation and test; remove it to make them anew"
            ) from None
        here, there = (
            {file for split in files.values() for file in split},
            {file for split in splits.values() for file in split},
        )
        if here != there:
            raise ValueError(
                f"{path} is for other images: {len(here - there)} are new and {len(there - here)} are gone, such as "
                f"{min(here ^ there)}; remove it to make the splits anew"
            )
        return splits
    splits = _split(root, files, missing)
    with suppress(OSError):  # a folder that cannot be written to gives the same splits every time all the same
        path.write_text(json.dumps(splits, indent=0) + "\n")
    return splits


def _split(root: Path, present: dict[str, list[str]], missing: list[str]) -> dict[str, list[str]]:
    """Take a share of every class from train, in the order of a digest of each file's name."""
    classes: dict[str, list[str]] = {}
    for file in present["train"]:
        classes.setdefault(class_of(file), []).append(file)
    taken: dict[str, list[str]] = {part: [] for part in missing}
    for name, files in classes.items():
        if len(files) <= len(missing):
            raise ValueError(f"{root} has {len(files)} images of {name}; splits need at least {len(missing) + 1}")
        order = iter(sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest()))
        for part in missing:
            taken[part] += [next(order) for _ in range(max(1, int(SHARES[part] * len(files))))]
    gone = {file for split in taken.values() for file in split}
    kept = [file for file in present["train"] if file not in gone]
    return present | {part: sorted(split) for part, split in taken.items()} | {"train": kept}


def _mode(root: Path, splits: dict[str, list[str]], names: list[str], side: int | None) -> str:
    """The mode of all images, grey if each is; without a ``side`` one of each class is seen to have the same size."""
    first = {class_of(file): root / file for file in reversed(splits["train"])}
    sizes: set[tuple[int, int]] = set()
    grey = True
    for name in names:
        with opened(first[name]) as picture:
            sizes.add(picture.size)
            grey = grey and picture.mode in GREY
    if not side and len(sizes) > 1:
        (w, h), (v, g), *_ = sorted(sizes)
        raise ValueError(
            f"images in {root} have several sizes, such as {w}x{h} and {v}x{g}; say the side of the squares that they "
            f"are cropped to, as folder:{root}:64, or give a transform"
        )
    # one in colour, of many in grey, would lose its colours without a word
    grey = grey and all(_mode_of(root / file) in GREY for split in splits.values() for file in split)
    return "L" if grey else "RGB"


def _mode_of(path: Path) -> str:
    """The mode of an image, from its first bytes."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from None


def _converted(mode: str, side: int | None) -> Callable[[Any], Any]:
    """Turned as its EXIF data say, in this mode, and cut and scaled to a square."""
    from PIL import Image, ImageOps

    def convert(picture: Any) -> Any:
        if picture.mode in WIDE:
            raise ValueError(
                f"its pixels have more than 8 bits (mode {picture.mode}); scale them to 8 bits, or give a transform"
            )
        upright = ImageOps.exif_transpose(picture).convert(mode)
        return ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR) if side else upright

    return convert


def opened(path: Path) -> Picture:
    """An image file, decoded.

    Raises:
        ValueError: if it cannot be.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("reading images needs Pillow: pip install 'deepreshape[images]'") from None
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from None
    return picture
