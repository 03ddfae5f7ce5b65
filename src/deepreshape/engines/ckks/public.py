"""What a client knows of a circuit: how to lay its input out, which keys to make, how to read the answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.packing import SlotLayout
from deepreshape.engines.ckks.parameters import CkksParameters
from deepreshape.engines.ckks.scheme import SQUARE, rotation_name

__all__ = ["PublicCircuit"]

Real = NDArray[np.float64]
Shape = tuple[int, ...]

_HEXADECIMAL = re.compile(r"[0-9a-f]{64}")
_MOST_KEYS = 1024


@dataclass(frozen=True)
class PublicCircuit:
    """The part of a circuit that a client has.

    It tells a client the shape of the network, and which diagonals of its layers are zero as a whole; no weights.

    Attributes:
        parameters: of the scheme.
        batch: how many images share a ciphertext.
        rotations: that need a key, in slots of a ciphertext, ascending.
        layout: of the input, which the client repeats over all slots.
        output: of the answer.
        shape: of the answer.
        computed: SHA-256 of what the server computes, weights included.

    Raises:
        ValueError: if a field does not fit the others, as in a file of a stranger's.
    """

    parameters: CkksParameters
    batch: int
    rotations: tuple[int, ...]
    layout: SlotLayout
    output: SlotLayout
    shape: Shape
    computed: str

    def __post_init__(self) -> None:
        slots, batch = self.parameters.slots, self.batch
        if batch < 1 or slots % batch or not _HEXADECIMAL.fullmatch(self.computed):
            raise ValueError(f"no circuit puts {batch} images in {slots} slots, or its digest is none")
        if list(self.rotations) != sorted(set(self.rotations)) or len(self.rotations) > _MOST_KEYS:
            raise ValueError(f"{len(self.rotations)} rotations are not ascending, or more than {_MOST_KEYS}")
        if any(not 0 < step < slots or step % batch for step in self.rotations):
            raise ValueError(f"a rotation is not by whole groups of {batch} of {slots} slots")
        room = slots // batch
        if any(not _fits(layout, room) for layout in (self.layout, self.output)):
            raise ValueError(f"a layout does not fit {room} slots")
        if not 1 <= prod(self.shape) <= self.output.slots.size or min(self.shape) < 1:
            raise ValueError(f"an answer of shape {self.shape} is not in a layout of {self.output.slots.size} values")

    @property
    def input(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.layout.channels, self.layout.height, self.layout.width

    @property
    def key_names(self) -> tuple[str, ...]:
        """Every evaluation key, in the order in which they are sent."""
        return (SQUARE, *map(rotation_name, self.rotations))

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, hexadecimal: what keys are bound to."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def pack(self, images: Real) -> Real:
        """What the client encrypts: (slots,) of images (N, C, H, W), at most ``batch`` of them."""
        copies = [self.layout.packed(image, self.parameters.slots // self.batch) for image in images]
        copies += [np.zeros_like(copies[0])] * (self.batch - len(copies))
        return np.stack(copies, axis=1).ravel()

    def unpack(self, slots: Real, count: int) -> Real:
        """The answers of ``count`` images, (count, ...), from decrypted slots."""
        by_image = slots.reshape(-1, self.batch).T[:count]
        size = prod(self.shape)
        return np.stack([self.output.unpacked(one).ravel()[:size].reshape(self.shape) for one in by_image])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; :meth:`from_dict` gives it back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PublicCircuit:
        """The circuit of what :meth:`to_dict` gave.

        Raises:
            ValueError: if it is none, or its parameters are not within the tables of secure moduli.
        """
        try:
            given = dict(values)
            parameters = CkksParameters(**_integers(given.pop("parameters")))
            layout, output = (SlotLayout(**_integers(given.pop(name))) for name in ("layout", "output"))
            rotations, shape = (_tuple(given.pop(name)) for name in ("rotations", "shape"))
            batch, computed = given.pop("batch"), given.pop("computed")
            if given or type(batch) is not int or type(computed) is not str:
                raise TypeError("unknown or ill-typed fields")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a client's part of a circuit: {error}") from None
        parameters.check()
        return cls(parameters, batch, rotations, layout, output, shape, computed)


def _fits(layout: SlotLayout, room: int) -> bool:
    """Whether all values of a layout lie in its slots, and those are a power of two of at most ``room``."""
    if max(layout.channels * layout.height * layout.width, layout.rows * layout.columns, layout.gap) > room:
        return False
    power = layout.size & (layout.size - 1) == 0
    return power and layout.size <= room and int(layout.slots.max()) < layout.size


def _integers(values: Mapping[str, Any]) -> dict[str, int]:
    if not all(type(value) is int and 0 < value <= 1 << 20 for value in values.values()):
        raise TypeError("a size is not a positive integer")
    return dict(values)


def _tuple(values: list[Any]) -> tuple[int, ...]:
    if type(values) is not list or not all(type(value) is int and 0 < value <= 1 << 20 for value in values):
        raise TypeError("a list is not of positive integers")
    return tuple(values)
