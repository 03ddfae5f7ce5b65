"""Boolean circuits of AND, XOR and NOT, and the adders and comparisons they are made of.

Only ANDs cost anything once garbled, so adders and comparisons use one AND a bit (Kolesnikov, Sadeghi and Schneider,
CANS 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Owner = Literal["garbler", "evaluator"]
Op = Literal["and", "xor", "not"]


class Input(NamedTuple):
    """A word that one party feeds in: wires ``first`` to ``first + width - 1``, least significant bit first."""

    owner: Owner
    name: str
    first: int
    width: int


class Gate(NamedTuple):
    """``out = a op b``; NOT has ``b == a``. Gate k of a circuit drives wire ``inputs + k``."""

    op: Op
    a: int
    b: int
    out: int


class SlotGate(NamedTuple):
    """A gate once wires are slots and NOT is gone: ``out = (a ^ invert_a) op (b ^ invert_b)``; XOR inverts nothing."""

    op: Literal["and", "xor"]
    a: int
    b: int
    out: int
    invert_a: bool
    invert_b: bool


class Schedule(NamedTuple):
    """A circuit as the engine walks it.

    ``slots`` rows are enough because a row is taken over after its wire's last use; inputs lie in the first rows.
    ``outputs`` are (slot, inverted): the wire's value is the slot's, flipped where inverted.
    """

    steps: tuple[SlotGate, ...]
    slots: int
    outputs: tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class Circuit:
    """Wires 0 to ``width - 1`` are the inputs, the others are gate outputs, in an order that can be evaluated."""

    inputs: tuple[Input, ...]
    gates: tuple[Gate, ...]
    outputs: tuple[int, ...]

    @property
    def width(self) -> int:
        """Input wires."""
        return sum(word.width for word in self.inputs)

    @cached_property
    def and_gates(self) -> int:
        """Gates that cost something."""
        return sum(gate.op == "and" for gate in self.gates)

    @cached_property
    def schedule(self) -> Schedule:
        """The circuit with NOT folded into its readers and wires folded into slots."""
        # a NOT is its operand, read inverted; an XOR of inverted wires is the XOR, inverted
        folded: list[tuple[int, bool]] = [(wire, False) for wire in range(self.width)]
        flat: list[Gate] = []
        flips: list[tuple[bool, bool]] = []
        for gate in self.gates:
            (a, invert_a), (b, invert_b) = folded[gate.a], folded[gate.b]
            if gate.op == "not":
                folded.append((a, not invert_a))
                continue
            flat.append(Gate(gate.op, a, b, gate.out))
            is_and = gate.op == "and"
            flips.append((is_and and invert_a, is_and and invert_b))
            folded.append((gate.out, not is_and and invert_a != invert_b))
        outputs = [folded[wire] for wire in self.outputs]

        last_use: dict[int, int] = {}
        for at, gate in enumerate(flat):
            last_use[gate.a] = last_use[gate.b] = at
        last_use |= {wire: len(flat) for wire, _ in outputs}
        slot = {wire: wire for wire in range(self.width)}
        slots = self.width
        free = [wire for wire in slot if wire not in last_use]
        steps: list[SlotGate] = []
        for at, (gate, flip) in enumerate(zip(flat, flips, strict=True)):
            a, b = slot[gate.a], slot[gate.b]
            free += sorted({slot[wire] for wire in (gate.a, gate.b) if last_use[wire] == at})
            if not free:
                free.append(slots)
                slots += 1
            slot[gate.out] = out = free.pop()
            if gate.out not in last_use:
                free.append(out)
            steps.append(SlotGate("and" if gate.op == "and" else "xor", a, b, out, *flip))
        return Schedule(tuple(steps), slots, tuple((slot[wire], inverted) for wire, inverted in outputs))

    @cached_property
    def instructions(self) -> NDArray[np.int64]:
        """The schedule's steps for a compiled engine, (steps, 6).

        The number of the AND gate, -1 for XOR; slots of a, b and out; -1 where a is inverted, and where b is, else 0.
        """
        schedule, at = self.schedule, 0
        rows: list[tuple[int, ...]] = []
        for step in schedule.steps:
            rows.append((at if step.op == "and" else -1, step.a, step.b, step.out, -step.invert_a, -step.invert_b))
            at += step.op == "and"
        return np.array(rows, np.int64).reshape(-1, 6)


class Builder:
    """Collects inputs, then gates. A word is a list of wires, least significant bit first."""

    def __init__(self) -> None:
        self._inputs: list[Input] = []
        self._gates: list[Gate] = []
        self._wires = 0

    def input(self, owner: Owner, name: str, width: int) -> list[int]:
        """A new input word. All inputs come before the first gate."""
        if self._gates:
            raise ValueError(f"input {name!r} comes after a gate; declare all inputs first")
        word = Input(owner, name, self._wires, width)
        self._inputs.append(word)
        self._wires += width
        return list(range(word.first, self._wires))

    def build(self, outputs: list[int]) -> Circuit:
        """The finished circuit."""
        return Circuit(tuple(self._inputs), tuple(self._gates), tuple(outputs))

    def _gate(self, op: Op, a: int, b: int) -> int:
        self._gates.append(Gate(op, a, b, self._wires))
        self._wires += 1
        return self._wires - 1

    def xor(self, a: int, b: int) -> int:
        """The wire of a ^ b."""
        return self._gate("xor", a, b)

    def and_(self, a: int, b: int) -> int:
        """The wire of a & b."""
        return self._gate("and", a, b)

    def not_(self, a: int) -> int:
        """The wire of 1 - a."""
        return self._gate("not", a, a)

    def or_(self, a: int, b: int) -> int:
        """The wire of a | b, for one AND."""
        return self.not_(self.and_(self.not_(a), self.not_(b)))

    def add(self, a: list[int], b: list[int], *, carry_out: bool) -> list[int]:
        """The word a + b; b may be shorter and counts as zero above. One AND a bit, one fewer without the carry out."""
        total: list[int] = []
        carry: int | None = None
        for i, x in enumerate(a):
            addends = [x, *b[i : i + 1], *([] if carry is None else [carry])]
            total.append(self._xor_all(addends))
            if i + 1 < len(a) or carry_out:
                carry = self._carry(addends)
        return total if carry is None or not carry_out else [*total, carry]

    def _xor_all(self, wires: list[int]) -> int:
        result = wires[0]
        for wire in wires[1:]:
            result = self.xor(result, wire)
        return result

    def _carry(self, addends: list[int]) -> int | None:
        if len(addends) == 1:
            return None
        if len(addends) == 2:
            return self.and_(*addends)
        x, y, carry = addends
        return self.xor(self.and_(self.xor(x, carry), self.xor(y, carry)), carry)

    def carry(self, a: list[int], b: list[int], *, carry_in: bool = False) -> int:
        """The wire of the carry out of a + b, plus one with ``carry_in``; one AND a bit, of at least one."""
        carry = self.or_(a[0], b[0]) if carry_in else self.and_(a[0], b[0])
        for x, y in zip(a[1:], b[1:], strict=True):
            carry = self.xor(self.and_(self.xor(x, carry), self.xor(y, carry)), carry)
        return carry

    def at_least(self, a: list[int], constant: int) -> tuple[int, list[int | None]]:
        """Is ``a`` at least ``constant``? One AND for every bit above the constant's lowest one bit.

        Returns:
            The answer, and for every bit i whether the bits of ``a`` below i are at least those of ``constant``, None
            where they always are.

        Raises:
            ValueError: if ``constant`` has no bit among those of ``a``.
        """
        below: list[int | None] = []
        reached: int | None = None
        for i, x in enumerate(a):
            below.append(reached)
            bit = constant >> i & 1
            if reached is None:
                reached = x if bit else None
            else:
                reached = self.and_(x, reached) if bit else self.or_(x, reached)
        if reached is None:
            raise ValueError(f"every word of {len(a)} bits is at least {constant} in them; compare with 1 or more")
        return reached, below

    def add_mod(self, a: list[int], b: list[int], modulus: int) -> list[int]:
        """The word a + b mod ``modulus``, for a, b below it: 3n - 1 ANDs for n bits if it is odd."""
        total = self.add(a, b, carry_out=True)
        wraps, reached = self.at_least(total, modulus)
        result: list[int] = []
        for i, (x, below) in enumerate(zip(total[:-1], reached, strict=False)):
            # where the sum wraps, bit i changes if the modulus has a one there and nothing is borrowed, or neither
            bit = modulus >> i & 1
            if below is None:
                result.append(self.xor(x, wraps) if bit else x)
            else:
                result.append(self.xor(x, self.and_(wraps, below if bit else self.not_(below))))
        return result
