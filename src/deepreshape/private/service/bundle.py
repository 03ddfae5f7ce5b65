"""A folder that holds a program for both parties, and the public facts by which a client reads images and answers.

    bundle = Bundle.of(lowered)          # the program, and the facts of the data set that it was calibrated on
    bundle.write("bundle")               # server.program (secret), client.program and client.json (for every client)
    Bundle.read("bundle", "client")      # without weights

An image becomes an input here and nowhere else: an 8-bit image is normalised by the facts; an array of floats is taken
as the network sees it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.files import printable, read_arrays, read_json, replace_file
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.ops import ProgramError
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import Role

__all__ = ["CLIENT_PROGRAM", "FACTS", "SERVER_PROGRAM", "Bundle", "Facts"]

SERVER_PROGRAM, CLIENT_PROGRAM, FACTS = "server.program", "client.program", "client.json"
FACTS_BYTES = 1 << 22
"""The largest client.json that is read."""
NAME_LENGTH = 200
MOST_PIXELS = 1 << 28
"""Of an upsampled map, times its classes: what a client computes for whoever wrote the facts."""
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Of the normal numbers above 0 in float32, in which images are normalised; both inverses are finite."""
PLAUSIBLE = 20.0
"""No normalised image has values so large; one of 0 to 255 has."""


class _Lowered(Protocol):
    @property
    def program(self) -> Program: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Facts:
    """What a client needs to send images and read answers; none of it is secret.

    Attributes:
        class_names: of the outputs, in order; numbers where there are none.
        mean, std: by channel, on the scale 0 to 1, that the network's inputs are normalised by.
        resize: ``"crop"`` if an image of another size is to be scaled and cropped at the centre, as in training; empty
            if only images of the very size are taken.
        colours: red, green and blue of each class in pictures; some that differ where there are none.
        upsample: (height, width) that maps of logits are upsampled to before the largest is taken at each pixel; empty
            where the output is one class.
    """

    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: str = ""
    colours: tuple[tuple[int, ...], ...] = ()
    upsample: tuple[int, ...] = ()

    def colour(self, place: int) -> tuple[int, ...]:
        """What an output is painted in."""
        if self.colours:
            return self.colours[place]
        # steps that visit all of the cube of colours before they come back
        return (53 + 97 * place) % 256, (101 + 151 * place) % 256, (197 + 61 * place) % 256

    def name(self, place: int) -> str:
        """What an output is called."""
        return self.class_names[place] if self.class_names else str(place)

    def input_of(self, image: Any, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], str]:
        """An image as the network takes it, and what was done to it for that, in words.

        Args:
            image: the path of an image or of a .npy array, a PIL image, or an array or tensor: 8-bit integers of shape
                (C, H, W) or (H, W, C), or floats (C, H, W) as the network sees them.
            shape: of the input, (C, H, W).

        Raises:
            ValueError: if it does not fit the network or the facts, or is no image.
        """
        where = f"{image} " if isinstance(image, str | Path) else ""
        if isinstance(image, str | Path):
            image = _opened(Path(image))
        done = ""
        if hasattr(image, "convert"):
            image, done = self._fitted(image, shape)
        array = np.asarray(image)
        if array.dtype == np.uint8:
            return self._normalised(array, shape), done
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(
                f"{where}{array.dtype} of shape {array.shape} does not fit, the network takes floats {shape}"
            )
        if not np.isfinite(array).all() or np.abs(array).max(initial=0) > PLAUSIBLE:
            raise ValueError(
                f"{where}holds values up to {np.abs(array).max():g}, which are not normalised; give 8-bit integers, or "
                "floats that are (x / 255 - mean) / std"
            )
        return array.astype(np.float32), done

    def _fitted(self, picture: Any, shape: tuple[int, ...]) -> tuple[Any, str]:
        """A PIL image in the network's mode and size."""
        from PIL import Image, ImageOps

        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I") or upright.mode == "F":  # which a conversion would clip
            raise ValueError(f"its pixels have more than 8 bits (mode {upright.mode}); scale them to 8 bits first")
        mode, size = "L" if shape[0] == 1 else "RGB", (shape[2], shape[1])
        done = [f"from {upright.mode} to {mode}"] if upright.mode != mode else []
        if upright.size != size:
            if self.resize != "crop":
                raise ValueError(
                    f"the image has {upright.size[0]}x{upright.size[1]} pixels, the network takes {size[0]}x{size[1]}, "
                    "and the program's facts do not say how to resize; resize it first"
                )
            done.append(f"scaled and cropped from {upright.size[0]}x{upright.size[1]} to {size[0]}x{size[1]}")
        return ImageOps.fit(upright.convert(mode), size, Image.Resampling.BILINEAR), ", ".join(done)

    def _normalised(self, pixels: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
        if pixels.ndim == 2:
            pixels = pixels[None]
        elif pixels.shape != shape and pixels.ndim == 3 and pixels.shape[2] == shape[0]:
            pixels = pixels.transpose(2, 0, 1)
        if pixels.shape != shape:
            raise ValueError(f"an image of shape {pixels.shape} does not fit the network, which takes {shape}")
        if len(self.mean) != shape[0] or len(self.std) != shape[0]:
            raise ValueError(
                f"the program's facts have no mean and std for {shape[0]} channels; give normalised floats"
            )
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32)


@dataclass(frozen=True)
class Bundle:
    """A program, with weights or without, and the facts that go with it."""

    program: Program
    facts: Facts = Facts()

    @classmethod
    def of(cls, lowered: _Lowered | Program | Bundle) -> Bundle:
        """Of what ``lower`` gives, or of a bare program."""
        if isinstance(lowered, Bundle):
            return lowered
        return (
            cls(lowered)
            if isinstance(lowered, Program)
            else cls(lowered.program, _facts(lowered.facts, lowered.program))
        )

    def write(self, folder: Path | str) -> None:
        """Write both parties' programs and the facts; the server's is readable by its owner only."""
        to = Path(folder)
        to.mkdir(parents=True, exist_ok=True)
        replace_file(to / SERVER_PROGRAM, to_bytes(self.program))
        replace_file(to / CLIENT_PROGRAM, to_bytes(self.program.public()), 0o644)
        replace_file(to / FACTS, (json.dumps(asdict(self.facts), indent=1) + "\n").encode("ascii"), 0o644)

    @classmethod
    def read(cls, folder: Path | str, role: Role) -> Bundle:
        """One party's part of a folder.

        Raises:
            ValueError: if it is not there, or not what it should be.
        """
        path = Path(folder) / (SERVER_PROGRAM if role == "server" else CLIENT_PROGRAM)
        if not path.is_file():
            raise ValueError(f"{folder} holds no {path.name}; `deepreshape private lower --out {folder}` makes it")
        try:
            program = from_bytes(path.read_bytes())
        except ProgramError as error:
            raise ValueError(f"{path}: {error}") from None
        if role == "server" and not program.weights:
            raise ValueError(f"{path} has no weights: it is a client's part; the server needs {SERVER_PROGRAM}")
        known = path.with_name(FACTS)
        return cls(program, read_facts(known, program) if known.is_file() else Facts())


def read_facts(path: Path, program: Program) -> Facts:
    """Facts from a file.

    Raises:
        ValueError: if they do not fit the program.
    """
    try:
        return _facts(read_json(path, FACTS_BYTES), program)
    except UnsafeTextError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        channels, classes = program.input_shape[0], _classes(program, maps=False)
        raise ValueError(
            f"{path} is to hold class_names, mean and std, lists of {classes}, {channels} and {channels}"
        ) from None


class UnsafeTextError(ValueError):
    """Text from outside that must reach no terminal."""


def _facts(given: Mapping[str, Any], program: Program) -> Facts:
    shape = program.values[program.outputs[0]].shape
    maps = len(shape) == 3 and bool(given.get("upsample"))
    return facts_of(given, program.input_shape[0], _classes(program, maps=maps), maps=maps)


def _classes(program: Program, *, maps: bool) -> int:
    """How many classes a program has logits for, or at each place of a map: of several outputs the first is read."""
    shape = program.values[program.outputs[0]].shape
    return shape[0] if maps else math.prod(shape)


def facts_of(given: Mapping[str, Any], channels: int, classes: int, *, maps: bool = False) -> Facts:
    """The facts in ``given``, which the other party supplies: held to types, sizes and plain characters.

    Args:
        given: by name.
        channels: of the program's input.
        classes: that its output has logits for.
        maps: whether its output is a map of logits, which may be upsampled.

    Raises:
        ValueError: if they are not as they should be.
    """
    names = tuple(given.get("class_names", ()))
    for name in names:
        if not isinstance(name, str) or len(name) > NAME_LENGTH or printable(name) != name:
            raise UnsafeTextError(f"a class name is {name!a:.80}; use text of up to {NAME_LENGTH} printable characters")
    try:
        mean, std = (tuple(map(float, given.get(name, ()))) for name in ("mean", "std"))
    except OverflowError:  # an integer beyond all floats
        raise ValueError("means and deviations must be finite") from None
    if not all(abs(value) <= LARGEST for value in mean + std) or min(std, default=1.0) < SMALLEST:
        raise ValueError(
            f"means {mean} and deviations {std} must be finite in float32, and deviations {SMALLEST:.3g} or more, by "
            "which one can divide"
        )
    if given.get("resize", "") not in ("", "crop"):
        raise UnsafeTextError(f"resize is {given['resize']!a:.80}; 'crop' or nothing is known")
    if len(names) not in (0, classes) or {len(mean), len(std)} - {0, channels}:
        raise ValueError(
            f"there are {classes} outputs and {channels} channels, and facts of {len(names)} classes, {len(mean)} "
            f"means and {len(std)} deviations"
        )
    colours = tuple(tuple(colour) for colour in given.get("colours", ()))
    if len(colours) not in (0, classes) or not all(len(colour) == 3 and _within(colour, 0, 255) for colour in colours):
        raise ValueError(f"there are {classes} classes, and colours are red, green and blue from 0 to 255 for each")
    upsample = tuple(given.get("upsample", ()))
    if upsample and not (maps and len(upsample) == 2 and _within(upsample, 1, math.isqrt(MOST_PIXELS // classes))):
        raise ValueError(f"upsample is {upsample!a:.80}, and no height and width that a map of logits can have")
    return Facts(names, mean, std, str(given.get("resize", "")), colours, upsample)


def _within(values: tuple[Any, ...], low: int, high: int) -> bool:
    return all(type(value) is int and low <= value <= high for value in values)


def _opened(path: Path) -> Any:
    """An image, or the array of a .npy file.

    Raises:
        ValueError: if it is neither.
    """
    if path.suffix == ".npy":
        return read_arrays(path)
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("reading an image needs Pillow: pip install 'deepreshape[client]'") from None
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} is not an image that can be read: {why}") from None
    return picture
