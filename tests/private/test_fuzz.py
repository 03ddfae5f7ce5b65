"""A fixed number of mutated inputs for every reader of bytes from outside; more by ``python benchmarks/fuzz.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fuzz import TARGETS, Target, fuzz
from support.fuzz_peers import PEERS

CASES = {"ckks circuit": 200, "ckks secret key": 60, "model's manifest": 60}
CASES |= {"model's weights": 40, "queries": 60, "spent": 60}
CASES |= dict.fromkeys(PEERS.keys() - {"ciphertext"}, 15)
CASES |= dict.fromkeys(
    ("gates", "table", "table of arrays", "rows", "rows of an array", "samples", "cost profile"), 100
)
CASES |= dict.fromkeys((name for name in TARGETS if "gated" in name or "own" in name or "splits" in name), 60)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_taken_or_refused_as_documented(name: str, tmp_path: Path) -> None:
    cases = CASES.get(name, 400)
    assert fuzz(name, tmp_path, cases).total() == cases


def test_the_fuzzer_sees_a_reader_that_raises_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> None:
        if data != b'{"a":[1,2]}':
            raise TypeError("unhashable type: 'list'")

    monkeypatch.setitem(TARGETS, "bad", Target(lambda: [b'{"a":[1,2]}'], lambda _: read, (ValueError,)))
    with pytest.raises(AssertionError, match="bad: TypeError: unhashable"):
        fuzz("bad", tmp_path, 5)
