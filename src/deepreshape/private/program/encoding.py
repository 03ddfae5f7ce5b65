"""A program as bytes, and back; and the digest by which two parties know that they mean the same one.

The bytes are a magic number, the length of a description, the description as canonical JSON, and the arrays (masks,
indices, weights, biases) as raw little-endian bytes, in the order of the operations. Their sizes follow from the
described shapes. A reader trusts none of it: every field has a type and a range, and :class:`Program` checks what they
mean. Outputs are described only where there are others than the last value.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.program.ops import (
    INPUT,
    LARGEST,
    OPS,
    Conv2d,
    Fill,
    Gather,
    Integers,
    Op,
    ProgramError,
    Relu,
    Rescale,
    Secret,
    Shape,
    Square,
    SumPool,
    Value,
    Weights,
)
from deepreshape.private.program.program import NAME, Program, refuse_large, value_of

KINDS: dict[str, type[Op]] = {cls.kind: cls for cls in OPS}
DESCRIPTION_BYTES = 1 << 23
"""The longest description that is read."""
MAGIC = b"DRSHPRG2"
LENGTH = struct.Struct("<Q")
PIXELS = (Conv2d, Fill)
"""Operations whose masks are of pixels, of a size of their own."""
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
        if isinstance(op, Relu | Square) and op.mask is not None:
            arrays.append(np.packbits(op.mask).tobytes())
        if isinstance(op, PIXELS) and op.mask is not None:
            arrays.append(np.packbits(op.mask).tobytes())
        if isinstance(op, Gather):
            arrays.append(op.index.astype("<i4").tobytes())
        if op.name in program.weights:
            secret = program.weights[op.name]
            packed = [_narrow(secret.weight), _narrow(secret.bias)]
            weights[op.name] = [array.dtype.str for array in packed]
            arrays += [array.tobytes() for array in packed]
    modulus = program.modulus
    head: dict[str, object] = {
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
    if program.outputs != (program.ops[-1].name,):
        head["outputs"] = list(program.outputs)
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
        described = _mapping(value, "the program")
        outputs = tuple(_names(described.pop("outputs", []), "outputs"))
        head = _record(described, "the program", {"modulus", "input", "ops", "weights", "limits"})
        source = _record(head["input"], "the input", {"shape", "fraction", "bound"})
        dtypes = _mapping(head["weights"], "weights")
        limits = _mapping(head["limits"], "limits")
        shape = tuple(_integer(side, "input shape") for side in _list(source["shape"], "input shape"))
        fraction, modulus = _integer(source["fraction"], "input fraction"), _modulus(head["modulus"])
        values = {INPUT: Value(shape, fraction)}
        ops: list[Op] = []
        weights: dict[str, Weights] = {}
        listed = _list(head["ops"], "ops")
        refuse_large(shape, len(listed))
        for item in listed:
            kind, fields = _described(item)
            op = self._operation(kind, fields, values)
            values[op.name] = value_of(op, values, modulus)
            if isinstance(op, Secret) and op.name in dtypes:
                weights[op.name] = self._weights(op, dtypes[op.name], values[op.inputs[0]])
            ops.append(op)
        if self._rest.nbytes:
            raise ProgramError(f"{self._rest.nbytes} bytes are left behind the program's arrays")
        if set(dtypes) != set(weights):
            raise ProgramError(f"there are weights for {sorted(set(dtypes) - set(weights))}, which take none")
        bounded = {name: _integer(limit, f"limit of {name}", 1 << 256) for name, limit in limits.items()}
        bound = _integer(source["bound"], "input bound", 1 << 62)
        return Program(modulus, shape, fraction, bound, tuple(ops), weights, bounded, outputs)

    def _operation(self, kind: type[Op], described: dict[str, object], values: dict[str, Value]) -> Op:
        """The described operation, with its mask or index, if it has one, from the arrays."""
        name, inputs = cast(str, described["name"]), cast(Shape, described["inputs"])
        if kind in (Relu, Square) and described["mask"] is not None:
            source = values.get(cast(str, inputs[0]), Value((1,), 0))
            octets = np.frombuffer(self._take(-(-source.size // 8), name), np.uint8)
            bits = np.unpackbits(octets, count=source.size).astype(np.bool_)
            described["mask"] = bits.reshape(source.shape)
        if kind in PIXELS and described["mask"] is not None:
            height, width = cast(tuple[int, int], described["mask"])
            octets = np.frombuffer(self._take(-(-height * width // 8), name), np.uint8)
            described["mask"] = np.unpackbits(octets, count=height * width).astype(np.bool_).reshape(height, width)
        if kind is Gather:
            shape = cast(Shape, described["index"])
            index = np.frombuffer(self._take(4 * math.prod(shape), name), "<i4")
            described["index"] = index.astype(np.int32).reshape(shape)
        make = cast(Callable[..., Op], kind)
        return make(**described)

    def _weights(self, op: Secret, given: object, source: Value) -> Weights:
        kinds = _list(given, f"weights of {op.name}")
        if len(kinds) != 2 or not all(kind in NARROW for kind in kinds):
            raise ProgramError(f"{op.name}: weights of types {kinds!r:.80}; known are pairs of {list(NARROW)}")
        shape = op.weight_shape(source)
        weight, bias = (
            self._array(op.name, cast(str, kind), s) for kind, s in zip(kinds, (shape, shape[:1]), strict=True)
        )
        return Weights(weight, bias)

    def _array(self, name: str, kind: str, shape: Shape) -> Integers:
        dtype = np.dtype(kind)
        array = np.frombuffer(self._take(math.prod(shape) * dtype.itemsize, name), dtype)
        return array.astype(np.int64).reshape(shape)

    def _take(self, nbytes: int, name: str) -> memoryview:
        if nbytes > self._rest.nbytes:
            raise ProgramError(f"{name}: its arrays take {nbytes} more bytes, and {self._rest.nbytes} are there")
        taken, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        return taken


def _narrow(array: Integers) -> NDArray[np.signedinteger[Any]]:
    """The same integers in the narrowest type that holds them, little-endian and contiguous."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    kind = next(kind for kind in NARROW if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return np.ascontiguousarray(array, np.dtype(kind))


def _describe(op: Op) -> dict[str, object]:
    described: dict[str, object] = {item.name: getattr(op, item.name) for item in fields(op)}
    if isinstance(op, Relu | Square):
        described["mask"] = op.mask is not None
    if isinstance(op, PIXELS):
        del described["mask"]  # a program without such masks is the bytes that it was before there were any
        described |= {} if op.mask is None else {"mask": op.mask.shape}
    if isinstance(op, Gather):
        described["index"] = op.index.shape
    return {
        "op": op.kind,
        **{name: list(cast(Shape, v)) if isinstance(v, tuple) else v for name, v in described.items()},
    }


def _described(value: object) -> tuple[type[Op], dict[str, object]]:
    """Class and fields of a described operation: ``mask`` is whether there is one or None, ``index`` its shape."""
    described = _mapping(value, "an operation")
    kind = described.pop("op", None)
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ProgramError(f"operation {str(kind)[:40]!r} is not known; known are {sorted(KINDS)}")
    name = described.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ProgramError(f"an operation of kind {kind} has no plain name")
    if cls is Conv2d:
        described.setdefault("mask", None)
    described = _record(described, name, {item.name for item in fields(cls)})
    described["inputs"] = tuple(_names(described["inputs"], f"inputs of {name}"))
    if not described["inputs"]:
        raise ProgramError(f"{name}: inputs must be names of values")
    for item in set(described) - {"name", "inputs"}:
        described[item] = _field(cls, item, described[item], f"{item} of {name}")
    return cls, described


def _field(cls: type[Op], item: str, value: object, what: str) -> object:
    """A field of an operation: an integer, if nothing else is said here."""
    match item:
        case "mask" if cls is Conv2d and value is None:
            return None
        case "mask" if cls in PIXELS:
            sides = _list(value, what)
            if len(sides) != 2:
                raise ProgramError(f"{what}: a height and a width are needed, not {sides!r:.80}")
            return tuple(_integer(side, what) for side in sides)
        case "mask":
            if not isinstance(value, bool):
                raise ProgramError(f"{what.rpartition(' ')[2]}: mask must be true or false")
            return value or None
        case "index":
            return tuple(_integer(side, what) for side in _list(value, what))
        case "kernel" | "stride" if cls is SumPool:
            pair = _list(value, what)
            if len(pair) != 2:
                raise ProgramError(f"{what.rpartition(' ')[2]}: {item} must be a pair")
            return tuple(_integer(side, what) for side in pair)
        case "factor" | "offset" if cls is Rescale:
            if type(value) is not int or abs(value) >= 1 << 62:
                raise ProgramError(f"{what} must be an integer of at most 62 bits")
            return value
        case _:
            return _integer(value, what)


def _modulus(value: object) -> Ring | Field:
    fields = _mapping(value, "the modulus")
    try:
        if set(fields) == {"bits"}:
            return Ring(_integer(fields["bits"], "bits of the modulus"))
        if set(fields) == {"prime"}:
            return Field(_integer(fields["prime"], "prime of the modulus", 1 << 63))
    except ProgramError:
        raise
    except ValueError as error:
        raise ProgramError(str(error)) from None
    raise ProgramError(f"the modulus must have bits or a prime, it has {sorted(fields)}")


def _mapping(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ProgramError(f"{what} must be an object of named fields")
    return dict(cast(dict[str, object], value))


def _record(value: object, what: str, names: set[str]) -> dict[str, object]:
    record = _mapping(value, what)
    if set(record) != names:
        raise ProgramError(f"{what} must have the fields {sorted(names)}, it has {sorted(record)[:20]}")
    return record


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise ProgramError(f"{what} must be a list")
    return cast(list[object], value)


def _names(value: object, what: str) -> list[str]:
    names = _list(value, what)
    if not all(isinstance(name, str) for name in names):
        raise ProgramError(f"{what} must be names of values")
    return cast(list[str], names)


def _integer(value: object, what: str, most: int = LARGEST) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ProgramError(f"{what} must be an integer from 0 to {most}")
    return value
