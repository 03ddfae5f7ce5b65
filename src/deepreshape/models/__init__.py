"""Networks: an architecture (a value, one type a family), its name, its ReLU sites, and the module it builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deepreshape.data import Dataset
from deepreshape.models.architecture import Architecture, Reduction, Site
from deepreshape.models.cells import CellNet
from deepreshape.models.exits import MultiExit, attach_exits
from deepreshape.models.foreign import Foreign, convert
from deepreshape.models.names import read_name
from deepreshape.models.react import ReActNet
from deepreshape.models.resnet import ResNet
from deepreshape.models.resnet9 import ResNet9
from deepreshape.models.staged import Staged
from deepreshape.models.vgg import VGG
from deepreshape.models.wide_resnet import WideResNet

__all__ = [
    "FAMILIES",
    "PRESETS",
    "VGG",
    "Architecture",
    "CellNet",
    "Foreign",
    "MultiExit",
    "ReActNet",
    "Reduction",
    "ResNet",
    "ResNet9",
    "Site",
    "Staged",
    "WideResNet",
    "architecture",
    "architecture_for",
    "attach_exits",
    "build",
    "convert",
    "from_dict",
]

STAGED: tuple[type[Staged], ...] = (ResNet9, ResNet, VGG, WideResNet, CellNet, ReActNet)
FAMILIES: dict[str, type[Staged] | type[Foreign]] = {family.family: family for family in (*STAGED, Foreign)}
"""Every family by the word for it in a manifest."""

SEGMENTING = "resnet18-m16-seg"

PRESETS: dict[str, Staged] = {name: preset for family in STAGED for name, preset in family.presets().items()}
"""Networks of the literature by name."""


def architecture(name: str, input: tuple[int, int, int] = (3, 32, 32), classes: int = 100) -> Staged:
    """The architecture of a name, for an input of (channels, height, width).

    Raises:
        ValueError: if no network has that name; the message lists those that do.
    """
    return read_name(name, input, classes, STAGED)


def architecture_for(name: str, data: Dataset) -> Staged:
    """The architecture of a name for the images and the classes of a data set.

    Raises:
        ValueError: if no network has that name, or it gives maps and the data set's labels are none, or the other way.
    """
    named = architecture(name, data.shape, len(data.class_names))
    if named.maps != data.maps:
        labels, instead = (
            ("a class for each pixel", f"a ResNet with -seg at the end of its name, such as {SEGMENTING}")
            if data.maps
            else ("one class for each image", "a network without -seg in its name")
        )
        raise ValueError(f"{data.name} has {labels}, which {name} does not give; take {instead}")
    return named


def build(architecture: Architecture, device: str | None = None, *, seed: int | None = None) -> nn.Module:
    """A module with fresh weights.

    Args:
        architecture: what to build; the module carries it as ``.architecture``.
        device: ``"meta"`` gives shapes without storage, in milliseconds.
        seed: of the weights; torch's global generator is used, and moved, only without one.
    """
    with torch.device(device or "cpu"), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return architecture.build()


def from_dict(values: Mapping[str, Any]) -> Architecture:
    """The architecture of what an architecture's ``to_dict`` gave.

    Raises:
        ValueError: if its family is unknown, or a field is missing, unknown or does not fit.
    """
    family = values.get("family")
    if family == MultiExit.family:
        return MultiExit.of(values, from_dict(values.get("whole", {})))
    if family not in FAMILIES:
        raise ValueError(f"unknown family of networks {family!r}; this version knows {', '.join(FAMILIES)} and exits")
    return FAMILIES[family].from_dict(values)
