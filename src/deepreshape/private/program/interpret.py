"""The program in the clear: what every other interpreter must agree with.

Exact integers throughout; a value that the modulus cannot hold is reported with its layer, never wrapped.

Two parties compute all of this bit for bit, but for what depends on their shares: where a value is truncated without a
ReLU, or by a ReLU of which only the sign is garbled, they round up or down (``truncation.py``), and a stochastic sign
may be wrong (``drelu.py``). Given the client's shares, :func:`run` does as they do; without them it can draw some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.program.ops import INPUT, Exact, Integers, Op, Relu, Square, Truncate
from deepreshape.private.program.program import Program, truncation_room


class Replay(Protocol):
    """What a two-party protocol tells the interpreter; see :class:`deepreshape.private.protocols.base.Protocol`."""

    by_shares: ClassVar[bool]
    by_coins: ClassVar[bool]

    def max_input(self, layer: Any) -> int:
        """The largest absolute value that it can take."""
        ...

    def replay(self, layer: Any, x: Integers, client: Words, coins: Words | None = None) -> Integers:
        """What it makes of ``x`` when the client's share of it is ``client``."""
        ...


class ReplayStep(Protocol):
    """A step of an operation; see :class:`deepreshape.private.protocols.base.Step`."""

    @property
    def protocol(self) -> Replay: ...
    @property
    def layer(self) -> Any: ...
    @property
    def reads(self) -> NDArray[np.intp] | slice: ...
    @property
    def writes(self) -> NDArray[np.intp] | slice: ...


class Replays(Protocol):
    """The protocols of a run; see :class:`deepreshape.private.protocols.choose.Protocols`."""

    def steps(self, op: Op, program: Program) -> Sequence[ReplayStep]:
        """The steps of an operation that needs the other party."""
        ...


def coins_of(name: str) -> str:
    """Under which name the coins of an operation stand among the client's shares; no value is called so."""
    return f"{name}/coins"


def run(
    program: Program,
    inputs: Integers,
    *,
    client: Mapping[str, Words] | None = None,
    protocols: Replays | None = None,
    rng: Randomness | None = None,
    observe: Callable[[str, Integers], None] | None = None,
) -> Integers:
    """The program's output for a batch of inputs.

    Args:
        program: with its weights.
        inputs: (N, *input_shape), int64.
        client: the client's shares, by value name, of what is rounded by shares, and the coins of operations that have
            some, by :func:`coins_of`: uint64 of the value's shape.
        protocols: by which operations are computed; exactly without, whatever the shares.
        rng: draws the client's shares that are not given, for every input anew. Without it, what would need them rounds
            to the nearest, and signs are right.
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
    parties = _Parties(program, protocols, client or {}, rng, {})
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
    """How the two parties round, where their shares matter."""

    program: Program
    protocols: Replays | None
    client: Mapping[str, Words]
    rng: Randomness | None
    drawn: dict[str, Words]

    def share(self, name: str, shape: tuple[int, ...]) -> Words | None:
        """The client's share of a value, (N, elements) or (1, elements); None if nobody asks for one."""
        if name in self.client or self.rng is None:
            given = self.client.get(name)
            return None if given is None else given.reshape(-1, *shape[1:])
        if name not in self.drawn:
            self.drawn[name] = self.program.modulus.random(shape, self.rng)
        return self.drawn[name]

    def rounded(self, op: Op, x: Integers, exact: Exact) -> Exact:
        source, flat = op.inputs[0], x.reshape(len(x), -1)
        if isinstance(op, Relu | Truncate) and (places := op.truncated(self.program.values[source])).size:
            room = truncation_room(self.program.modulus, op.shift)
            _within(source, flat[:, places], room, f"what {op.name} can truncate without a ReLU")
        if isinstance(op, Square):
            places, limit = op.positions(self.program.values[source]), op.squaring(self.program.modulus).limit
            _within(source, flat[:, places], limit, f"what {op.name} can square")
        steps = () if self.protocols is None else self.protocols.steps(op, self.program)
        result = exact.reshape(len(x), -1).copy()
        for step in steps:
            room = step.protocol.max_input(step.layer)
            _within(source, flat[:, step.reads], room, f"what {op.name} can take by {self.protocols}")
            if not (step.protocol.by_shares or step.protocol.by_coins):
                continue
            share = self.share(source, flat.shape)
            coins = self.share(coins_of(op.name), result.shape) if step.protocol.by_coins else None
            if share is None or (step.protocol.by_coins and coins is None):
                continue
            coins = None if coins is None else coins[:, step.writes]
            result[:, step.writes] = step.protocol.replay(step.layer, flat[:, step.reads], share[:, step.reads], coins)
        self.drawn.pop(coins_of(op.name), None)
        return result.reshape(exact.shape)


def _within(name: str, x: Exact, room: int, what: str) -> Integers:
    low, high = (int(x.min()), int(x.max())) if x.size else (0, 0)
    if low < -room or high > room:
        raise OverflowError(
            f"{name}: values from {low} to {high} exceed {what}: {room}; "
            "use a wider modulus, fewer fraction bits, or smaller inputs"
        )
    return x.astype(np.int64)
