"""Offline material comes back as it was put, once, from memory and from the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deepreshape.private.errors import SpentError, StoreError
from deepreshape.private.parties import preprocessing as material
from deepreshape.private.parties.batch import Writer
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.preprocessing import AHEAD, InMemory, Reading, Sink, Writing
from deepreshape.private.parties.store import Store
from deepreshape.private.protocols.base import Prepared
from deepreshape.private.transport.channel import Payload

ARRAYS = {
    "words": np.arange(60, dtype=np.uint64).reshape(3, 20),
    "bits": np.arange(7, dtype=np.uint8),
    "none": np.zeros((0, 2), np.uint64),
}


def put(sink: Sink) -> None:
    for number in range(2):
        sink.put("3.relu", Prepared({name: array + number for name, array in ARRAYS.items()}))
    sink.put("0.mask", Prepared({"mask": np.zeros(1, np.uint64)}))


def check(taken: list[dict[str, np.ndarray]]) -> None:
    assert len(taken) == 2
    for number, arrays in enumerate(taken):
        assert list(arrays) == list(ARRAYS)
        for name, array in arrays.items():
            assert array.dtype == ARRAYS[name].dtype
            assert array.flags.writeable  # so that it can be overwritten after use
            assert np.array_equal(array, ARRAYS[name] + number)


def test_memory() -> None:
    memory = InMemory()
    put(memory)
    assert memory.nbytes == 2 * (480 + 7) + 8
    check([prepared.take() for prepared in memory.get("3.relu")])
    with pytest.raises(RuntimeError, match=r"'3\.relu' was read before"):
        memory.get("3.relu")


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(material, "CHUNK_BYTES", chunk)
    store, binding, name = Store(tmp_path), Binding("00" * 32, "11" * 32, {}), "ab" * 32
    with store.create(binding, name) as writer:
        with Writing(writer) as sink:
            put(sink)
        writer.commit()
    assert sink.nbytes == 2 * (480 + 7) + 8
    with store.claim(binding, name) as batch:
        source = Reading(batch)
        check([prepared.take() for prepared in source.get("3.relu")])
        with pytest.raises(SpentError, match=r"no unread stream '3\.relu'"):
            next(source.get("3.relu"))


def test_putting_uses_up(tmp_path: Path) -> None:
    prepared = Prepared({"a": np.zeros(1, np.uint64)})
    with Store(tmp_path).create(Binding("00" * 32, "11" * 32, {}), "ab" * 32) as writer, Writing(writer) as sink:
        sink.put("s", prepared)
    with pytest.raises(RuntimeError, match="was used"):
        prepared.take()


class Disk(Writer):
    """A writer that keeps the names of streams, and may be full."""

    def __init__(self, *, full: bool = False) -> None:
        self.full, self.written, self.most = full, list[str](), 0
        self.sink: Writing | None = None

    def write(self, name: str, chunk: Payload) -> None:
        if self.full:
            raise StoreError("no room")
        self.written.append(name)
        if self.sink:
            self.most = max(self.most, len(self.sink._waiting))


def one() -> Prepared:
    return Prepared({"a": np.zeros(1, np.uint64)})


def test_few_wait_for_the_disk_and_none_overtakes() -> None:
    disk = Disk()
    with Writing(disk) as sink:
        disk.sink = sink
        for number in range(50):
            sink.put(str(number), one())
    assert disk.written == [str(number) for number in range(50) for _ in ("head", "array")]
    assert disk.most <= AHEAD


def fill(puts: int) -> Iterator[int]:
    with Writing(Disk(full=True)) as sink:
        for number in range(puts):
            yield number
            sink.put("s", one())


def test_a_full_disk_is_said_soon_and_at_the_end_at_the_latest() -> None:
    with pytest.raises(StoreError, match="no room"):
        list(fill(1))
    several = fill(9)
    for _ in range(AHEAD + 1):
        next(several)
    with pytest.raises(StoreError, match="no room"):
        next(several)


def test_a_failed_session_says_why_it_failed() -> None:
    several = fill(9)
    next(several)
    next(several)
    with pytest.raises(KeyError):
        several.throw(KeyError)
