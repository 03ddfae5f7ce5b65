"""Batches are used once, for what they were made for, and no copy of one is used again."""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.stores import BINDING, CHUNKS, ONE, TWO, contents, prepare

from deepreshape.private.errors import SpentError, StoreError
from deepreshape.private.parties.store import Store
from deepreshape.private.parties.streams import CHUNK_BYTES


def test_what_is_written_is_read_once(store: Store) -> None:
    assert store.count(BINDING) == 0
    prepare(store)
    prepare(store, TWO)
    assert store.fresh(BINDING) == (ONE, TWO)
    with store.claim(BINDING) as batch:
        assert batch.session == ONE
        assert list(batch.read("layer1.tables")) == CHUNKS
        assert list(batch.read("layer1.labels")) == [b"labels"]
        for name in ("layer1.tables", "layer9"):
            with pytest.raises(SpentError, match=f"no unread stream '{name}'"):
                batch.read(name)
    assert store.fresh(BINDING) == (TWO,)
    with pytest.raises(SpentError):
        batch.read("layer1.labels")
    store.claim(BINDING, TWO).close()
    with pytest.raises(StoreError, match="no offline batch is left"):
        store.claim(BINDING)
    assert contents(store.folder) == {"spent"}


def test_a_batch_that_a_query_keeps_is_nobody_elses(store: Store) -> None:
    prepare(store)
    prepare(store, TWO)
    other = Store(store.folder)
    with store.keep(BINDING, ONE) as first:
        with pytest.raises(StoreError, match="another query is about to use it; ask for another"):
            other.claim(BINDING, ONE)
        second = other.choose(BINDING)
        assert second
        with second:
            assert (first.session, second.session) == (ONE, TWO)
            assert store.choose(BINDING) is None
        with first.claim() as batch:
            assert list(batch.read("layer1.labels")) == [b"labels"]
        with pytest.raises(SpentError, match="was claimed or let go before"):
            first.claim()
    other.claim(BINDING, TWO).close()  # let go of, and as it was
    assert contents(store.folder) == {"spent"}


def test_batch_opens_for_its_binding_only(store: Store) -> None:
    prepare(store)
    for other, what in (
        (replace(BINDING, program="00" * 32), "program"),
        (replace(BINDING, peer="00" * 32), "peer"),
        (replace(BINDING, parameters={"bits": 37, "garbler": "server"}), "parameters"),
        (replace(BINDING, parameters={"bits": True, "garbler": "server"}), "parameters"),
    ):
        assert store.count(other) == 0
        with pytest.raises(StoreError, match=f"was made for another {what}"):
            store.claim(other, ONE)
    assert store.count(BINDING) == 1


def test_binding_is_part_of_the_encryption(store: Store) -> None:
    """Editing the manifest does not make a batch fit another peer."""
    prepare(store)
    manifest = store.folder / "fresh" / ONE / "manifest.json"
    edited = {**json.loads(manifest.read_text()), "peer": "ee" * 32}
    manifest.write_text(json.dumps(edited))
    with store.claim(replace(BINDING, peer="ee" * 32), ONE) as batch, pytest.raises(StoreError, match="damaged"):
        list(batch.read("layer1.labels"))


@pytest.mark.parametrize("leave", ["raise", "return"])
def test_unfinished_batch_leaves_nothing(store: Store, leave: str) -> None:
    with suppress(KeyError), store.create(BINDING, ONE) as writer:
        writer.write("layer1", b"data")
        if leave == "raise":
            raise KeyError
    assert contents(store.folder) == set()
    with pytest.raises(StoreError, match="not being written any more"):
        writer.write("layer1", b"data")
    with pytest.raises(StoreError, match="not being written any more"):
        writer.commit()
    assert store.count(BINDING) == 0


def test_one_batch_a_session(store: Store) -> None:
    with store.create(BINDING, ONE), pytest.raises(SpentError, match="there is or was a batch of this session"):
        store.create(BINDING, ONE)
    prepare(store)
    with pytest.raises(SpentError, match="there is or was"):
        store.create(BINDING, ONE)
    with store.claim(BINDING), pytest.raises(SpentError, match="there is or was"):
        store.create(BINDING, ONE)
    with pytest.raises(SpentError, match="there is or was"):
        store.create(BINDING, ONE)


def test_copied_back_batch_is_refused(store: Store, tmp_path: Path) -> None:
    """Without its key, with its key, and under another name."""
    prepare(store)
    backup = tmp_path / "backup"
    shutil.copytree(store.folder, backup)
    with store.claim(BINDING) as batch:
        list(batch.read("layer1.tables"))

    def restore(session: str = ONE) -> None:
        shutil.rmtree(store.folder / "fresh" / session, ignore_errors=True)
        shutil.copytree(backup / "fresh" / ONE, store.folder / "fresh" / session)

    restore()
    assert store.count(BINDING) == 0
    with pytest.raises(SpentError, match="was claimed before, and no copy"):
        store.claim(BINDING, ONE)
    shutil.copy(backup / "keys" / f"{ONE}.key", store.keys)
    assert store.count(BINDING) == 0
    with pytest.raises(SpentError, match="was claimed before"):
        store.claim(BINDING, ONE)
    restore(TWO)
    with pytest.raises(SpentError, match="no key any more"):
        store.claim(BINDING, TWO)
    shutil.copy(backup / "keys" / f"{ONE}.key", store.keys / f"{TWO}.key")
    with store.claim(BINDING, TWO) as batch, pytest.raises(StoreError, match="damaged"):
        list(batch.read("layer1.tables"))
    # the ledger lost, the key destroyed
    (store.folder / "spent").unlink()
    restore()
    (store.keys / f"{ONE}.key").unlink()
    with pytest.raises(SpentError, match="no key any more"):
        store.claim(BINDING, ONE)


def test_opening_the_store_destroys_copies_of_what_is_spent_and_nothing_else(store: Store, tmp_path: Path) -> None:
    prepare(store)
    backup = tmp_path / "backup"
    shutil.copytree(store.folder, backup)
    store.claim(BINDING).close()
    for part in ("fresh", "keys"):
        shutil.copytree(backup / part, store.folder / part, dirs_exist_ok=True)
    prepare(store, TWO)
    assert Store(store.folder).fresh(BINDING) == (TWO,)
    assert {path.parts[-2] for path in store.folder.rglob("*.stream")} == {TWO}
    assert [path.name for path in store.keys.iterdir()] == [f"{TWO}.key"]


def test_key_is_kept_apart_and_nothing_lies_in_clear(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", keys=tmp_path / "elsewhere")
    prepare(store)
    assert {path.name for path in store.keys.iterdir()} == {f"{ONE}.key"}
    assert not list(store.folder.rglob("*.key"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"first chunk" not in data
            assert b"labels" not in data or path.name == "manifest.json"
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0 or path.suffix == ".stream" or path.is_relative_to(store.folder / "writing")
    assert stat.S_IMODE(store.folder.stat().st_mode) == stat.S_IMODE(store.keys.stat().st_mode) == 0o700
    os.link(store.keys / f"{ONE}.key", tmp_path / "same file")
    with store.claim(BINDING) as batch:
        assert not list(store.keys.iterdir())
        assert (tmp_path / "same file").read_bytes() == bytes(32)
        assert list(batch.read("layer1.labels")) == [b"labels"]


def test_opening_a_store_deletes_nothing_that_is_not_a_batch(tmp_path: Path) -> None:
    """``writing`` is a likely name for a folder that holds something else."""
    for state in ("writing", "claimed"):
        (tmp_path / state / "novel").mkdir(parents=True)
        (tmp_path / state / "novel" / "chapter 1").write_text("It was a dark and stormy night")
        (tmp_path / state / "notes").write_text("")
    before = contents(tmp_path)
    assert len(before) == 4
    Store(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("torn", [b"\xff123", bytes(65), TWO.encode(), b"\n" * 3, b"a" * 64])
def test_torn_ledger_line_hides_no_other(store: Store, torn: bytes) -> None:
    """Also one that a power cut left as zeros of its full length."""
    (store.folder / "spent").write_bytes(f"{TWO}\n".encode() + torn)
    prepare(store)
    store.claim(BINDING).close()
    for session in (ONE, TWO):
        with pytest.raises(SpentError):
            store.claim(BINDING, session)


def test_bad_input_gets_one_clear_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"batch '\.\./x': is named by a session id"):
        store.create(BINDING, "../x")
    with pytest.raises(StoreError, match="is named by a session id"):
        store.claim(BINDING, "fresh")
    with pytest.raises(StoreError, match="there is no fresh batch 1111"):
        store.claim(BINDING, ONE)
    with store.create(BINDING, ONE) as writer:
        for name in ("", "../up", "a/b", "x" * 101, ".hidden"):
            with pytest.raises(ValueError, match="use 1 to 100 letters"):
                writer.write(name, b"")
        with pytest.raises(ValueError, match=f"write at most {CHUNK_BYTES} at a time"):
            writer.write("big", np.zeros(CHUNK_BYTES + 1, np.uint8))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="choose another folder"):
        Store(tmp_path / "file")
    prepare(store)
    (store.folder / "fresh" / ONE / "manifest.json").write_text("[]")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        store.claim(BINDING, ONE)


def test_secrets_are_in_no_text(store: Store) -> None:
    planted = b"PLANTED-SECRET"
    with store.create(BINDING, ONE) as writer:
        key = (store.keys / f"{ONE}.key").read_bytes()
        writer.write("labels", planted)
        texts = [repr(writer), str(vars(writer)["_streams"]), repr(store)]
        writer.commit()
    with store.claim(BINDING) as batch:
        texts.append(repr(batch))
        with pytest.raises(StoreError) as caught:
            batch.read("nothing")
        texts.append(repr(caught.value))
    assert bytes(vars(batch)["_key"]) == bytes(vars(writer)["_key"]) == bytes(32)
    for text in texts:
        assert "PLANTED" not in text
        assert key.hex() not in text
        assert repr(key)[2:-1] not in text


@pytest.mark.parametrize("inner", ["", "keys", "fresh"])
def test_a_store_that_others_can_write_to_is_refused(inner: str, tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store" / inner).chmod(0o777)
    with pytest.raises(StoreError, match=r"others can write to it \(mode 777\); run: chmod go-w"):
        Store(tmp_path / "store")
