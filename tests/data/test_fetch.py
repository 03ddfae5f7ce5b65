"""Downloads from a server on this machine that can be told to misbehave."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deepreshape.data import fetch as module
from deepreshape.data.fetch import Archive, fetch


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        info = tarfile.TarInfo("pictures/one")
        info.size = 200_000
        file.addfile(info, io.BytesIO(hashlib.shake_128(b"content").digest(200_000)))
    return buffer.getvalue()


CONTENT = archive()


class Handler(BaseHTTPRequestHandler):
    requests: list[str | None] = []  # noqa: RUF012 - reset by the fixture

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and "plain" not in self.path else 0
        body = b"wrong" if "wrong" in self.path else CONTENT
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = len(self.requests) == 1 and "cut" in self.path
        self.wfile.write(body[start : len(body) // 2] if cut else body[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Handler.requests = []
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        here = f"http://127.0.0.1:{http.server_port}"
        known = Archive("pictures.tar.gz", hashlib.sha256(CONTENT).hexdigest(), "pictures", (f"{here}/good",))
        monkeypatch.setitem(module.ARCHIVES, "pictures", known)
        yield here
        http.shutdown()
        thread.join()


def test_a_data_set_is_fetched_once(server: str, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    folder = fetch("pictures", tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert (folder / "one").stat().st_size == 200_000
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
    fetch("pictures", tmp_path)
    assert len(Handler.requests) == 1


def test_a_download_that_was_cut_goes_on(server: str, tmp_path: Path):
    assert fetch("pictures", tmp_path, mirror=f"{server}/cut").is_dir()
    assert Handler.requests == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_server_without_ranges_sends_it_all_again(server: str, tmp_path: Path):
    (tmp_path / "pictures.tar.gz.part").write_bytes(CONTENT[:100])
    assert fetch("pictures", tmp_path, mirror=f"{server}/plain").is_dir()


def test_a_complete_download_that_was_not_unpacked_is_used(server: str, tmp_path: Path):
    (tmp_path / "pictures.tar.gz.part").write_bytes(CONTENT)
    assert fetch("pictures", tmp_path).is_dir()


def test_a_wrong_file_is_not_unpacked_and_the_next_address_is_tried(server: str, tmp_path: Path):
    assert fetch("pictures", tmp_path, mirror=f"{server}/wrong").is_dir()
    assert len(Handler.requests) == 2


def test_no_address_that_works_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, server: str, tmp_path: Path):
    monkeypatch.setitem(module.ARCHIVES, "pictures", Archive("pictures.tar.gz", "00", "pictures", (f"{server}/wrong",)))
    with pytest.raises(ValueError, match=r"could not fetch pictures .*its SHA-256 is .*put pictures.tar.gz") as caught:
        fetch("pictures", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="nothing to fetch for 'digits'; known are cifar10"):
        fetch("digits", tmp_path)


@pytest.mark.parametrize("known", module.ARCHIVES.values(), ids=lambda known: known.name)
def test_addresses_are_encrypted_and_checksums_whole(known: Archive):
    assert len(known.sha256) == 64
    assert all(address.startswith("https://") for address in known.addresses)
