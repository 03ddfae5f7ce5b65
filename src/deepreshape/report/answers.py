"""Images that were answered privately, with the answers and what they cost, for the report."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["AnsweredImage", "PrivateAnswers", "SegmentedAnswer", "png_of"]


@dataclass(frozen=True)
class AnsweredImage:
    """One image: as a PNG in base64, the class that came back with its probability, and the true class."""

    png: str
    name: str
    probability: float
    label: str


@dataclass(frozen=True)
class SegmentedAnswer:
    """One image whose pixels were given classes: pictures of it, of the true map and of the answer, PNGs in base64.

    Attributes:
        png, truth, answer: the pictures; the maps in the colours of the classes, black where none is known.
        right: of ``known`` pixels, how many got their true class.
    """

    png: str
    truth: str
    answer: str
    right: int
    known: int


@dataclass(frozen=True)
class PrivateAnswers:
    """Images answered one after the other by two processes on this machine.

    Attributes:
        network: what ran, in words.
        relus: how many it has.
        images: with their answers; none where every pixel has a class.
        seconds, bytes: of one image in the mean, ``{"offline", "online"}``.
        agree: whether all results equal the plain program's, bit for bit.
        maps: images with the maps that came back.
        legend: (class, colour as ``#rrggbb``) of them.
    """

    network: str
    relus: int
    images: tuple[AnsweredImage, ...]
    seconds: dict[str, float]
    bytes: dict[str, int]
    agree: bool
    maps: tuple[SegmentedAnswer, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def right(self) -> int:
        """Answers that are the true class."""
        return sum(image.name == image.label for image in self.images)

    def __str__(self) -> str:
        costs = (f"{phase} {self.seconds[phase]:.2f} s and {self.bytes[phase] / 1e6:.1f} MB" for phase in self.seconds)
        agrees = "all equal the plain program bit for bit" if self.agree else "NOT ALL EQUAL the plain program"
        done = f"answered {len(self.images)} images privately, {self.right} of them rightly"
        if self.maps:
            share = sum(one.right for one in self.maps) / max(1, sum(one.known for one in self.maps))
            done = f"segmented {len(self.maps)} images privately, {share:.1%} of their pixels rightly"
        return f"{self.network} ({self.relus:,} ReLUs) {done}; each {', '.join(costs)}; {agrees}"


def png_of(pixels: Sequence[Sequence[Sequence[int]]]) -> str:
    """An image of 8-bit values [row][column][channel], one or three channels, as a PNG in base64."""
    height, width, channels = len(pixels), len(pixels[0]), len(pixels[0][0])
    lines = b"".join(b"\0" + bytes(value for pixel in line for value in pixel) for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()
