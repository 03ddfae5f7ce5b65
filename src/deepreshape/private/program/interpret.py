"""The program in the clear: what every other interpreter must agree with.

Exact integers throughout; a value that the modulus cannot hold is reported with its layer, never wrapped. ``>>`` rounds
towards minus infinity.

Two parties compute all of this bit for bit, but for what depends on their shares: where a value is truncated without a
ReLU, or by a ReLU of which only the sign is garbled, they round up or down (``division.py``), and a stochastic sign may
be wrong (``sign.py``). Given the client's shares, :func:`run` does as they do; without them it can draw some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Randomness, Ring, Words
from deepreshape.private.arith.truncation import Division
from deepreshape.private.program.integer_linear import Integers, products, windows
from deepreshape.private.program.ops import (
    INPUT,
    Add,
    Conv2d,
    Flatten,
    Linear,
    Op,
    Program,
    Raise,
    Relu,
    SumPool,
    Truncate,
    truncation_room,
)

Exact = NDArray[np.int64] | NDArray[np.object_]


class Rectifier(Protocol):
    """What a ReLU protocol tells the interpreter; see :class:`deepreshape.private.protocols.base.ReluProtocol`."""

    def layer(self, modulus: Ring | Field, op: Relu, count: int) -> Any:
        """The layer that an operation is."""
        ...

    def max_input(self, layer: Any) -> int:
        """The largest absolute value that it can take."""
        ...

    def replay(self, layer: Any, x: Integers, client: Words) -> Integers:
        """What it makes of ``x`` when the client's share of it is ``client``."""
        ...


def run(
    program: Program,
    inputs: Integers,
    *,
    client: Mapping[str, Words] | None = None,
    relu: Rectifier | None = None,
    rng: Randomness | None = None,
    observe: Callable[[str, Integers], None] | None = None,
) -> Integers:
    """The program's output for a batch of inputs.

    Args:
        program: with its weights.
        inputs: (N, *input_shape), int64.
        client: the client's shares, by value name, of what is rounded by shares: uint64 of the value's shape.
        relu: the protocol by which ReLUs are computed (``protocols.choose``); exactly without.
        rng: draws the client's shares that are not given, for every input anew. Without it, what would need them rounds
            towards minus infinity, and signs are right.
        observe: is shown every value's name and integers, the input's too.

    Returns:
        (N, *output shape), int64.

    Raises:
        ValueError: if ``inputs`` do not fit the program.
        OverflowError: if a value leaves the range in which the two parties compute it rightly; names the layer.
    """
    if inputs.dtype != np.int64 or inputs.shape[1:] != program.input_shape or not len(inputs):
        raise ValueError(f"inputs are {inputs.dtype} {inputs.shape}; they must be int64 (N, *{program.input_shape})")
    _within(INPUT, inputs, program.input_bound, "the program's input bound")
    roles = _Roles(program.modulus, relu, client or {}, rng)
    values: dict[str, Integers] = {INPUT: inputs}
    last_use = {name: op.name for op in program.ops for name in op.inputs}
    if observe:
        observe(INPUT, inputs)
    for op in program.ops:
        found = _apply(program, op, [values[name] for name in op.inputs], roles)
        values[op.name] = _within(op.name, found, (program.modulus.order - 1) // 2, str(program.modulus))
        if observe:
            observe(op.name, values[op.name])
        for name in set(op.inputs):
            if last_use[name] == op.name:
                del values[name]
    return values[program.output]


class _Roles(NamedTuple):
    """How the two parties would go about it, where that matters."""

    modulus: Ring | Field
    relu: Rectifier | None
    client: Mapping[str, Words]
    rng: Randomness | None

    def share(self, name: str, x: Integers) -> Words | None:
        """The client's share of a value; None if nobody asks for one."""
        if name in self.client:
            return self.client[name]
        return None if self.rng is None else self.modulus.random(x.shape, self.rng)


def _apply(program: Program, op: Op, inputs: list[Integers], roles: _Roles) -> Exact:
    x = inputs[0]
    match op:
        case Conv2d() | Linear():
            return _linear(program, op, x)
        case Add():
            total = _roomy(x, len(inputs))
            for addend in inputs[1:]:
                total = total + addend
            return total
        case SumPool():
            total = np.zeros((), np.int64)
            roomy = _roomy(x, op.kernel[0] * op.kernel[1])
            for rows, columns in windows(op, *x.shape[2:]):
                total = total + roomy[:, :, rows, columns]
            return total
        case Raise():
            return _roomy(x, 1 << op.shift) * (1 << op.shift)
        case Flatten():
            return x.reshape(len(x), -1)
        case Truncate():
            return _truncate(op, x, roles, roles.share(op.inputs[0], x))
        case Relu():
            share = roles.share(op.inputs[0], x)
            rectified = _rectify(op, x, roles, share)
            if op.mask is None or op.mask.all():
                return rectified
            return np.where(op.mask, rectified, _truncate(op, x, roles, share, ~op.mask))


def _linear(program: Program, op: Conv2d | Linear, x: Integers) -> Exact:
    own = program.weights[op.name]
    reach = own.reach * int(np.abs(x).max()) + int(np.abs(own.bias).max())
    bias = own.bias if isinstance(op, Linear) else own.bias[:, None, None]
    if reach < 1 << 63:
        total = bias[None]
        for shift, part in products(op, own, x):
            total = total + (part << np.int64(shift))  # whatever wraps on the way comes back: the sum fits
        return total
    wide = bias[None].astype(np.object_)
    for shift, part in products(op, own, x):
        wide = wide + part.astype(np.object_) * (1 << shift)
    return wide


def _rectify(op: Relu, x: Integers, roles: _Roles, share: Words | None) -> Integers:
    if roles.relu is None or share is None:
        return np.maximum(x, 0) >> np.int64(op.shift)
    layer = roles.relu.layer(roles.modulus, op, x[0].size)
    what = f"what {op.name} can rectify by {roles.relu}"
    _within(op.inputs[0], x if op.mask is None else x[:, op.mask], roles.relu.max_input(layer), what)
    return roles.relu.replay(layer, x, share)


def _truncate(
    op: Relu | Truncate, x: Integers, roles: _Roles, share: Words | None, where: NDArray[np.bool_] | None = None
) -> Integers:
    if op.shift == 0:
        return x
    room = truncation_room(roles.modulus, op.shift)
    _within(op.inputs[0], x if where is None else x[:, where], room, f"what {op.name} can truncate without a ReLU")
    if share is None:
        return x >> np.int64(op.shift)
    return Division(roles.modulus, op.shift, roles.modulus.order // 4).rounded(x, share)


def _roomy(x: Integers, terms: int) -> Exact:
    """``x``, as Python integers if a sum of that many might leave int64."""
    return x if terms * int(np.abs(x).max()) < 1 << 63 else x.astype(np.object_)


def _within(name: str, x: Exact, room: int, what: str) -> Integers:
    low, high = (int(x.min()), int(x.max())) if x.size else (0, 0)
    if low < -room or high > room:
        raise OverflowError(
            f"{name}: values from {low} to {high} exceed {what}: {room}; "
            "use a wider modulus, fewer fraction bits, or smaller inputs"
        )
    return x.astype(np.int64)
