"""The names networks go by, both ways: ``resnet18-m16``, ``hrn-5x5x3x``, ``stch-4x4x4x``.

A name is a preset, ``hrn-`` or ``stch-`` with its multipliers, and then any of ``-m16`` (base channels),
``-phi3.4.6.3`` (blocks a stage), ``-bottleneck``, ``-imagenet`` (7x7 stem), ``-avg`` (average pools), ``-strided``
(strides for ResNet-9's pools), ``-r2`` (stem down-samples by two more).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from deepreshape.models.architecture import Architecture

__all__ = ["PRESETS", "architecture", "name_of"]

PRESETS: dict[str, Architecture] = {
    "resnet9": Architecture("resnet9", (1, 1, 1, 1), 64, (2, 2, 2)),
    "resnet18": Architecture("resnet", (2, 2, 2, 2), 64, (2, 2, 2)),
    "resnet20": Architecture("resnet", (3, 3, 3), 16, (2, 2)),
    "resnet32": Architecture("resnet", (5, 5, 5), 16, (2, 2)),
    "resnet34": Architecture("resnet", (3, 4, 6, 3), 64, (2, 2, 2)),
    "resnet50": Architecture("resnet", (3, 4, 6, 3), 64, (2, 2, 2), block="bottleneck"),
    "vgg16": Architecture("vgg", (2, 2, 3, 3, 3), 64, (2, 2, 2, 1)),
    "wideresnet22-8": Architecture("wide_resnet", (3, 3, 3), 128, (2, 2)),
    "wideresnet28-10": Architecture("wide_resnet", (4, 4, 4), 160, (2, 2)),
}

REDESIGNED = Architecture("resnet", (2, 2, 2, 2), 16, (2, 2, 2))
"""What ``hrn-`` and ``stch-`` names start from: ResNet-18's stages at the papers' m = 16."""

FLAGS = {
    "bottleneck": ("block", "bottleneck"),
    "imagenet": ("stem", "7x7"),
    "avg": ("pool", "avg"),
    "strided": ("pool", "conv"),
}
"""Suffixes that set one field."""

_SUFFIX = re.compile(
    r"-(?:m(?P<base>\d+)|phi(?P<phi>[\d.]+)|(?P<flag>bottleneck|imagenet|avg|strided)|r(?P<resolution>\d+))"
)
_SHAPED = re.compile(r"(?:hrn|stch)-(?P<multipliers>\d+x(?:\d+x)*)(?=-|$)")


def architecture(name: str, input: tuple[int, int, int] = (3, 32, 32), classes: int = 100) -> Architecture:
    """The architecture of a name, for an input of (channels, height, width).

    Raises:
        ValueError: if no network has that name; the message lists those that do.
    """
    shaped = _SHAPED.match(name)
    preset = max((key for key in PRESETS if name == key or name.startswith(f"{key}-")), key=len, default=None)
    if shaped:
        multipliers = tuple(int(part) for part in shaped["multipliers"].split("x") if part)
        found, rest = (
            replace(REDESIGNED, multipliers=multipliers, phi=(2,) * (len(multipliers) + 1), strides=()),
            name[shaped.end() :],
        )
    elif preset:
        found, rest = PRESETS[preset], name[len(preset) :]
    else:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(PRESETS)}, hrn-AxBxCx and stch-AxBxCx")
    changes: dict[str, Any] = {}
    while rest:
        suffix = _SUFFIX.match(rest)
        if not suffix:
            raise ValueError(
                f"cannot read {rest!r} in {name!r}; a suffix is -m16, -phi3.4.6.3, -bottleneck, -imagenet, -avg, "
                "-strided or -r2"
            )
        rest = rest[suffix.end() :]
        if suffix["base"]:
            changes["base"] = int(suffix["base"])
        elif suffix["phi"]:
            changes["phi"] = tuple(int(part) for part in suffix["phi"].split(".") if part)
        elif suffix["resolution"]:
            changes["resolution"] = int(suffix["resolution"])
        else:
            field, value = FLAGS[suffix["flag"]]
            changes[field] = value
    try:
        return replace(found, input=input, classes=classes, **changes)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None


def name_of(architecture: Architecture) -> str:
    """The name of an architecture, removal left aside: ``architecture(name_of(a), a.input, a.classes) == a``.

    Raises:
        ValueError: if it has no name, because its strides or its family's shape are not the usual ones.
    """
    bare = architecture.unreduced
    shape = ("family", "phi", "multipliers", "block", "strides")
    name = next(
        (key for key, value in PRESETS.items() if all(getattr(value, of) == getattr(bare, of) for of in shape)), ""
    )
    if name:
        start = PRESETS[name]
    else:
        kind = "stch" if len(set(bare.multipliers)) == 1 else "hrn"
        name = f"{kind}-" + "".join(f"{multiplier}x" for multiplier in bare.multipliers)
        start = replace(REDESIGNED, multipliers=bare.multipliers, phi=(2,) * len(bare.phi), strides=())
        if bare.family != "resnet" or bare.strides != start.strides or not bare.multipliers:
            raise ValueError(f"no name stands for {bare}")
    if bare.base != start.base:
        name += f"-m{bare.base}"
    if bare.phi != start.phi:
        name += "-phi" + ".".join(map(str, bare.phi))
    for flag, (field, value) in FLAGS.items():
        if getattr(bare, field) == value != getattr(start, field):
            name += f"-{flag}"
    if bare.resolution != 1:
        name += f"-r{bare.resolution}"
    return name
