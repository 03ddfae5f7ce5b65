"""Streams of a batch: damage, order, memory."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stores import BINDING, CHUNKS, ONE, prepare

from deepreshape.private.errors import StoreError
from deepreshape.private.parties.store import Store

Damage = Callable[[bytes], bytes]


FIRST = 4 + len(CHUNKS[0]) + 16


DAMAGES: list[Damage] = [
    lambda data: b"",
    lambda data: data[:-1],
    lambda data: data + b"\0",
    lambda data: data[:-20],  # the closing chunk is gone
    lambda data: data[:FIRST],
    lambda data: data[FIRST:],
    lambda data: data[:FIRST] + data,  # the first chunk twice
    lambda data: bytes([data[0] ^ 1]) + data[1:],
    lambda data: b"\xff\xff\xff\xff" + data[4:],
    lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:],
    lambda data: data + data[-20:],
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_stream_is_refused(store: Store, damage: Damage) -> None:
    prepare(store)
    path = store.folder / "fresh" / ONE / "layer1.tables.stream"
    path.write_bytes(damage(path.read_bytes()))
    read: list[bytes] = []
    tracemalloc.start()
    with store.claim(BINDING) as batch, pytest.raises(StoreError, match=r"layer1\.tables\.stream: chunk . is damaged"):
        read += batch.read("layer1.tables")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20  # whatever length the file claims
    tracemalloc.stop()
    assert read == CHUNKS[: len(read)]


def test_streams_cannot_be_exchanged(store: Store) -> None:
    prepare(store)
    folder = store.folder / "fresh" / ONE
    shutil.copy(folder / "layer1.tables.stream", folder / "layer1.labels.stream")
    with store.claim(BINDING) as batch, pytest.raises(StoreError, match="damaged"):
        list(batch.read("layer1.labels"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(chunks=st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=50)), max_size=12))
def test_any_interleaving_of_streams(tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[str, bytes]]) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    with store.create(BINDING, ONE) as writer:
        for name, chunk in chunks:
            writer.write(name, chunk)
        writer.commit()
    with store.claim(BINDING) as batch:
        for name in {name for name, _ in chunks}:
            assert list(batch.read(name)) == [chunk for other, chunk in chunks if other == name]


def test_memory_stays_bounded(store: Store) -> None:
    chunk = np.arange(1 << 19, dtype=np.uint64)
    tracemalloc.start()
    with store.create(BINDING, ONE) as writer:
        for _ in range(8):
            writer.write("tables", chunk)
        writer.commit()
    with store.claim(BINDING) as batch:
        assert sum(part == chunk.tobytes() for part in batch.read("tables")) == 8
    assert tracemalloc.get_traced_memory()[1] < 6 * chunk.nbytes
    tracemalloc.stop()


def test_leaving_a_batch_closes_what_is_half_read(store: Store) -> None:
    prepare(store)
    with store.claim(BINDING) as batch:
        chunks = batch.read("layer1.tables")
        assert next(chunks) == CHUNKS[0]
    assert list(chunks) == []
