"""Files are replaced in one step, are their owner's, and are read up to a known size only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deepreshape.private.files import check_owned, parse_json, printable, read_arrays, read_at_most, replace_file


def test_a_replaced_file_has_the_mode_that_was_asked_for_and_not_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "server.program"
    path.write_bytes(b"old")
    path.chmod(0o644)
    with path.open("rb") as reader:  # who had it open goes on to see the old content
        replace_file(path, b"secret")
        assert reader.read() == b"old"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"secret", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "queries"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


def test_only_regular_files_of_a_known_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(bytes(11))
    assert len(read_at_most(path, 11)) == 11
    with pytest.raises(ValueError, match="has 11 bytes; at most 10 are read"):
        read_at_most(path, 10)
    os.mkfifo(tmp_path / "pipe")  # would be waited for
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        read_at_most(tmp_path / "pipe", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"NaN", "NaN is not a JSON number"),
        (b"\xff", "utf-8"),
        (b"", "Expecting"),
    ],
)
def test_what_is_not_json_is_a_value_error(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720])
def test_a_folder_that_others_can_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ValueError, match=rf"others can write to it \(mode {mode:o}\); run: chmod go-w"):
        check_owned(tmp_path, ValueError)
    tmp_path.chmod(0o755)
    check_owned(tmp_path, ValueError)


def test_what_holds_no_arrays_is_refused_by_one_class(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    assert np.array_equal(read_arrays(tmp_path / "a.npy"), np.zeros(3))
    whole = (tmp_path / "a.npy").read_bytes(), (tmp_path / "b.npz").read_bytes()
    assert list(read_arrays(tmp_path / "b.npz")) == ["x"]
    for damaged in (b"", whole[0][:20], whole[0].replace(b"}", b" "), whole[1][:-30], whole[1].replace(b"}", b" ")):
        (tmp_path / "c.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c\.npy is not an array of numbers that NumPy saved"):
            read_arrays(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"d\.npy is not an array of numbers"):
        read_arrays(tmp_path / "d.npy")


def test_no_escape_sequence_is_left() -> None:
    assert printable("a\x1b[2Jé\x9b\u202e\n") == "a\ufffd[2Jé\ufffd\ufffd\ufffd"
