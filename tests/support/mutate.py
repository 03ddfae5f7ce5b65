"""Changes of an input, of its bytes or of the JSON in it, and what a reader under test is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NASTY: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**200,
    1e308,
    "",
    "\x1b[2J",
    "a" * 300,
    [],
    {},
    [[], []],
    {"a": 1},
]
"""Values that a field of JSON is replaced by."""

Reader = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        seeds: inputs that it takes, which are mutated.
        open: given an empty folder, makes the reader.
        refusals: the classes that it documents.
    """

    seeds: Callable[[], list[bytes]]
    open: Callable[[Path], Reader]
    refusals: tuple[type[Exception], ...]


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """One to four changes of an input: of its bytes, or of the JSON that it holds."""
    data = seed
    for _ in range(rng.randint(1, 4)):
        data = (_changed_json if rng.random() < 0.5 else _changed_bytes)(data, rng)
    return data


def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 8, 64])
    fresh = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length), data[at : at + length] * 2])
    match rng.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + fresh + data[at:]
        case 2:
            return data[:at] + data[at + length :]
        case 3 if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case _:
            return data[:at] + fresh + data[at + length :]


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in the JSON text that ``data`` is or, after a length of eight bytes, holds."""
    start = data.find(b"{")
    length = int.from_bytes(data[start - 8 : start], "little") if start >= 8 else len(data)
    text = data[start : start + length] if start >= 0 else b""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return _changed_bytes(data, rng)
    places = list(_places(content))
    if not places:
        return data
    owner, key = rng.choice(places)
    owner[key] = json.loads(json.dumps(rng.choice([*NASTY, owner])))
    new = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    head = data[: start - 8] + len(new).to_bytes(8, "little") if start >= 8 else data[:start]
    return head + new + data[start + length :]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
