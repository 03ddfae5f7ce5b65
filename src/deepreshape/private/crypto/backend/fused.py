"""The fused engine: one compiled pass over a circuit, with the processor's AES instructions between loads and stores.

It needs llvmlite (``pip install llvmlite``) and an x86-64 processor with AES instructions. Compilation is in
memory, some tenths of a second at first use; nothing is written to disk.
"""

from __future__ import annotations

# llvmlite ships without annotations
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from llvmlite.binding import (
    Target,
    create_mcjit_compiler,
    create_pass_builder,
    create_pipeline_tuning_options,
    get_host_cpu_features,
    get_host_cpu_name,
    initialize_native_asmprinter,
    initialize_native_target,
    parse_assembly,
)
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.crypto.backend import kernels
from deepreshape.private.crypto.backend.numpy import Keys
from deepreshape.private.crypto.circuit import Circuit

KINDS = {4: ("VAES, 512 bits", {"vaes", "avx512f"}), 2: ("VAES, 256 bits", {"vaes", "avx2"}), 1: ("AES-NI", {"aes"})}
"""By labels in a vector: its name, and the processor features it needs."""


class _Function:
    """A compiled function. Calls let go of the interpreter's lock."""

    def __init__(self, name: str, lanes: int) -> None:
        initialize_native_target()
        initialize_native_asmprinter()
        module = parse_assembly(kernels.module(name, lanes))
        target = Target.from_default_triple().create_target_machine(
            cpu=get_host_cpu_name(), features=get_host_cpu_features().flatten(), jit=True
        )
        options = create_pipeline_tuning_options(speed_level=2)
        options.loop_unrolling = False  # the code is in vectors already; this halves the time to compile
        passes = create_pass_builder(target, options)
        passes.getModulePassManager().run(module, passes)
        self._owner = create_mcjit_compiler(module, target)
        self._owner.finalize_object()
        _, pointers, words = kernels.FUNCTIONS[name]
        kind = ctypes.CFUNCTYPE(
            None, *[ctypes.c_void_p] * len(pointers.split()), *[ctypes.c_int64] * len(words.split())
        )
        self._call = kind(self._owner.get_function_address(name))

    def __call__(self, arrays: list[NDArray[Any]], *words: int) -> None:
        """Call it with the addresses of ``arrays``, whose sizes the caller has checked, and ``words``."""
        self._call(*(array.ctypes.data for array in arrays), *words)


_compiled = cache(_Function)
_one_at_a_time = threading.Lock()


def widths() -> list[int]:
    """The labels in a vector that this processor can have, most first; none without AES instructions."""
    try:
        features = get_host_cpu_features()
    except RuntimeError:  # LLVM knows no way to ask on this platform
        return []
    present = {name for name, here in features.items() if here}
    return [lanes for lanes, (_, needed) in KINDS.items() if needed <= present]


class Fused:
    """See :class:`deepreshape.private.crypto.backend.Engine`.

    Args:
        lanes: labels in a vector; one of :func:`widths`.
        threads: that share a batch.

    Raises:
        ValueError: unless there is at least one thread.
    """

    name = "fused"

    def __init__(self, lanes: int, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"an engine needs at least one thread, not {threads}")
        self.about = f"{KINDS[lanes][0]}, {threads} thread{'s' * (threads > 1)}"
        self._threads = threads
        self._lanes = lanes

    def prepare(self) -> None:
        for name in kernels.FUNCTIONS:
            self._function(name)

    def garble(self, circuit: Circuit, delta: Words, labels: list[Words], keys: Keys, tables: Words) -> Words:
        return self._walk("garble", circuit, delta, labels, keys, tables)

    def evaluate(self, circuit: Circuit, tables: Words, labels: list[Words], keys: Keys) -> Words:
        return self._walk("evaluate", circuit, np.zeros(2, np.uint64), labels, keys, tables)

    def hash(self, labels: Words, key: Keys) -> Words:
        labels = np.ascontiguousarray(labels)
        out = np.empty_like(labels)
        self._function("hash")([labels, key, out], labels.size // 2)
        return out

    def pick(self, labels: Words, delta: Words, bits: Bits, out: Words) -> None:
        self._function("pick")([labels, delta, bits, out], len(labels))

    def transpose(self, columns: Bits) -> Words:
        m = columns.shape[1]
        rows = np.empty((8 * m, 2), np.uint64)
        room = np.empty(512, np.uint64)
        whole = m // 64
        if whole:
            self._function("transpose")([columns, rows, room], columns.strides[0], whole)
        if m % 64:
            last = np.zeros((128, 64), np.uint8)
            last[:, : m % 64] = columns[:, 64 * whole :]
            turned = np.empty((512, 2), np.uint64)
            self._function("transpose")([last, turned, room], 64, 1)
            rows[512 * whole :] = turned[: 8 * (m % 64)]
        return rows

    def grow(self, roots: Words, delta: Words, depth: int, key: Keys) -> tuple[Words, Words]:
        trees = len(roots)
        leaves, sums = np.empty((trees << depth, 2), np.uint64), np.empty((trees, depth, 2), np.uint64)
        self._function("grow")([leaves, roots, delta, sums, key], depth, 0, trees)
        return leaves, sums

    def regrow(self, sums: Words, sides: Bits, key: Keys) -> Words:
        trees, depth = sides.shape
        leaves = np.empty((trees << depth, 2), np.uint64)
        spread = np.negative(sides.astype(np.int64))
        self._function("regrow")([leaves, np.ascontiguousarray(sums), spread, key], depth, 0, trees)
        return leaves

    def gather(self, out: Words, table: Words, key: Keys, first: int) -> None:
        self._function("gather")([out, table, key], len(out), first, len(table) - 1)

    def hash_columns(self, labels: Words, keys: Keys, delta: Words) -> Words:
        labels = np.ascontiguousarray(labels)
        out = np.empty_like(labels)
        self._function("hash_columns")([labels, delta, keys, out], *labels.shape[:2])
        return out

    def fold(self, seeds: Words, keys: Keys) -> tuple[Words, Words]:
        groups, blocks = len(seeds), len(keys)
        columns, sums = np.empty((groups, 8, blocks, 2), np.uint64), np.empty((groups, blocks, 2), np.uint64)
        self._function("fold")([seeds, keys, columns, sums], blocks)
        return columns, sums

    def pack(self, values: Words, bits: int) -> Bits:
        stream = np.empty(values.size * bits // 64 + 1, np.uint64)
        self._function("pack")([np.ascontiguousarray(values), stream], bits, values.size)
        return stream.view(np.uint8)[: -(-values.size * bits // 8)]

    def unpack(self, data: Bits, bits: int, count: int) -> Words:
        stream = np.zeros(-(-data.size // 8), np.uint64)
        stream.view(np.uint8)[: data.size] = data
        values = np.empty(count, np.uint64)
        self._function("unpack")([stream, values], bits, count, stream.size)
        return values

    def _function(self, name: str) -> _Function:
        with _one_at_a_time:  # two threads that need the same would compile it twice
            return _compiled(name, 1 if name in ("pick", "pack", "unpack") else self._lanes)

    def _walk(self, name: str, circuit: Circuit, delta: Words, labels: list[Words], keys: Keys, tables: Words) -> Words:
        count = len(labels[0])
        outputs = np.empty((len(circuit.outputs), count, 2), np.uint64)
        slots = np.array([slot for slot, _ in circuit.schedule.outputs], np.int64)
        tables = np.ascontiguousarray(tables)
        inputs = np.array([label.ctypes.data for label in labels], np.uint64)
        shared = [circuit.instructions, slots, inputs, keys, delta, tables, outputs]
        function = self._function(name)
        sizes = len(circuit.instructions), circuit.width, len(slots), count

        def part(first: int, last: int) -> None:
            rows = np.empty(circuit.schedule.slots * kernels.STRIDE, np.uint64)
            function([*shared, rows], *sizes, first, last)

        blocks = -(-count // kernels.BLOCK)
        share = -(-blocks // self._threads) * kernels.BLOCK
        spans = [(first, min(first + share, count)) for first in range(0, count, share)]
        if len(spans) == 1:
            part(0, count)
        else:
            with ThreadPoolExecutor(len(spans)) as pool:
                list(pool.map(part, *zip(*spans, strict=True)))
        return outputs
