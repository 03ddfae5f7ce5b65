"""The fused engine's functions for silent transfers and packed messages in LLVM IR; see ``Engine`` for what each does.

A tree's nodes lie side by side: from n of them come n left children, written over them, and n right ones behind.
Addresses depend on public numbers only, but for one: where a receiver's tree has its hole, which that party knows.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir  # pyright: ignore[reportMissingTypeStubs]

from deepreshape.private.crypto.backend.ir import HALF, PAIR, WORD, Code, Operand
from deepreshape.private.crypto.backend.numpy import LOCALITY, PERMUTE_BIT

GROUP = 16
"""Outputs whose indices are drawn at once; they take 40 whole blocks."""
GROUPS, SEEDS = 16, 256
"""Of SoftSpoken's trees."""
SIDE = 4
"""Vectors that are encrypted side by side."""


def _grow(code: Code) -> None:
    """Trees ``first`` to ``last`` - 1 of ``depth`` levels below their roots."""
    delta = code.load(code["delta"], PAIR)
    keys = code.expand(code.load(code["key"], PAIR))
    with code.loop(code["first"], code["last"]) as tree:
        nodes = code["nodes"] + ((tree << code["depth"]) << 1)
        sums = code["sums"] + ((tree * code["depth"]) << 1)
        root = code.load(code["roots"] + (tree << 1), PAIR)
        code.store(root, nodes)
        code.store(root ^ delta, nodes + 2)
        code.store(root, sums)
        with code.loop(1, code["depth"]) as level:
            clear = _cleared(code, level)
            code.store(_double(code, nodes, level, keys, clear) & clear, sums + (level << 1))


def _regrow(code: Code) -> None:
    """The same trees, from the sum of one side of every level; ``sides`` are all ones where that is the right one."""
    keys = code.expand(code.load(code["key"], PAIR))
    hole, total = code.variable(WORD), code.variable(PAIR)
    with code.loop(code["first"], code["last"]) as tree:
        nodes = code["nodes"] + ((tree << code["depth"]) << 1)
        row = tree * code["depth"]
        side = code.load(code["sides"] + row, WORD)
        known = code.load(code["sums"] + (row << 1), PAIR)
        code.store(known, nodes + ((side & 1) << 1))
        code.store(known ^ known, nodes + (((side & 1) ^ 1) << 1))
        code.store(known, total)
        code.store((side & 1) ^ 1, hole)
        with code.loop(1, code["depth"]) as level:
            clear = _cleared(code, level)
            lefts = _double(code, nodes, level, keys, clear)
            side = code.load(code["sides"] + (row + level), WORD)
            parent, everything = code.load(hole, WORD), code.load(total, PAIR)
            count = Operand(code.builder, ir.Constant(WORD, 1)) << level
            at, other = parent + (count & side), parent + (count & (side ^ -1))
            # both children of the hole are the same wrong value; the sums hold it once, or twice
            wrong = code.load(nodes + (parent << 1), PAIR)
            others = lefts ^ wrong ^ (everything & code.pair(side))
            child = (code.load(code["sums"] + ((row + level) << 1), PAIR) ^ others) & clear
            code.store(child, nodes + (at << 1))
            code.store(child ^ child, nodes + (other << 1))
            code.store(everything ^ child, total)
            code.store(other, hole)
        leaf = (code.load(total, PAIR) & _constant(code, ~PERMUTE_BIT, -1)) | _constant(code, PERMUTE_BIT, 0)
        code.store(leaf, nodes + (code.load(hole, WORD) << 1))


def _cleared(code: Code, level: Operand) -> Operand:
    """A mask that clears the permute bit at the last level, and nothing above it."""
    last = (level + 1) < code["depth"]
    kind = _constant(code, -1, -1), _constant(code, ~PERMUTE_BIT, -1)
    return Operand(code.builder, code.builder.select(last.raw, kind[0].raw, kind[1].raw))


def _double(code: Code, nodes: Operand, level: Operand, keys: list[Operand], clear: Operand) -> Operand:
    """Write the children of all nodes of a level; the sum of the left ones, permute bits and all."""
    one = Operand(code.builder, ir.Constant(WORD, 1))
    count, wide = one << level, clear.shuffle([0, 1] * code.lanes)
    pair_keys = [key.shuffle([0, 1]) for key in keys]
    sum_wide, sum_pair = code.variable(wide.raw.type), code.variable(PAIR)
    code.store(wide ^ wide, sum_wide)
    code.store(clear ^ clear, sum_pair)

    def children(first: Operand, vectors: int, lanes: int, keys: list[Operand], clear: Operand, total: Operand) -> None:
        kind = clear.raw.type
        places = [(first + lanes * i) << 1 for i in range(vectors)]
        parents = [code.load(nodes + place, kind) for place in places]
        hashed = [code.sigma(parent) for parent in parents]
        lefts = [x ^ y for x, y in zip(hashed, code.encrypt(hashed, [keys] * vectors), strict=True)]
        here = code.load(total, kind)
        for place, parent, left in zip(places, parents, lefts, strict=True):
            here = here ^ left
            code.store(left & clear, nodes + place)
            code.store((left ^ parent) & clear, nodes + (place + (count << 1)))
        code.store(here, total)

    with code.either(count < SIDE * code.lanes) as (few, many):
        with few, code.loop(0, count, 2) as i:
            children(i, 2, 1, pair_keys, clear, sum_pair)
        with many, code.loop(0, count, SIDE * code.lanes) as i:
            children(i, SIDE, code.lanes, keys, wide, sum_wide)
    summed, lanes = code.load(sum_pair, PAIR), code.load(sum_wide, wide.raw.type)
    for lane in range(code.lanes):
        summed = summed ^ lanes.shuffle([2 * lane, 2 * lane + 1])
    return summed


def _gather(code: Code) -> None:
    """``count`` outputs, a multiple of GROUP, each with the sum of entries of ``table`` added; its mask is ``mask``."""
    keys = code.expand(code.load(code["key"], PAIR))
    words = 2 * code.lanes
    lanes = Operand(code.builder, ir.Constant(ir.VectorType(WORD, words), [i // 2 * (1 - i % 2) for i in range(words)]))
    low = Operand(code.builder, ir.Constant(ir.VectorType(WORD, words), [-1, 0] * code.lanes))
    blocks = GROUP * LOCALITY // 4
    indices = code.variable(ir.ArrayType(WORD, 2 * blocks))
    mask = code.fill(code["mask"] | (code["mask"] << 32))
    with code.loop(0, code["count"], GROUP) as start:
        block = ((code["first"] + start) >> 1) * (LOCALITY // 2)
        for first in range(0, blocks // code.lanes, SIDE):
            numbers = range(first, min(first + SIDE, blocks // code.lanes))
            counters = [(code.fill(block + code.lanes * number) & low) + lanes for number in numbers]
            for number, drawn in zip(numbers, code.encrypt(counters, [keys] * len(counters)), strict=True):
                code.store(drawn & mask, indices.moved(words * number, WORD))
        with code.loop(0, GROUP) as i:
            place = code["out"] + ((start + i) << 1)
            summed = code.load(place, PAIR)
            for number in range(LOCALITY):
                index = code.load(indices.moved(i * LOCALITY + number, HALF), HALF).widened()
                summed = summed ^ code.load(code["table"] + (index << 1), PAIR)
            code.store(summed, place)


def _hash_columns(code: Code) -> None:
    """``columns`` of ``count`` labels, each moved by ``delta``, under a key a column."""
    delta = code.repeat(code.load(code["delta"], PAIR))
    with code.loop(0, code["columns"]) as column:
        keys = code.expand(code.load(code["keys"] + (column << 1), PAIR))
        labels, out = (code[name] + ((column * code["count"]) << 1) for name in ("labels", "out"))
        with code.loop(0, code["count"], SIDE * code.lanes) as i:
            places = [i + code.lanes * k for k in range(SIDE)]
            present = [code.present(place, code["count"]) for place in places]
            if code.lanes == 1:  # every store is whole, so none may lie behind the last label
                last = code["count"] + -1
                places = [_smaller(code, place, last) for place in places]
            loaded = [code.load_some(labels + (place << 1), some) for place, some in zip(places, present, strict=True)]
            hashed = [code.sigma(label ^ delta) for label in loaded]
            for place, some, x, y in zip(places, present, hashed, code.encrypt(hashed, [keys] * SIDE), strict=True):
                code.store_some(x ^ y, out + (place << 1), some)


def _smaller(code: Code, a: Operand, b: Operand) -> Operand:
    return Operand(code.builder, code.builder.select((a < b).raw, a.raw, b.raw))


def _fold(code: Code) -> None:
    """For each of ``blocks`` keys: hash 256 seeds of each of 16 groups; sum those with bit j of their number, and all.

    ``columns`` (16, 8, blocks, 2) and ``sums`` (16, blocks, 2).
    """
    room = code.variable(ir.ArrayType(WORD, 2 * SEEDS))
    with code.loop(0, code["blocks"]) as block:
        keys = code.expand(code.load(code["keys"] + (block << 1), PAIR))
        with code.loop(0, GROUPS) as group:
            seeds = code["seeds"] + ((group * SEEDS) << 1)
            with code.loop(0, SEEDS, SIDE * code.lanes) as i:
                places = [(i + code.lanes * k) << 1 for k in range(SIDE)]
                hashed = [code.sigma(code.load(seeds + place)) for place in places]
                for place, x, y in zip(places, hashed, code.encrypt(hashed, [keys] * SIDE), strict=True):
                    code.store(x ^ y, room.moved(place, WORD))
            for bit in range(SEEDS.bit_length() - 2, -1, -1):
                kind = PAIR if 1 << bit < code.lanes else ir.VectorType(WORD, 2 * code.lanes)
                total = code.variable(kind)
                code.store(Operand(code.builder, ir.Constant(kind, None)), total)
                with code.loop(0, 1 << bit, kind.count // 2) as i:
                    low, high = (room.moved(place << 1, WORD) for place in (i, i + (1 << bit)))
                    upper = code.load(high, kind)
                    code.store(code.load(low, kind) ^ upper, low)
                    code.store(code.load(total, kind) ^ upper, total)
                summed = code.load(total, kind)
                lanes = [summed.shuffle([2 * k, 2 * k + 1]) for k in range(kind.count // 2)]
                column = lanes[0]
                for lane in lanes[1:]:
                    column = column ^ lane
                code.store(column, code["columns"] + (((group * 8 + bit) * code["blocks"] + block) << 1))
            code.store(code.load(room.moved(0, WORD), PAIR), code["sums"] + ((group * code["blocks"] + block) << 1))


def _pack(code: Code) -> None:
    """``count`` values to a stream of their ``bits`` low bits. A word is written as it grows, the last at the end."""
    at, filled, word = code.variable(WORD), code.variable(WORD), code.variable(WORD)
    zero = code["bits"] ^ code["bits"]
    for variable in (at, filled, word):
        code.store(zero, variable)
    mask = (zero ^ -1) >> ((zero + 64) - code["bits"])
    with code.loop(0, code["count"]) as i:
        value = code.load(code["values"] + i, WORD) & mask
        begin, place = code.load(filled, WORD), code.load(at, WORD)
        merged = code.load(word, WORD) | (value << begin)
        code.store(merged, code["out"] + place)
        end = begin + code["bits"]
        full = end >> 6
        rest = (value >> 1) >> ((zero + 63) - begin)
        chosen = code.builder.select((full < 1).raw, merged.raw, rest.raw)
        code.store(Operand(code.builder, chosen), word)
        code.store(end & 63, filled)
        code.store(place + full, at)
    code.store(code.load(word, WORD), code["out"] + code.load(at, WORD))


def _unpack(code: Code) -> None:
    """The inverse; ``words`` of a stream, of which the last may be partly used."""
    zero = code["bits"] ^ code["bits"]
    mask = (zero ^ -1) >> ((zero + 64) - code["bits"])
    last = code["words"] + -1
    with code.loop(0, code["count"]) as i:
        place = i * code["bits"]
        at, begin = place >> 6, place & 63
        following = code.builder.select((at < last).raw, (at + 1).raw, last.raw)
        high = code.load(code["data"] + Operand(code.builder, following), WORD)
        value = (code.load(code["data"] + at, WORD) >> begin) | ((high << 1) << ((zero + 63) - begin))
        code.store(value & mask, code["out"] + i)


def _constant(code: Code, low: int, high: int) -> Operand:
    return Operand(code.builder, ir.Constant(PAIR, [low, high]))


FUNCTIONS: dict[str, tuple[Callable[[Code], None], str, str]] = {
    "grow": (_grow, "nodes roots delta sums key", "depth first last"),
    "regrow": (_regrow, "nodes sums sides key", "depth first last"),
    "gather": (_gather, "out table key", "count first mask"),
    "hash_columns": (_hash_columns, "labels delta keys out", "columns count"),
    "fold": (_fold, "seeds keys columns sums", "blocks"),
    "pack": (_pack, "values out", "bits count"),
    "unpack": (_unpack, "data out", "bits count words"),
}
"""As those of ``kernels.py``."""
