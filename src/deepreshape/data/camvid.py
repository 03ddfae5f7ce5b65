"""CamVid (Brostow et al. 2008): frames from a car, a class for each pixel; 11 classes, splits of the SegNet tutorial.

The frames are those of the tutorial, halved to 240x180, in ``camvid240x180.tar`` or unpacked as ``CamVid``:
``{train,val,test}/NAME.jpg`` and ``{train,val,test}annot/NAME.png``. They may be used for research only; the package
neither holds nor downloads them.
"""

from __future__ import annotations

import hashlib
import tarfile
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepreshape.data.class_maps import as_class_map
from deepreshape.data.dataset import Dataset, Split
from deepreshape.data.fetch import ARCHIVES
from deepreshape.data.images import statistics

__all__ = ["camvid"]

SPLITS = {"train": ("train", 367), "validation": ("val", 101), "test": ("test", 233)}
"""By split, the word for it in paths, and how many frames it has."""
CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
"""In the order of their numbers, with the colours that papers paint them in."""
UNKNOWN = 11
"""What the files have for pixels of no class."""
FRAME, WINDOW = (180, 240), (96, 120)
"""(height, width)."""
DIGEST = "81bee7d1994142e106b320b8935bb32b485cd1d150237e8a3539a36eda2c0095"
"""SHA-256 over all files, as :func:`_digest` takes it."""


def camvid(folder: Path, *, windows: bool = False) -> Dataset:
    """CamVid as whole frames, or as windows of 120x96: four of each frame, one at each corner, which cover it.

    Args:
        folder: that holds ``CamVid`` or the tar of it.
        windows: whether frames are cut.

    Raises:
        ValueError: if it is not there, or not as it should be.
    """
    files = _files(folder)
    if _digest(files) != DIGEST:
        warnings.warn(
            f"the files of CamVid in {folder} are not the known ones, by the digest; results cannot be compared",
            stacklevel=2,
        )
    splits = {name: _split(files, *facts, windows) for name, facts in SPLITS.items()}
    mean, std = statistics(splits["train"].images)
    name = "camvid-120x96" if windows else "camvid"
    return Dataset(name, **splits, class_names=tuple(CLASSES), mean=mean, std=std, colours=tuple(CLASSES.values()))


def _files(folder: Path) -> dict[str, bytes]:
    """By path below ``CamVid``, the content of every image and map."""
    archive = ARCHIVES["camvid"]
    root, tar = folder / archive.unpacks_to, folder / archive.name
    if root.is_dir():
        paths = sorted(path for path in root.glob("*/*") if path.suffix in (".jpg", ".png"))
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    if not tar.is_file():
        raise ValueError(
            f"camvid is not there: no folder {root} and no file {tar}; put one of them there, or point "
            "DEEPRESHAPE_DATA at the folder that holds it; nothing downloads it"
        )
    try:
        with tarfile.open(tar) as content:
            members = [member for member in content if member.isfile() and member.name.count("/") == 2]
            return {member.name.partition("/")[2]: _content(content, member) for member in members}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{tar} is not the tar of CamVid: {error}") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.TarError(f"{member.name} has no content")
    return file.read()


def _digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 over names and contents in the order of the names; hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


def _split(files: Mapping[str, bytes], word: str, count: int, windows: bool) -> Split:
    names = sorted(path.partition("/")[2].removesuffix(".jpg") for path in files if path.startswith(f"{word}/"))
    maps = {path.partition("/")[2].removesuffix(".png") for path in files if path.startswith(f"{word}annot/")}
    if len(names) != count or set(names) != maps:
        raise ValueError(
            f"CamVid's {word} is to have {count} images and as many maps of the same names, not {len(names)} and "
            f"{len(maps)}"
        )
    images, labels = zip(*(_frame(files, word, name) for name in names), strict=True)
    pair = torch.stack(images), torch.stack(labels)
    return Split(*(map(_windows, pair) if windows else pair))


def _frame(files: Mapping[str, bytes], word: str, name: str) -> tuple[Tensor, Tensor]:
    """Image, uint8 (3, 180, 240), and map, uint8 (180, 240)."""
    path = f"{word}/{name}.jpg"
    image = _picture(path, files[path]).convert("RGB")
    if image.size != FRAME[::-1]:
        raise ValueError(f"{path} of CamVid has {image.size[0]}x{image.size[1]} pixels, not {FRAME[1]}x{FRAME[0]}")
    path = f"{word}annot/{name}.png"
    labels = as_class_map(_picture(path, files[path]), f"{path} of CamVid", image.size, len(CLASSES), UNKNOWN)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), labels


def _picture(path: str, content: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("CamVid is JPEG and PNG files, which need Pillow: pip install 'deepreshape[images]'") from None
    try:
        picture = Image.open(BytesIO(content))
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} of CamVid is not an image that can be read: {error}") from None
    return picture


def _windows(frames: Tensor) -> Tensor:
    """The four corners of frames (N, ..., 180, 240), those of a frame one after the other: (4 N, ..., 96, 120)."""
    (height, width), (high, wide) = FRAME, WINDOW
    corners = [
        frames[..., top : top + high, left : left + wide] for top in (0, height - high) for left in (0, width - wide)
    ]
    return torch.stack(corners, dim=1).flatten(0, 1)
