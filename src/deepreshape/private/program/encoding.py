"""A program as bytes, and back; and the digest by which two parties know that they mean the same one.

The bytes are a magic number, the length of a description, the description as canonical JSON, and the arrays (masks,
weights, biases) as raw little-endian bytes, in the order of the operations. Their sizes follow from the described
shapes. A reader trusts none of it: every field has a type and a range, and :class:`Program` checks what they mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.program.ops import (
    LARGEST,
    NAME,
    Add,
    Conv2d,
    Flatten,
    Integers,
    Linear,
    Op,
    Program,
    ProgramError,
    Raise,
    Relu,
    Shape,
    SumPool,
    Truncate,
    Weights,
)

KINDS: dict[str, type[Op]] = {
    "conv2d": Conv2d,
    "linear": Linear,
    "add": Add,
    "sum_pool": SumPool,
    "relu": Relu,
    "truncate": Truncate,
    "raise": Raise,
    "flatten": Flatten,
}
MAGIC = b"DRSHPRG1"
LENGTH = struct.Struct("<Q")
DESCRIPTION_BYTES = 1 << 23
"""The longest description that is read."""
NARROW = ("|i1", "<i2", "<i4", "<i8")
"""What integers are stored as: the narrowest of these that holds them."""


def digest(program: Program) -> str:
    """SHA-256 of the public part, hexadecimal: architecture, shapes, bit widths, formats and masks."""
    return hashlib.sha256(to_bytes(program.public())).hexdigest()


def to_bytes(program: Program) -> bytes:
    """All of ``program``, its weights included if it has them."""
    arrays: list[bytes] = []
    weights: dict[str, list[str]] = {}
    for op in program.ops:
        if isinstance(op, Relu) and op.mask is not None:
            arrays.append(np.packbits(op.mask).tobytes())
        if op.name in program.weights:
            own = program.weights[op.name]
            packed = [_narrow(own.weight), _narrow(own.bias)]
            weights[op.name] = [array.dtype.str for array in packed]
            arrays += [array.tobytes() for array in packed]
    modulus = program.modulus
    head = {
        "modulus": {"bits": modulus.bits} if isinstance(modulus, Ring) else {"prime": modulus.prime},
        "input": {
            "shape": list(program.input_shape),
            "fraction": program.input_fraction,
            "bound": program.input_bound,
        },
        "ops": [_describe(op) for op in program.ops],
        "weights": weights,
        "limits": dict(program.limits),
    }
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode("ascii")
    return b"".join([MAGIC, LENGTH.pack(len(text)), text, *arrays])


def from_bytes(data: bytes | bytearray | memoryview) -> Program:
    """The inverse of :func:`to_bytes`.

    Raises:
        ProgramError: saying what is wrong; nothing of ``data`` is trusted.
    """
    view = memoryview(data).cast("B")
    start = len(MAGIC) + LENGTH.size
    if view.nbytes < start or bytes(view[: len(MAGIC)]) != MAGIC:
        raise ProgramError("this is no deepreshape program of a version that is known here")
    (length,) = LENGTH.unpack(view[len(MAGIC) : start])
    if length > DESCRIPTION_BYTES:
        raise ProgramError(f"the program's description takes {length} bytes; at most {DESCRIPTION_BYTES} are read")
    if length > view.nbytes - start:
        raise ProgramError(f"the program's description takes {length} bytes, and {view.nbytes - start} are there")
    try:
        head: object = json.loads(bytes(view[start : start + length]))
    except (ValueError, RecursionError):
        raise ProgramError("the program's description is not JSON") from None
    return _Reader(view[start + length :]).program(head)


class _Reader:
    """Reads a program whose arrays are ``rest``."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def program(self, value: object) -> Program:
        head = _record(value, "the program", {"modulus", "input", "ops", "weights", "limits"})
        source = _record(head["input"], "the input", {"shape", "fraction", "bound"})
        described = _list(head["ops"], "ops")
        dtypes = _mapping(head["weights"], "weights")
        limits = _mapping(head["limits"], "limits")
        shape = tuple(_integer(side, "input shape") for side in _list(source["shape"], "input shape"))
        public = [_operation(item) for item in described]
        # masks and weights lie behind one another in the order of the operations, and their sizes follow from shapes
        bare = Program(
            _modulus(head["modulus"]),
            shape,
            _integer(source["fraction"], "input fraction"),
            _integer(source["bound"], "input bound", 1 << 62),
            tuple(op for op, _ in public),
        )
        ops: list[Op] = []
        weights: dict[str, Weights] = {}
        for op, masked in public:
            source_value = bare.values[op.inputs[0]]
            if isinstance(op, Relu) and masked:
                octets = np.frombuffer(self._take(-(-source_value.size // 8), op.name), np.uint8)
                mask = np.unpackbits(octets, count=source_value.size).astype(np.bool_).reshape(source_value.shape)
                op = replace(op, mask=mask)
            if isinstance(op, Conv2d | Linear) and op.name in dtypes:
                kinds = _list(dtypes[op.name], f"weights of {op.name}")
                if len(kinds) != 2 or not all(kind in NARROW for kind in kinds):
                    raise ProgramError(f"{op.name}: weights of types {kinds!r:.80}; known are pairs of {list(NARROW)}")
                full = op.weight_shape(source_value)
                weights[op.name] = Weights(
                    self._array(op.name, cast(str, kinds[0]), full), self._array(op.name, cast(str, kinds[1]), full[:1])
                )
            ops.append(op)
        if self._rest.nbytes:
            raise ProgramError(f"{self._rest.nbytes} bytes are left behind the program's arrays")
        if set(dtypes) != set(weights):
            raise ProgramError(f"there are weights for {sorted(set(dtypes) - set(weights))}, which take none")
        bounded = {name: _integer(limit, f"limit of {name}", 1 << 256) for name, limit in limits.items()}
        return replace(bare, ops=tuple(ops), weights=weights, limits=bounded)

    def _array(self, name: str, kind: str, shape: Shape) -> Integers:
        dtype = np.dtype(kind)
        found = np.frombuffer(self._take(math.prod(shape) * dtype.itemsize, name), dtype)
        return found.astype(np.int64).reshape(shape)

    def _take(self, nbytes: int, name: str) -> memoryview:
        if nbytes > self._rest.nbytes:
            raise ProgramError(f"{name}: its arrays take {nbytes} more bytes, and {self._rest.nbytes} are there")
        found, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        return found


def _narrow(array: Integers) -> NDArray[np.signedinteger[Any]]:
    """The same integers in the narrowest type that holds them, little-endian and contiguous."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    kind = next(kind for kind in NARROW if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return np.ascontiguousarray(array, np.dtype(kind))


def _describe(op: Op) -> dict[str, object]:
    kind = next(kind for kind, cls in KINDS.items() if type(op) is cls)
    found: dict[str, object] = {item.name: getattr(op, item.name) for item in fields(op)}
    if isinstance(op, Relu):
        found["mask"] = op.mask is not None
    return {"op": kind, **{name: list(cast(Shape, v)) if isinstance(v, tuple) else v for name, v in found.items()}}


def _operation(value: object) -> tuple[Op, bool]:
    """The described operation, and whether it is a Relu whose mask follows among the arrays."""
    described = _mapping(value, "an operation")
    kind = described.pop("op", None)
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ProgramError(f"operation {str(kind)[:40]!r} is not known; known are {sorted(KINDS)}")
    name = described.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ProgramError(f"an operation of kind {kind} has no plain name")
    described = _record(described, name, {item.name for item in fields(cls)})
    sources = _list(described["inputs"], f"inputs of {name}")
    if not sources or not all(isinstance(source, str) for source in sources):
        raise ProgramError(f"{name}: inputs must be names of values")
    described["inputs"] = tuple(sources)
    masked = described.pop("mask", False)
    if not isinstance(masked, bool):
        raise ProgramError(f"{name}: mask must be true or false")
    for item in set(described) - {"name", "inputs"}:
        if item in ("kernel", "stride") and cls is SumPool:
            pair = _list(described[item], f"{item} of {name}")
            if len(pair) != 2:
                raise ProgramError(f"{name}: {item} must be a pair")
            described[item] = tuple(_integer(side, f"{item} of {name}") for side in pair)
        else:
            described[item] = _integer(described[item], f"{item} of {name}")
    make = cast(Callable[..., Op], cls)
    return make(**described), masked


def _modulus(value: object) -> Ring | Field:
    found = _mapping(value, "the modulus")
    try:
        if set(found) == {"bits"}:
            return Ring(_integer(found["bits"], "bits of the modulus"))
        if set(found) == {"prime"}:
            return Field(_integer(found["prime"], "prime of the modulus", 1 << 63))
    except ProgramError:
        raise
    except ValueError as error:
        raise ProgramError(str(error)) from None
    raise ProgramError(f"the modulus must have bits or a prime, it has {sorted(found)}")


def _mapping(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ProgramError(f"{what} must be an object of named fields")
    return dict(cast(dict[str, object], value))


def _record(value: object, what: str, names: set[str]) -> dict[str, object]:
    found = _mapping(value, what)
    if set(found) != names:
        raise ProgramError(f"{what} must have the fields {sorted(names)}, it has {sorted(found)[:20]}")
    return found


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise ProgramError(f"{what} must be a list")
    return cast(list[object], value)


def _integer(value: object, what: str, most: int = LARGEST) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ProgramError(f"{what} must be an integer from 0 to {most}")
    return value
