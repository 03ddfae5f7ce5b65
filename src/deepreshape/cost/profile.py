"""A measured profile: how long one unit of each kind of work takes on a machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

__all__ = ["Profile", "Work", "reference"]

Work = Mapping[str, float]
"""How many units of each kind."""


@dataclass(frozen=True)
class Profile:
    """What ``deepreshape calibrate`` writes.

    Attributes:
        name: of the profile.
        date: it was measured on, ISO 8601.
        machine: processor, cores, system, and the load while measuring.
        versions: of Python and the packages that matter.
        units: seconds of one unit, by kind of work; ``docs/costs.md`` lists the kinds.
        resident: bytes of memory that a party's process takes before it has done anything.
        factors: that are already in ``units``: by how much a whole run between two processes was slower than its parts.
    """

    name: str
    date: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    units: Mapping[str, float]
    resident: int
    factors: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        numbers = {**self.units, "resident": self.resident, **self.factors}
        for kind, value in numbers.items():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ValueError(f"{kind}: {value!r} is no number of seconds or bytes")

    def seconds(self, work: Work) -> float:
        """Of this much work, one thing after the other.

        Raises:
            ValueError: if a kind was not measured.
        """
        try:
            return sum(self.units[kind] * count for kind, count in work.items() if count)
        except KeyError as missing:
            raise ValueError(
                f"profile {self.name!r} of {self.date} has no time for {missing}; measure it again with "
                "`deepreshape calibrate`"
            ) from None

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Profile:
        """A profile from its file.

        Raises:
            ValueError: if the file is none.
        """
        try:
            return cls(**_fields(path))
        except ValueError as error:
            raise ValueError(
                f"{path} is not a cost profile ({error}); create one with `deepreshape calibrate --out {path}`"
            ) from None


def _fields(path: Path) -> dict[str, Any]:
    """What a profile's file says, by field, each of its type.

    Raises:
        ValueError: in a user's words, if that is not a profile.
    """
    try:
        read: Any = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    kinds = {"name": str, "date": str, "machine": dict, "versions": dict, "units": dict, "resident": int}
    values = cast(dict[str, Any], read if isinstance(read, dict) else {})
    if kinds.keys() - values.keys() or values.keys() - {*kinds, "factors"}:
        raise ValueError(f"it is no JSON object with {', '.join(kinds)} and factors")
    for name, kind in (kinds | {"factors": dict}).items():
        if not isinstance(values.get(name, {}), kind):
            raise ValueError(f"its {name} is {values[name]!r}")
    for name, kind in {"cpu": str, "cpus": int}.items():
        if not isinstance(values["machine"].get(name), kind):
            raise ValueError(f"its machine has no {name}")
    return values


@cache
def reference() -> Profile:
    """The profile that comes with the package; its machine is named in it."""
    return Profile.read(Path(__file__).with_name("reference.json"))
