"""The program in the clear: what every other interpreter must agree with.

Exact integers throughout; a value that the modulus cannot hold is reported with its layer, never wrapped. ``>>`` rounds
towards minus infinity.

Two parties compute all of this bit for bit, but for what depends on their shares: where a value is truncated without a
ReLU, or by a ReLU of which only the sign is garbled, they round up or down (``truncation.py``), and a stochastic sign
may be wrong (``drelu.py``). Given the client's shares, :func:`run` does as they do; without them it can draw some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.program.ops import INPUT, Exact, Integers, Relu, Truncate
from deepreshape.private.program.program import Program, truncation_room


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
        (N, *output shape), int64; of several outputs, as :meth:`Program.joined` has them.

    Raises:
        ValueError: if ``inputs`` do not fit the program.
        OverflowError: if a value leaves the range in which the two parties compute it rightly; names the layer.
    """
    if inputs.dtype != np.int64 or inputs.shape[1:] != program.input_shape or not len(inputs):
        raise ValueError(f"inputs are {inputs.dtype} {inputs.shape}; they must be int64 (N, *{program.input_shape})")
    _within(INPUT, inputs, program.input_bound, "the program's input bound")
    parties = _Parties(program.modulus, relu, client or {}, rng, {})
    values: dict[str, Integers] = {INPUT: inputs}
    last_use = {name: op.name for op in program.ops for name in op.inputs}
    last_use |= dict.fromkeys(program.outputs, "")
    if observe:
        observe(INPUT, inputs)
    for op in program.ops:
        result = op.interpret([values[name] for name in op.inputs], program.weights.get(op.name), parties)
        values[op.name] = _within(op.name, result, (program.modulus.order - 1) // 2, str(program.modulus))
        if observe:
            observe(op.name, values[op.name])
        for name in set(op.inputs):
            if last_use[name] == op.name:
                del values[name]
                parties.drawn.pop(name, None)
    return program.joined([values[name] for name in program.outputs])


class _Parties(NamedTuple):
    """How the two parties rectify and truncate, where their shares matter."""

    modulus: Ring | Field
    relu: Rectifier | None
    client: Mapping[str, Words]
    rng: Randomness | None
    drawn: dict[str, Words]

    def share(self, name: str, x: Integers) -> Words | None:
        """The client's share of a value; None if nobody asks for one."""
        if name in self.client or self.rng is None:
            return self.client.get(name)
        if name not in self.drawn:
            self.drawn[name] = self.modulus.random(x.shape, self.rng)
        return self.drawn[name]

    def rectify(self, op: Relu, x: Integers) -> Integers:
        share = self.share(op.inputs[0], x)
        if self.relu is None or share is None:
            return np.maximum(x, 0) >> np.int64(op.shift)
        layer = self.relu.layer(self.modulus, op, x[0].size)
        what = f"what {op.name} can rectify by {self.relu}"
        _within(op.inputs[0], x if op.mask is None else x[:, op.mask], self.relu.max_input(layer), what)
        return self.relu.replay(layer, x, share)

    def truncate(self, op: Relu | Truncate, x: Integers, where: NDArray[np.bool_] | None) -> Integers:
        share = self.share(op.inputs[0], x)
        if op.shift == 0:
            return x
        room = truncation_room(self.modulus, op.shift)
        _within(op.inputs[0], x if where is None else x[:, where], room, f"what {op.name} can truncate without a ReLU")
        if share is None:
            return x >> np.int64(op.shift)
        return ShareTruncation(self.modulus, op.shift, self.modulus.order // 4).rounded(x, share)


def _within(name: str, x: Exact, room: int, what: str) -> Integers:
    low, high = (int(x.min()), int(x.max())) if x.size else (0, 0)
    if low < -room or high > room:
        raise OverflowError(
            f"{name}: values from {low} to {high} exceed {what}: {room}; "
            "use a wider modulus, fewer fraction bits, or smaller inputs"
        )
    return x.astype(np.int64)
