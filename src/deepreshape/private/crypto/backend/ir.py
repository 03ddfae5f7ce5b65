"""Emits LLVM IR that works on a vector of labels at a time, AES included.

A vector holds 1, 2 or 4 labels of two 64-bit words: one AES-NI register, or a VAES register of 256 or 512 bits. There
is no branch on a label and no look-up in a table, so neither time nor memory addresses depend on secrets.
"""

from __future__ import annotations

# llvmlite ships without annotations
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from llvmlite import ir

WORD, HALF, OCTET = ir.IntType(64), ir.IntType(32), ir.IntType(8)
PAIR = ir.VectorType(WORD, 2)
EIGHT = ir.VectorType(WORD, 8)
AES_SUFFIX = {1: "", 2: ".256", 4: ".512"}
ROUNDS = 10


class Operand:
    """A value in the function under construction: an operator emits its instruction.

    An integer operand stands for itself in every element. Adding to a pointer moves it on by words.
    """

    def __init__(self, builder: Any, raw: Any) -> None:
        self.builder = builder
        self.raw = raw

    def constant(self, value: int) -> Any:
        """The integer, in this value's type, as often as there are elements."""
        kind = self.raw.type
        return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)

    def _emit(self, instruction: Any, other: Operand | int) -> Operand:
        operand = self.constant(other) if isinstance(other, int) else other.raw
        return Operand(self.builder, instruction(self.raw, operand))

    def __xor__(self, other: Operand | int) -> Operand:
        return self._emit(self.builder.xor, other)

    def __and__(self, other: Operand | int) -> Operand:
        return self._emit(self.builder.and_, other)

    def __or__(self, other: Operand | int) -> Operand:
        return self._emit(self.builder.or_, other)

    def __sub__(self, other: Operand | int) -> Operand:
        return self._emit(self.builder.sub, other)

    def __mul__(self, other: Operand | int) -> Operand:
        return self._emit(self.builder.mul, other)

    def __lshift__(self, other: Operand | int) -> Operand:
        return self._emit(self.builder.shl, other)

    def __rshift__(self, other: Operand | int) -> Operand:
        return self._emit(self.builder.lshr, other)

    def __lt__(self, other: Operand | int) -> Operand:
        return self._emit(partial(self.builder.icmp_signed, "<"), other)

    def __add__(self, other: Operand | int) -> Operand:
        if not isinstance(self.raw.type, ir.PointerType):
            return self._emit(self.builder.add, other)
        return self.moved(other, WORD)

    def moved(self, by: Operand | int, unit: Any) -> Operand:
        """A pointer, moved on by so many of what ``unit`` says."""
        index = ir.Constant(WORD, by) if isinstance(by, int) else by.raw
        base = self.builder.bitcast(self.raw, unit.as_pointer())
        return Operand(self.builder, self.builder.gep(base, [index]))

    def sign(self) -> Operand:
        """All ones in the elements that are negative, else zeros."""
        return self._emit(self.builder.ashr, 63)

    def pointer(self) -> Operand:
        """The place whose address a word is."""
        return Operand(self.builder, self.builder.inttoptr(self.raw, WORD.as_pointer()))

    def widened(self) -> Operand:
        """A smaller number as a word."""
        return Operand(self.builder, self.builder.zext(self.raw, WORD))

    def cast(self, kind: Any) -> Operand:
        """The same bits as another type."""
        return Operand(self.builder, self.builder.bitcast(self.raw, kind))

    def shuffle(self, places: Sequence[int], other: Operand | None = None) -> Operand:
        """The elements at these places; those of ``other`` are counted on from this one's."""
        rest = ir.Constant(self.raw.type, ir.Undefined) if other is None else other.raw
        mask = ir.Constant(ir.VectorType(HALF, len(places)), list(places))
        return Operand(self.builder, self.builder.shuffle_vector(self.raw, rest, mask))


class Code:
    """One function under construction, of pointers and 64-bit words, that returns nothing.

    Args:
        module: which gets the function.
        name: of the function.
        pointers, words: names of its arguments, pointers first; ``code["name"]`` is one.
        lanes: labels in a vector.
    """

    def __init__(self, module: ir.Module, name: str, pointers: str, words: str, lanes: int) -> None:
        kinds = {**dict.fromkeys(pointers.split(), WORD.as_pointer()), **dict.fromkeys(words.split(), WORD)}
        function: Any = ir.Function(module, ir.FunctionType(ir.VoidType(), list(kinds.values())), name)
        self.lanes = lanes
        self.builder: Any = ir.IRBuilder(function.append_basic_block())
        self._module = module
        self._labels = ir.VectorType(WORD, 2 * lanes)
        self._given = {name: Operand(self.builder, raw) for name, raw in zip(kinds, function.args, strict=True)}

    def __getitem__(self, name: str) -> Operand:
        return self._given[name]

    def variable(self, kind: Any) -> Operand:
        """Room for one value, on the stack; the optimiser makes a register of it where it can."""
        with self.builder.goto_entry_block():
            return Operand(self.builder, self.builder.alloca(kind))

    @contextmanager
    def loop(self, start: Operand | int, stop: Operand | int, step: int = 1) -> Generator[Operand]:
        """What is emitted inside runs for i = start, start + step, ... below stop."""
        b, before = self.builder, self.builder.block
        head, body, after = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        i = Operand(b, b.phi(WORD))
        i.raw.add_incoming(i.constant(start) if isinstance(start, int) else start.raw, before)
        b.cbranch((i < stop).raw, body, after)
        b.position_at_end(body)
        yield i
        i.raw.add_incoming((i + step).raw, b.block)
        b.branch(head)
        b.position_at_end(after)

    @contextmanager
    def either(self, condition: Operand) -> Generator[tuple[Any, Any]]:
        """Two contexts: what is emitted in the first runs where ``condition`` holds, the second where it does not."""
        with self.builder.if_else(condition.raw) as branches:
            yield branches

    def smaller(self, a: Operand, b: int) -> Operand:
        """The smaller of two words."""
        return Operand(self.builder, self.builder.select((a < b).raw, a.raw, a.constant(b)))

    def load(self, pointer: Operand, kind: Any = None) -> Operand:
        """The labels at a pointer, or what ``kind`` says."""
        kind = kind or self._labels
        return Operand(self.builder, self.builder.load(pointer.cast(kind.as_pointer()).raw, align=1))

    def store(self, value: Operand, pointer: Operand) -> None:
        """Write all of a value."""
        self.builder.store(value.raw, pointer.cast(value.raw.type.as_pointer()).raw, align=1)

    def load_some(self, pointer: Operand, present: Operand) -> Operand:
        """The labels that are ``present``; nothing behind them is touched."""
        if self.lanes == 1:
            return self.load(pointer)
        kind = self._labels
        where = [pointer.cast(kind.as_pointer()).raw, ir.Constant(HALF, 1), present.raw, ir.Constant(kind, None)]
        return self._call(f"llvm.masked.load.v{kind.count}i64.p0", kind, where)

    def store_some(self, labels: Operand, pointer: Operand, present: Operand) -> None:
        """Write the labels that are ``present``; nothing behind them is touched."""
        if self.lanes == 1:
            self.store(labels, pointer)
            return
        kind = self._labels
        where = [labels.raw, pointer.cast(kind.as_pointer()).raw, ir.Constant(HALF, 1), present.raw]
        self._call(f"llvm.masked.store.v{kind.count}i64.p0", ir.VoidType(), where)

    def present(self, first: Operand, count: Operand) -> Operand:
        """Which words belong to labels ``first``, ``first`` + 1, ... below ``count``."""
        places = Operand(self.builder, ir.Constant(self._labels, list(range(2 * self.lanes))))
        return places < self.fill((count - first) << 1)

    def fill(self, word: Operand) -> Operand:
        """One word in every word of a vector."""
        one = self.builder.insert_element(ir.Constant(PAIR, ir.Undefined), word.raw, ir.Constant(HALF, 0))
        return Operand(self.builder, one).shuffle([0] * (2 * self.lanes))

    def pair(self, word: Operand) -> Operand:
        """One word in both words of a label."""
        return self.fill(word).shuffle([0, 1])

    def repeat(self, pair: Operand) -> Operand:
        """One label in every lane."""
        return pair.shuffle([0, 1] * self.lanes)

    def sigma(self, labels: Operand) -> Operand:
        """The orthomorphism (lo, hi) -> (lo ^ hi, lo)."""
        words = labels.raw.type.count
        swapped = labels.shuffle([i ^ 1 for i in range(words)])
        return (labels ^ swapped).shuffle([i + words * (i % 2) for i in range(words)], swapped)

    def permute_mask(self, labels: Operand) -> Operand:
        """All ones in both words of a label whose permute bit is one, else zeros."""
        return labels.shuffle([i & ~1 for i in range(2 * self.lanes)]).sign()

    def expand(self, key: Operand) -> list[Operand]:
        """The AES-128 key schedule (FIPS 197, 5.2) of one key, a pair: 11 round keys, each in every lane."""
        four = ir.VectorType(HALF, 4)
        zero = Operand(self.builder, ir.Constant(four, None))
        keys, w, constant = [key], key.cast(four), 1
        for _ in range(ROUNDS):
            last = w.shuffle([3] * 4)
            # four equal columns: the row shift of a last round does nothing, and its S-box is what we are after
            boxed = self._aes("aesenclast", ((last >> 8) | (last << 24)).cast(PAIR), zero.cast(PAIR))
            for distance in (1, 2):
                w = w ^ w.shuffle([*range(4, 4 + distance), *range(4 - distance)], zero)
            w = w ^ boxed.cast(four) ^ constant
            keys.append(w.cast(PAIR))
            constant = constant << 1 ^ 0x11B * (constant >> 7)
        return [self.repeat(one) for one in keys]

    def encrypt(self, blocks: Sequence[Operand], keys: Sequence[list[Operand]]) -> list[Operand]:
        """AES of each vector under its own round keys, side by side, so that their latencies overlap."""
        state = [block ^ expanded[0] for block, expanded in zip(blocks, keys, strict=True)]
        for number in range(1, ROUNDS + 1):
            step = "aesenc" if number < ROUNDS else "aesenclast"
            state = [self._aes(step, x, expanded[number]) for x, expanded in zip(state, keys, strict=True)]
        return state

    def _aes(self, step: str, state: Operand, key: Operand) -> Operand:
        kind = state.raw.type
        return self._call(f"llvm.x86.aesni.{step}{AES_SUFFIX[kind.count // 2]}", kind, [state.raw, key.raw])

    def _call(self, name: str, result: Any, arguments: list[Any]) -> Operand:
        known = self._module.globals.get(name)
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return Operand(self.builder, self.builder.call(known or ir.Function(self._module, kind, name), arguments))
