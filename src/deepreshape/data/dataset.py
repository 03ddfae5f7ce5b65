"""Labelled images in three splits: train, a validation split held out of it, and test.

Selection (of masks, thresholds, architectures) uses the validation split. The test split is for one reading at the end.
Where the images lie is behind :class:`~deepreshape.data.images.Images`: a tensor in memory, files of a folder
(:mod:`.folder`), or the items of a torch data set (:mod:`.loader`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepreshape.data.images import Chained, Images

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset

__all__ = ["Dataset", "Split"]


@dataclass(frozen=True)
class Split:
    """Images, and labels: int64 of shape (N,), or uint8 maps (N, H, W) where every pixel has one.

    Pixels of a map that count for nothing are :data:`~deepreshape.data.augment.VOID`.
    """

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]


@dataclass(frozen=True)
class Dataset:
    """Labelled images in three splits.

    Attributes:
        name: what it is loaded by.
        train, validation, test: the splits.
        class_names: of the labels, in order.
        mean, std: of the training images by channel, on the scale 0 to 1; where images come normalised, the numbers
            they were normalised by.
        colours: red, green and blue from 0 to 255, that each class has in pictures of maps; may be empty.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colours: tuple[tuple[int, int, int], ...] = ()

    @property
    def maps(self) -> bool:
        """Whether every pixel has a label, and not every image."""
        return self.train.labels.dim() == 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def facts(self) -> dict[str, Any]:
        """What somebody needs to send images to a network for these and to read its answers; none of it is secret."""
        facts: dict[str, Any] = {"class_names": self.class_names}
        if self.mean:  # else images come normalised by code of the user's, which clients do not have
            facts |= {"mean": self.mean, "std": self.std, "resize": "crop"}
        return facts | ({"colours": self.colours, "upsample": self.shape[1:]} if self.maps else {})

    @property
    def whole(self) -> Split:
        """The training and the validation split as one."""
        first, second = self.train.images, self.validation.images
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            images = torch.cat([first, second])
        else:
            images = Chained(first, second)
        return Split(images, torch.cat([self.train.labels, self.validation.labels]))

    def normalize(self, images: Tensor) -> Tensor:
        """Images as float32, channels last: uint8 ones by mean and standard deviation, float ones as they are."""
        if images.dtype == torch.uint8:
            mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
            std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
            images = (images.float() / 255 - mean) / std
        if images.dim() == 3:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def load(name: str, folder: Path | None = None) -> Dataset:
        """A data set by name, or ``folder:PATH`` or ``folder:PATH:SIDE`` for images of your own in folders.

        Args:
            name: one of :data:`~deepreshape.data.archives.ARCHIVED`, or a folder as :meth:`from_folder` takes it.
            folder: what :func:`~deepreshape.data.archives.data_folder` takes.

        Raises:
            ValueError: if there is no such data set, or its files are missing or broken; the message says what would
                work.
        """
        from deepreshape.data.archives import load_archive
        from deepreshape.data.folder import load_word

        return load_word(name) if name.startswith("folder:") else load_archive(name, folder)

    @staticmethod
    def from_folder(
        folder: Path | str,
        *,
        side: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> Dataset:
        """Images in folders named by class (torchvision's ImageFolder layout), or with maps; see :mod:`.folder`."""
        from deepreshape.data.folder import from_folder

        return from_folder(folder, side=side, transform=transform, mean=mean, std=std)

    @staticmethod
    def from_loader(
        train: TorchDataset[Any] | DataLoader[Any],
        *,
        validation: TorchDataset[Any] | DataLoader[Any] | None = None,
        test: TorchDataset[Any] | DataLoader[Any] | None = None,
        class_names: Sequence[str] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        name: str = "loader",
    ) -> Dataset:
        """Any torch ``Dataset`` or ``DataLoader``; see :func:`.loader.from_loader`."""
        from deepreshape.data.loader import from_loader

        return from_loader(
            train, validation=validation, test=test, class_names=class_names, mean=mean, std=std, name=name
        )
