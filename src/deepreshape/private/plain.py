"""The program in the clear: what every other interpreter must agree with.

Exact integers throughout; a value that the modulus cannot hold is reported with its layer, never wrapped. ``>>`` rounds
towards minus infinity.

Two parties compute all of this bit for bit, but for one thing: where a value is truncated without a ReLU, they round
up or down depending on their shares (``truncate.py``). Given the client's shares, :func:`run` does as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.exact import Integers, products, windows
from deepreshape.private.program import (
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
from deepreshape.private.shares import Field, Ring, Words

Exact = NDArray[np.int64] | NDArray[np.object_]


def run(
    program: Program,
    inputs: Integers,
    *,
    client: Mapping[str, Words] | None = None,
    observe: Callable[[str, Integers], None] | None = None,
) -> Integers:
    """The program's output for a batch of inputs.

    Args:
        program: with its weights.
        inputs: (N, *input_shape), int64.
        client: the client's shares, by value name, of what is truncated without a ReLU: uint64 of the value's shape.
            Left out, truncation rounds towards minus infinity.
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
    values: dict[str, Integers] = {INPUT: inputs}
    last_use = {name: op.name for op in program.ops for name in op.inputs}
    if observe:
        observe(INPUT, inputs)
    for op in program.ops:
        found = _apply(program, op, [values[name] for name in op.inputs], client or {})
        values[op.name] = _within(op.name, found, (program.modulus.order - 1) // 2, str(program.modulus))
        if observe:
            observe(op.name, values[op.name])
        for name in set(op.inputs):
            if last_use[name] == op.name:
                del values[name]
    return values[program.output]


def _apply(program: Program, op: Op, inputs: list[Integers], client: Mapping[str, Words]) -> Exact:
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
            return _truncate(program, op, x, client)
        case Relu():
            rectified = np.maximum(x, 0) >> np.int64(op.shift)
            if op.mask is None or op.mask.all():
                return rectified
            return np.where(op.mask, rectified, _truncate(program, op, x, client, ~op.mask))


def _linear(program: Program, op: Conv2d | Linear, x: Integers) -> Exact:
    own = program.weights[op.name]
    rows = np.abs(own.weight.reshape(len(own.weight), -1)).sum(1)
    reach = int(rows.max()) * int(np.abs(x).max()) + int(np.abs(own.bias).max())
    bias = own.bias if isinstance(op, Linear) else own.bias[:, None, None]
    if reach < 1 << 63:
        total = bias[None]
        for shift, part in products(op, own.weight, x):
            total = total + (part << np.int64(shift))  # whatever wraps on the way comes back: the sum fits
        return total
    wide = bias[None].astype(np.object_)
    for shift, part in products(op, own.weight, x):
        wide = wide + part.astype(np.object_) * (1 << shift)
    return wide


def _truncate(
    program: Program,
    op: Relu | Truncate,
    x: Integers,
    client: Mapping[str, Words],
    where: NDArray[np.bool_] | None = None,
) -> Integers:
    if op.shift == 0:
        return x
    modulus, source = program.modulus, op.inputs[0]
    room = truncation_room(modulus, op.shift)
    _within(source, x if where is None else x[:, where], room, f"what {op.name} can truncate without a ReLU")
    if source not in client:
        return x >> np.int64(op.shift)
    return rounded(x, op.shift, modulus, client[source])


def rounded(x: Integers, shift: int, modulus: Ring | Field, client: Words) -> Integers:
    """Round x / 2^shift as two parties do when the client's share of x is ``client``, in closed form.

    Over Z_{2^l} that is the ceiling, less one where the low bits of the client's share are larger than those of
    x - 1: so x / 2^shift on average over the shares, and exact where x is a multiple. Over Z_p it is the floor, or one
    unit beside it.
    """
    low = np.int64((1 << shift) - 1)
    mine = client.astype(np.int64)
    if isinstance(modulus, Ring):
        raised = x + low
        return (raised >> np.int64(shift)) - ((mine & low) > (raised & low))
    p = modulus.order
    raised = x + np.int64((p // 4) >> shift << shift)
    wraps = mine > raised  # then the server's share is raised - mine + p
    theirs = raised - mine + np.where(wraps, np.int64(p), np.int64(0))
    carry = (mine & low) + (theirs & low) > low
    borrow = wraps & ((raised & low) + np.int64(p & int(low)) > low)
    return (x >> np.int64(shift)) + borrow - carry


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
