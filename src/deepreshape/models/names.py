"""The names networks go by, both ways: ``resnet18-m16``, ``hrn-5x5x3x``, ``stch-4x4x4x``.

A name is a preset, ``hrn-`` or ``stch-`` with its multipliers, and then any of ``-m16`` (base channels),
``-phi3.4.6.3`` (blocks a stage), ``-w16.8.16...`` (a width for each convolution), ``-bottleneck``, ``-imagenet`` (7x7
stem), ``-avg`` (average pools), ``-strided`` (strides for ResNet-9's pools), ``-herpn`` (quadratics for ReLUs),
``-seg`` (a class for each pixel), ``-convhead`` (a convolution before the logits), ``-r2`` (stem down-samples by two
more); of binary networks, ``-float`` (no bit at all), ``-signs`` (real weights), ``-relus`` and ``-norelus`` (in place
of RPReLUs), ``-noshortcuts``.
Networks of cells are ``sphynx-c5-l10-r0.5``: channels, cells, the two that halve the map; ``-g`` and a genotype's text
gives them other cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deepreshape.models.genotype import SPHYNX, Genotype

if TYPE_CHECKING:
    from deepreshape.models.staged import Staged

__all__ = ["name_of", "read_name"]

REDESIGN_BASE, REDESIGN_BLOCKS = 16, 2
"""What ``hrn-`` and ``stch-`` names start from: ResNet-18's stages at the papers' m = 16."""

CELL_GROWTH = 4, 4
"""Times the channels at either reduction of a network of cells."""

FLAGS = {
    "bottleneck": ("block", "bottleneck"),
    "imagenet": ("stem", "7x7"),
    "avg": ("pool", "avg"),
    "strided": ("pool", "conv"),
    "herpn": ("activation", "herpn"),
    "seg": ("task", "segment"),
    "float": ("binary", "none"),
    "signs": ("binary", "activations"),
    "relus": ("rprelu", "relu"),
    "norelus": ("rprelu", "none"),
    "noshortcuts": ("shortcut", "none"),
    "convhead": ("head", "conv"),
}
"""Suffixes that set one field."""

_SUFFIX = re.compile(
    r"-(?:m(?P<base>\d+)|phi(?P<phi>[\d.]+)|w(?P<widths>\d+(?:\.\d+)*)|"
    rf"(?P<flag>{'|'.join(FLAGS)})|r(?P<resolution>\d+))"
)
_CELLS = re.compile(
    r"sphynx-c(?P<base>\d+)-l(?P<cells>\d+)-r(?P<first>\d+)\.(?P<second>\d+)(?:-g(?P<genotype>[A-Za-z0-9.]+))?(?=-|$)"
)
_SHAPED = re.compile(r"(?:hrn|stch)-(?P<multipliers>\d+x(?:\d+x)*)(?=-|$)")


def read_name(name: str, input: tuple[int, int, int], classes: int, families: Sequence[type[Staged]]) -> Staged:
    """The architecture of a name, for an input of (channels, height, width).

    Raises:
        ValueError: if no network has that name; the message lists those that do.
    """
    presets = {key: preset for family in families for key, preset in family.presets().items()}
    shaped, cells = _SHAPED.match(name), _CELLS.match(name)
    preset = max((key for key in presets if name == key or name.startswith(f"{key}-")), key=len, default=None)
    scheme = shaped or cells
    if not (scheme or preset):
        others = "hrn-AxBxCx, stch-AxBxCx and sphynx-cC-lL-rI.J"
        raise ValueError(f"unknown network {name!r}; known are {', '.join(presets)}, {others}")
    rest = name[scheme.end() if scheme else len(preset or "") :]
    try:
        if shaped:
            multipliers = tuple(int(part) for part in shaped["multipliers"].split("x") if part)
            start = _redesign(_family(families, "redesign"), multipliers)
        elif cells:
            start = _of_cells(_family(families, "cells"), cells)
        else:
            start = presets[preset or ""]
        return replace(start, input=input, classes=classes, **_changes(name, rest, start))
    except ValueError as error:
        raise ValueError(str(error) if repr(name) in str(error) else f"{name!r}: {error}") from None


def _family(families: Sequence[type[Staged]], scheme: str) -> type[Staged]:
    return next(family for family in families if family.scheme == scheme)


def _of_cells(family: type[Staged], word: re.Match[str]) -> Staged:
    cells, first, second = (int(word[part]) for part in ("cells", "first", "second"))
    if not first < second < cells:
        raise ValueError(f"reductions rise and are cells, 0 to {cells - 1}, not {first} and {second}")
    published = family((first, second - first, cells - second), int(word["base"]), CELL_GROWTH)
    return replace(published, genotype=str(Genotype.parse(word["genotype"]))) if word["genotype"] else published


def _redesign(family: type[Staged], multipliers: tuple[int, ...]) -> Staged:
    return family((REDESIGN_BLOCKS,) * (len(multipliers) + 1), REDESIGN_BASE, multipliers)


def _changes(name: str, rest: str, start: Staged) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    while rest:
        suffix = _SUFFIX.match(rest)
        if not suffix:
            raise ValueError(
                f"cannot read {rest!r} in {name!r}; a suffix is -m16, -phi3.4.6.3, -w16.8.., -bottleneck, -imagenet, "
                "-avg, -strided, -herpn, -seg, -convhead or -r2, or of a binary network -float, -signs, -relus, "
                "-norelus or -noshortcuts"
            )
        rest = rest[suffix.end() :]
        if suffix["base"]:
            changes["base"] = int(suffix["base"])
        elif suffix["phi"]:
            changes["phi"] = tuple(int(part) for part in suffix["phi"].split(".") if part)
        elif suffix["widths"]:
            if not hasattr(start, "layer_widths"):
                raise ValueError(f"a {start.family} has no widths by layer, so -w does not fit")
            changes["layer_widths"] = tuple(int(part) for part in suffix["widths"].split("."))
        elif suffix["resolution"]:
            changes["resolution"] = int(suffix["resolution"])
        else:
            field, value = FLAGS[suffix["flag"]]
            if not hasattr(start, field):
                raise ValueError(f"a {start.family} has no kinds of {field}, so -{suffix['flag']} does not fit")
            changes[field] = value
    return changes


def name_of(architecture: Staged) -> str:
    """The name of an architecture, removal left aside: :func:`read_name` gives it back.

    Raises:
        ValueError: if it has no name, because its strides or its family's shape are not the usual ones.
    """
    bare = architecture.unreduced
    if bare.scheme == "cells":
        return _suffixed(*_cells_name(bare))
    shape = ("phi", "multipliers", "block", "strides")
    presets = bare.presets()
    name = next(
        (
            key
            for key, preset in presets.items()
            if all(getattr(preset, of, None) == getattr(bare, of, None) for of in shape)
        ),
        "",
    )
    if name:
        start = presets[name]
    else:
        kind = "stch" if len(set(bare.multipliers)) == 1 else "hrn"
        name = f"{kind}-" + "".join(f"{multiplier}x" for multiplier in bare.multipliers)
        start = _redesign(type(bare), bare.multipliers)
        if bare.scheme != "redesign" or bare.strides != start.strides or not bare.multipliers:
            raise ValueError(f"no name stands for {bare}")
    return _suffixed(name, start, bare)


def _cells_name(bare: Staged) -> tuple[str, Staged, Staged]:
    if bare.multipliers != CELL_GROWTH or bare.strides != (1, 2, 2):
        raise ValueError(f"no name stands for {bare}")
    first, second, rest = bare.phi
    name = f"sphynx-c{bare.base}-l{first + second + rest}-r{first}.{first + second}"
    genotype = getattr(bare, "genotype", SPHYNX)
    start = type(bare)(bare.phi, bare.base, bare.multipliers)
    return name if genotype == SPHYNX else f"{name}-g{genotype}", start, bare


def _suffixed(name: str, start: Staged, bare: Staged) -> str:
    """The name with what differs from where it starts."""
    if bare.base != start.base:
        name += f"-m{bare.base}"
    if bare.phi != start.phi:
        name += "-phi" + ".".join(map(str, bare.phi))
    if widths := getattr(bare, "layer_widths", ()):
        name += "-w" + ".".join(map(str, widths))
    for flag, (field, value) in FLAGS.items():
        if getattr(bare, field, None) == value != getattr(start, field, None):
            name += f"-{flag}"
    if bare.resolution != 1:
        name += f"-r{bare.resolution}"
    return name
