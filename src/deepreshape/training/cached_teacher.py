"""Distillation from stored logits: a teacher answers k fixed crops of every training image once, then is free.

The teacher's forward pass is a third of a student's step or more, at every step of every run. Its logits are stored for
k windows an image instead, drawn once; a student that learns from them draws one of the k, sees that very window, and
mirrors it at will (the teacher saw it unmirrored). Of each answer the largest logits are stored and the logarithm of
the probability that is left for all other classes, over which it is spread evenly.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepreshape.data import Dataset
from deepreshape.data.augment import draw_moves
from deepreshape.training.runs import RUN, claim_folder

__all__ = ["CachedTeacher", "is_cache", "load_cache", "teach"]

FORMAT = 1
BATCH = 500
"""Images that a teacher sees at a time."""


class CachedTeacher(nn.Module):
    """Stored answers of a teacher, given wherever a run takes a teacher; it has no forward pass.

    Attributes:
        offsets: uint8, (k, N, 2), row and column of each window in the image with its border.
        classes: int16, (k, N, K), of the largest logits.
        logits: float16, (k, N, K), logarithms of their probabilities.
        rest: float16, (k, N), logarithm of the probability of all other classes together.
        crop: pixels of the border.
        outputs: number of classes.
    """

    offsets: Tensor
    classes: Tensor
    logits: Tensor
    rest: Tensor

    def __init__(self, tensors: dict[str, Tensor], crop: int, outputs: int) -> None:
        super().__init__()
        for name in ("offsets", "classes", "logits", "rest"):
            self.register_buffer(name, tensors[name])
        self.crop, self.outputs = crop, outputs

    def forward(self, images: Tensor) -> Tensor:
        """Refused: answers are looked up by image and window, not computed."""
        raise TypeError("a cached teacher answers by the number of an image; it cannot see other images")

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One of the k windows for each image, and the teacher's answer there.

        Args:
            images: int64, (n,), their numbers in the training split, or in ``Dataset.whole``.
            generator: a CPU generator.

        Returns:
            int64 (n, 2), row and column of the window; float32 (n, classes), logarithms of probabilities.
        """
        device = self.offsets.device
        view = torch.randint(0, len(self.offsets), (len(images),), generator=generator)
        at = view.to(device), images.to(device)
        kept = self.classes.shape[2]
        spread = self.rest[at].float() - float(torch.tensor(max(1, self.outputs - kept)).log())
        answers = spread[:, None].expand(-1, self.outputs).clone()
        answers.scatter_(1, self.classes[at].long(), self.logits[at].float())
        return self.offsets[at].long().cpu(), answers


@torch.no_grad()
def teach(
    model: nn.Module,
    data: Dataset,
    folder: Path,
    *,
    views: int,
    crop: int = 4,
    keep: int = 16,
    teacher: str,
    progress: Callable[[int, int], None] | None = None,
) -> CachedTeacher:
    """Store what a network answers to ``views`` windows of every image of the training and validation splits.

    A folder that was cut is continued with the first view that is not there. Windows follow from their view's number
    alone, so that caches of two teachers show the same ones.

    Args:
        model: on its device.
        data: its test split is not touched.
        folder: made, if it is not there.
        views: k.
        crop: pixels of reflected border, which students' recipes have to share.
        keep: how many of the largest logits of an answer are stored.
        teacher: who answers, such as the fingerprint of its weights; a folder belongs to one.
        progress: told images done and images in all.

    Raises:
        ValueError: if the folder holds answers of another network, to other images, or of other settings, or answers
            are maps.
    """
    if data.maps:
        raise ValueError(
            f"{data.name} has a class for each pixel, and answers that are maps are not stored; a saved model can teach"
        )
    whole, outputs = data.whole, len(data.class_names)
    keep = min(keep, outputs)
    settings = {"format": FORMAT, "teacher": teacher, "data": data.name, "images": _images_digest(data)}
    claim_folder(folder, settings | {"splits": _splits(data), "outputs": outputs, "crop": crop, "keep": keep})
    model.eval()
    for view in range(views):
        if (folder / _file(view)).is_file():
            continue
        offsets = _windows(view, len(whole), crop)
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(whole), BATCH):
            images, windows = whole.images[start : start + BATCH], offsets[start : start + BATCH].long()
            answers = _answers(model, data, images, windows, crop)
            if not torch.isfinite(answers).all():
                raise ValueError(f"the teacher's logits of images {start} to {start + len(images) - 1} are not finite")
            parts.append(_largest(answers, keep))
            if progress:
                progress(view * len(whole) + start + len(images), views * len(whole))
        tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]} | {"offsets": offsets}
        unfinished = folder / f"{_file(view)}.part"
        save_file(tensors, unfinished)
        os.replace(unfinished, folder / _file(view))
    return load_cache(folder, data, views=views)


def _answers(model: nn.Module, data: Dataset, images: Tensor, offsets: Tensor, crop: int) -> Tensor:
    """float32 (n, classes), logarithms of the probabilities that a network gives to windows of images."""
    shape = len(images), images.shape[2], images.shape[3]
    moves = draw_moves(shape, torch.Generator(), crop=crop, flip=False, cutout=0, offsets=offsets)
    moved = moves.images(images.to(next(model.parameters()).device))
    return model(data.normalize(moved)).float().log_softmax(1).cpu()


def _largest(answers: Tensor, keep: int) -> dict[str, Tensor]:
    logits, classes = answers.topk(keep, dim=1)
    left = answers.exp().sum(1) - logits.exp().sum(1)
    return {"classes": classes.to(torch.int16), "logits": logits.half(), "rest": left.clamp(min=1e-7).log().half()}


def is_cache(folder: Path) -> bool:
    """Whether the folder holds a teacher's answers."""
    return (folder / _file(0)).is_file()


def load_cache(folder: Path, data: Dataset, *, views: int | None = None) -> CachedTeacher:
    """The answers stored in a folder.

    Args:
        folder: as :func:`teach` fills it.
        data: what the student is trained on.
        views: how many are read; all that are there without.

    Raises:
        ValueError: if they are of other images or other splits, or damaged.
    """
    settings = _settings(folder)
    if settings.get("images") != _images_digest(data) or settings.get("splits") != _splits(data):
        raise ValueError(
            f"{folder} holds answers to the images of {settings.get('data')!r} in its splits, not to those of "
            f"{data.name!r}; `deepreshape teach` makes them"
        )
    there = sorted(folder.glob("view-*.safetensors"))[:views]
    if not there:
        raise ValueError(f"{folder} has no finished view yet; `deepreshape teach` goes on with it")
    total, keep, outputs = sum(settings["splits"]), settings["keep"], settings["outputs"]
    try:
        read = [load_file(path) for path in there]
        tensors = {key: torch.stack([view[key] for view in read]) for key in ("offsets", "classes", "logits", "rest")}
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the answers in {folder} are damaged: {str(error).splitlines()[0]}") from error
    k = len(there)
    shapes = {"offsets": (k, total, 2), "classes": (k, total, keep), "logits": (k, total, keep), "rest": (k, total)}
    wrong = next((key for key, shape in shapes.items() if tuple(tensors[key].shape) != shape), None)
    if wrong or int(tensors["classes"].min()) < 0 or int(tensors["classes"].max()) >= outputs:
        raise ValueError(f"the answers in {folder} are damaged: {wrong or 'classes'} does not fit its {RUN}")
    if int(tensors["offsets"].max()) > 2 * settings["crop"]:
        raise ValueError(f"the answers in {folder} are damaged: a window begins past the border")
    return CachedTeacher(tensors, settings["crop"], outputs)


def _images_digest(data: Dataset) -> str:
    """A digest of the labels of the training and validation splits and of a few of their images; hexadecimal."""
    whole = data.whole
    digest = hashlib.sha256(whole.labels.cpu().contiguous().numpy().tobytes())
    for start in range(0, len(whole), max(1, len(whole) // 16)):
        digest.update(whole.images[start : start + 1].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _splits(data: Dataset) -> list[int]:
    return [len(data.train), len(data.validation)]


def _file(view: int) -> str:
    return f"view-{view:03d}.safetensors"


def _windows(view: int, images: int, crop: int) -> Tensor:
    """uint8, (images, 2): the window of each image in a view."""
    drawn = torch.randint(0, 2 * crop + 1, (images, 2), generator=torch.Generator().manual_seed(view))
    return drawn.to(torch.uint8)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / RUN).read_text())
        if settings["format"] != FORMAT:
            raise ValueError(f"its format is {settings['format']}, this version reads {FORMAT}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no teacher's answers that can be read: {error}") from error
    return settings
