"""Secret keys in files, and the evaluation keys that a server keeps."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.ckks import INPUT_SHAPE, single

from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.keys import DAY_S, DIGEST_BYTES, KeyCaps, KeyShelf, read_secret_key, write_secret_key
from deepreshape.engines.ckks.scheme import SQUARE, Scheme
from deepreshape.private.errors import CapError, LocalError, StoreError

PUBLIC = compiled(single(), INPUT_SHAPE).public
OTHER = compiled(single(1), INPUT_SHAPE).public
ALICE, BOB = "a1" * 32, "b0" * 32


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "me.key"
    write_secret_key(path, PUBLIC)
    return path


def changed(key: Path, folder: Path, data: bytes, mode: int = 0o600) -> Path:
    path = folder / "changed.key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_key_is_its_owners_and_is_read_again(key: Path):
    assert key.stat().st_mode & 0o777 == 0o600
    holder = read_secret_key(key, PUBLIC)
    x = np.zeros(PUBLIC.parameters.slots)
    assert np.allclose(
        holder.decrypt(wire.read_fresh(holder.scheme, wire.fresh(holder.scheme, holder.encrypt(x)))), x, atol=1e-3
    )
    with pytest.raises(LocalError, match="exists and is not overwritten"):
        write_secret_key(key, PUBLIC)
    assert not list(key.parent.glob("*.new"))


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_key_that_is_cut_short_is_one_line(key: Path, tmp_path: Path, cut: int):
    path = changed(key, tmp_path, key.read_bytes()[:cut])
    with pytest.raises(LocalError, match=r"cut short or damaged|not a secret key"):
        read_secret_key(path, PUBLIC)


def test_a_key_that_was_changed_or_that_others_read_is_refused(key: Path, tmp_path: Path):
    data = bytearray(key.read_bytes())
    data[5000] ^= 1
    with pytest.raises(LocalError, match="cut short or damaged"):
        read_secret_key(changed(key, tmp_path, bytes(data)), PUBLIC)
    with pytest.raises(LocalError, match=r"others can read this key \(mode 640\); run: chmod 600"):
        read_secret_key(changed(key, tmp_path, key.read_bytes(), 0o640), PUBLIC)
    with pytest.raises(LocalError, match="no such file; `deepreshape private fhe keygen`"):
        read_secret_key(tmp_path / "none.key", PUBLIC)


def test_a_key_of_another_network_is_refused(key: Path):
    assert OTHER.parameters == PUBLIC.parameters
    with pytest.raises(LocalError, match=f"made for circuit {PUBLIC.digest[:16]}, not for {OTHER.digest[:16]}"):
        read_secret_key(key, OTHER)


def test_evaluation_keys_belong_to_a_client_and_a_circuit(tmp_path: Path):
    shelf = KeyShelf(tmp_path / "shelf")
    keys = shelf.of(ALICE, PUBLIC)
    keys.write(SQUARE, memoryview(b"abc"))
    assert keys.names() == {SQUARE}
    assert keys.read(SQUARE) == b"abc"
    assert shelf.of(BOB, PUBLIC).names() == shelf.of(ALICE, OTHER).names() == frozenset()
    size = 3 + DIGEST_BYTES
    assert (shelf.held(), shelf.held(ALICE), shelf.held(BOB)) == (size, size, 0)
    (keys.folder / "rotate-5.1a2b.new").write_bytes(b"left by a kill")
    assert keys.names() == {SQUARE}
    keys.delete()
    assert keys.names() == frozenset()
    assert shelf.held() == 0
    with pytest.raises(ValueError, match="needs a fingerprint"):
        shelf.of("../escape", PUBLIC)


@pytest.mark.parametrize("stored", [b"abd", b"ab", b""])
def test_a_damaged_evaluation_key_is_no_key(stored: bytes, tmp_path: Path):
    """Under a key with one wrong bit every answer is wrong, and looks like one."""
    keys = KeyShelf(tmp_path / "shelf").of(ALICE, PUBLIC)
    keys.write(SQUARE, memoryview(b"abc"))
    path = keys.folder / SQUARE
    path.write_bytes(stored + path.read_bytes()[3:] if stored else b"")
    with pytest.raises(StoreError, match="damaged, and deleted; the client's next query uploads it again"):
        keys.read(SQUARE)
    assert keys.names() == frozenset()


def test_a_key_that_is_too_long_or_a_folder_is_uploaded_again(tmp_path: Path):
    keys = KeyShelf(tmp_path / "shelf").of(ALICE, PUBLIC)
    keys.write(SQUARE, memoryview(b"abc"))
    path = keys.folder / SQUARE
    os.truncate(path, wire.key_bytes(Scheme(PUBLIC.parameters)) + DIGEST_BYTES + 1)
    with pytest.raises(StoreError, match="damaged, and deleted; the client's next query uploads it again"):
        keys.read(SQUARE)
    assert keys.names() == frozenset()
    path.mkdir()
    (path / "something").touch()
    assert keys.names() == frozenset()  # so that the client sends it
    keys.write(SQUARE, memoryview(b"abc"))
    assert keys.read(SQUARE) == b"abc"


def test_caps_are_seen_before_a_byte_comes(tmp_path: Path):
    each = wire.key_bytes(Scheme(PUBLIC.parameters)) + DIGEST_BYTES
    whole = each * len(PUBLIC.key_names)
    KeyShelf(tmp_path / "a", KeyCaps(whole, whole)).of(ALICE, PUBLIC).make_room()
    with pytest.raises(CapError, match=r"bytes more, over the cap of .*\(bytes_each\)"):
        KeyShelf(tmp_path / "b", KeyCaps(whole - 1, whole)).of(ALICE, PUBLIC).make_room()
    shelf = KeyShelf(tmp_path / "c", KeyCaps(whole, whole))
    shelf.of(BOB, PUBLIC).write(SQUARE, memoryview(b"a"))
    with pytest.raises(CapError, match="bytes_all"):
        shelf.of(ALICE, PUBLIC).make_room()
    with pytest.raises(ValueError, match="days=0"):
        KeyCaps(days=0)


def test_keys_that_nobody_used_go(tmp_path: Path):
    shelf = KeyShelf(tmp_path / "shelf", KeyCaps(days=2))
    old, used = shelf.of(ALICE, PUBLIC), shelf.of(BOB, PUBLIC)
    for keys in (old, used):
        keys.write(SQUARE, memoryview(b"abc"))
        os.utime(keys.folder, (time.time() - 3 * DAY_S,) * 2)
    used.names()
    assert shelf.expire() == 1
    assert (old.names(), used.names()) == (frozenset(), {SQUARE})


def test_what_a_kill_left_half_written_goes(tmp_path: Path):
    shelf = KeyShelf(tmp_path / "shelf")
    keys = shelf.of(ALICE, PUBLIC)
    keys.write(SQUARE, memoryview(b"abc"))
    left, written_now = keys.folder / f"{SQUARE}.1a2b3c4d.new", keys.folder / "rotate-5.5e6f7a8b.new"
    for path in (left, written_now):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * 3600,) * 2)
    keys.make_room()
    assert {path.name for path in keys.folder.iterdir()} == {SQUARE, written_now.name}


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match="others can write to it"):
        KeyShelf(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batch": 3}, "no circuit puts 3 images"),
        ({"rotations": [2, 1]}, "are not ascending"),
        ({"rotations": [1 << 19]}, "a rotation is not by whole groups"),
        ({"shape": [10_000]}, "is not in a layout"),
        ({"computed": "x"}, "its digest is none"),
        ({"batch": True}, "ill-typed"),
        ({"more": 1}, "unknown"),
        ({"parameters": {"degree": 8192, "bits": 50, "levels": 9, "special": 60, "squares": 1}}, "secure at 128 bits"),
        ({"parameters": {"degree": 1024, "bits": 30, "levels": 1, "special": 40, "squares": 1}}, "secure at 128 bits"),
        ({"parameters": {"degree": 8192, "bits": 20, "levels": 2, "special": 30, "squares": 1}}, "other sizes"),
        (
            {"layout": {"channels": 1 << 20, "height": 1 << 20, "width": 1, "gap": 1, "rows": 1, "columns": 1}},
            "a layout",
        ),
        ({"layout": 3}, "not a client's part"),
    ],
)
def test_a_strangers_circuit_is_held_to_its_form(change: dict, reason: str):
    values = PUBLIC.to_dict()
    assert type(PUBLIC).from_dict(values) == PUBLIC
    with pytest.raises(ValueError, match=reason):
        type(PUBLIC).from_dict(values | change)


def test_the_digest_is_of_weights_and_form():
    assert compiled(single(), INPUT_SHAPE).public.digest == PUBLIC.digest
    assert OTHER.digest != PUBLIC.digest
    assert replace(PUBLIC, batch=2, rotations=()).digest != PUBLIC.digest
