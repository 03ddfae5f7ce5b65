"""The fused engine's functions in LLVM IR: a whole circuit over a block of instances, the hash, the bit transpose.

A block's labels, one row a slot, stay in cache while all gates pass over them; tables are written, or read, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir  # pyright: ignore[reportMissingTypeStubs]

from deepreshape.private.crypto.backend import ot_kernels
from deepreshape.private.crypto.backend.ir import EIGHT, OCTET, PAIR, WORD, Code, Operand

BLOCK = 256
"""Instances whose rows of labels stay in cache together."""

STRIDE = 2 * BLOCK
"""Words from one row to the next."""

XORS = 4
"""Vectors that one turn of the XOR loop takes."""


class AndGate(NamedTuple):
    """An AND gate as its code sees it: pointers to rows, to its table rows and to its keys, and how many instances."""

    a: Operand
    b: Operand
    out: Operand
    tables: list[Operand]
    keys: list[Operand]
    inverts: list[Operand]
    delta: Operand
    size: Operand


def module(name: str, lanes: int) -> str:
    """The text of one of the functions, for vectors of so many labels."""
    module = ir.Module()
    emit, pointers, words = FUNCTIONS[name]
    code = Code(module, name, pointers, words, lanes)
    emit(code)
    code.builder.ret_void()
    return str(module)


def _garble(code: Code) -> None:
    _walk(code, _garble_and)


def _evaluate(code: Code) -> None:
    _walk(code, _evaluate_and)


def _walk(code: Code, and_gate: Callable[[Code, AndGate], None]) -> None:
    """Instances ``first`` to ``last`` - 1 of ``count``, block by block: inputs to rows, all steps, rows to outputs.

    ``inputs`` are the addresses of the labels of each wire.
    """

    def label(array: str, row: Operand) -> Operand:
        """The first label of the block, in an array of rows of ``count`` labels."""
        return code[array] + ((row * code["count"] + start) << 1)

    with code.loop(code["first"], code["last"], BLOCK) as start:
        size = code.smaller(code["last"] - start, BLOCK)
        with code.loop(0, code["width"]) as wire:
            source = code.load(code["inputs"] + wire, WORD).pointer() + (start << 1)
            target = code["rows"] + wire * STRIDE
            with code.loop(0, size, code.lanes) as i:
                code.store(code.load_some(source + (i << 1), code.present(i, size)), target + (i << 1))
        with code.loop(0, code["steps"]) as number:
            step = [code.load(code["instructions"] + (number * 6 + k), WORD) for k in range(6)]
            gate, (a, b, out) = step[0], (code["rows"] + slot * STRIDE for slot in step[1:4])
            with code.either(gate < 0) as (is_xor, is_and):
                # several vectors at once, past the last label too: a row has room for a whole block
                with is_xor, code.loop(0, size, XORS * code.lanes) as i:
                    for k in range(XORS):
                        j = (i + k * code.lanes) << 1
                        code.store(code.load(a + j) ^ code.load(b + j), out + j)
                with is_and:
                    halves = [gate << 1, (gate << 1) + 1]
                    tables = [label("tables", half) for half in halves]
                    keys = [code["keys"] + (half << 1) for half in halves]
                    and_gate(code, AndGate(a, b, out, tables, keys, step[4:], code["delta"], size))
        with code.loop(0, code["results"]) as result:
            slot = code.load(code["slots"] + result, WORD)
            source, target = code["rows"] + slot * STRIDE, label("outputs", result)
            with code.loop(0, size, code.lanes) as i:
                code.store_some(code.load(source + (i << 1)), target + (i << 1), code.present(i, size))


def _garble_and(code: Code, gate: AndGate) -> None:
    key_a, key_b = (code.expand(code.load(key, PAIR)) for key in gate.keys)
    delta = code.repeat(code.load(gate.delta, PAIR))
    sigma_delta = code.sigma(delta)
    invert_a, invert_b = (code.fill(invert) & delta for invert in gate.inverts)
    with code.loop(0, gate.size, code.lanes) as i:
        j, present = i << 1, code.present(i, gate.size)
        a, b = code.load(gate.a + j), code.load(gate.b + j)
        delta_a, delta_b = code.permute_mask(a) & delta, code.permute_mask(b) & delta
        # what is hashed: of each side the label of permute bit 0, then that of permute bit 1
        a0, b0 = code.sigma(a ^ delta_a), code.sigma(b ^ delta_b)
        a1, b1 = a0 ^ sigma_delta, b0 ^ sigma_delta
        ha0, ha1, hb0, hb1 = code.encrypt((a0, a1, b0, b1), (key_a, key_a, key_b, key_b))
        delta_a, delta_b = delta_a ^ invert_a, delta_b ^ invert_b
        # rows: H(a, 0) ^ H(a, 1) ^ permute(b) delta, and H(b, 0) ^ H(b, 1) ^ (the label of a = 0)
        code.store_some(ha0 ^ ha1 ^ sigma_delta ^ delta_b, gate.tables[0] + j, present)
        code.store_some(hb0 ^ hb1 ^ sigma_delta ^ a ^ invert_a, gate.tables[1] + j, present)
        # whatever the permute bits, both halves reduce to the hash of the label of permute bit 0, but for
        # the product
        code.store(ha0 ^ a0 ^ hb0 ^ b0 ^ (delta_a & delta_b), gate.out + j)


def _evaluate_and(code: Code, gate: AndGate) -> None:
    keys = [code.expand(code.load(key, PAIR)) for key in gate.keys]
    with code.loop(0, gate.size, code.lanes) as i:
        j, present = i << 1, code.present(i, gate.size)
        a, b = code.load(gate.a + j), code.load(gate.b + j)
        x, y = code.sigma(a), code.sigma(b)
        hx, hy = code.encrypt((x, y), keys)
        first, second = (code.load_some(table + j, present) for table in gate.tables)
        both_terms = (code.permute_mask(a) & first) ^ (code.permute_mask(b) & (second ^ a))
        code.store(hx ^ x ^ hy ^ y ^ both_terms, gate.out + j)


def _hash(code: Code) -> None:
    key = code.expand(code.load(code["key"], PAIR))
    with code.loop(0, code["count"], code.lanes) as i:
        j, present = i << 1, code.present(i, code["count"])
        x = code.sigma(code.load_some(code["labels"] + j, present))
        (y,) = code.encrypt([x], [key])
        code.store_some(x ^ y, code["out"] + j, present)


def _pick(code: Code) -> None:
    delta = code.load(code["delta"], PAIR)
    with code.loop(0, code["count"]) as i:
        bit = code.load(code["bits"].moved(i, OCTET), OCTET).widened()
        label = code.load(code["labels"] + (i << 1), PAIR)
        code.store(label ^ (code.fill(bit * -1) & delta), code["out"] + (i << 1))


def _transpose(code: Code) -> None:
    """Tiles of 64 x 64 bits, eight side by side, turned by six exchanges of ever smaller blocks.

    ``columns`` are 128, ``stride`` bytes apart, each of ``tiles`` groups of eight words; a group makes 512 rows.
    """
    with code.loop(0, code["tiles"]) as tile, code.loop(0, 2) as half:
        with code.loop(0, 8) as k:
            columns = [(half * 64 + k + 8 * i) * code["stride"] for i in range(8)]
            vectors = [code.load(code["columns"].moved(at, OCTET) + (tile << 3), EIGHT) for at in columns]
            places = [code["room"] + ((k + 8 * i) << 3) for i in range(8)]
            _exchange(code, vectors, 8, places)
        with code.loop(0, 8) as k:
            places = [code["room"] + (((k << 3) + i) << 3) for i in range(8)]
            _exchange(code, [code.load(place, EIGHT) for place in places], 1, places)
        with code.loop(0, 64) as k:
            for lane in range(8):
                row = (tile << 9) + k + 64 * lane
                code.store(code.load(code["room"] + ((k << 3) + lane), WORD), code["rows"] + ((row << 1) + half))


def _exchange(code: Code, rows: list[Operand], distance: int, places: list[Operand]) -> None:
    """Three of the six exchanges, on eight rows of the tiles that are ``distance`` apart; then write them."""
    for apart in (4, 2, 1):
        bits = apart * distance
        low = sum(1 << bit for bit in range(64) if not bit & bits)
        for i in range(8):
            if not i & apart:
                swap = ((rows[i] >> bits) ^ rows[i | apart]) & low
                rows[i], rows[i | apart] = rows[i] ^ (swap << bits), rows[i | apart] ^ swap
    for row, place in zip(rows, places, strict=True):
        code.store(row, place)


_WALK = "instructions slots inputs keys delta tables outputs rows", "steps width results count first last"
FUNCTIONS: dict[str, tuple[Callable[[Code], None], str, str]] = {
    "garble": (_garble, *_WALK),
    "evaluate": (_evaluate, *_WALK),
    "hash": (_hash, "labels key out", "count"),
    "pick": (_pick, "labels delta bits out", "count"),
    "transpose": (_transpose, "columns rows room", "stride tiles"),
    **ot_kernels.FUNCTIONS,
}
"""What there is: the code of a function, its pointers, and its words."""
