"""Downloading data sets: several addresses, a checksum, and going on where a download was cut."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

__all__ = ["ARCHIVES", "Archive", "fetch"]

TIMEOUT_SECONDS = 30
CHUNK = 1 << 20

Algorithm = Literal["sha256", "md5"]
"""SHA-256 values were computed from files whose published MD5 agreed. Of CIFAR-10's images only the published MD5 is
known here; only the authors of those files could have prepared two with the same."""


@dataclass(frozen=True)
class Archive:
    """An archive that unpacks to a data set.

    Attributes:
        name: of the file.
        sha256: of its content.
        unpacks_to: the folder it makes.
        addresses: where it can be had, tried in order.
        digests: of the files in it that are read, by name: the algorithm and the value.
    """

    name: str
    sha256: str
    unpacks_to: str
    addresses: tuple[str, ...]
    digests: Mapping[str, tuple[Algorithm, str]] = field(default_factory=dict[str, tuple[Algorithm, str]])

    def unofficial(self, folder: Path) -> tuple[str, ...]:
        """The files in ``folder / unpacks_to`` whose content is not the official one; missing ones are not named.

        Raises:
            OSError: if one cannot be read.
        """
        different: list[str] = []
        for name, (algorithm, value) in self.digests.items():
            path = folder / self.unpacks_to / name
            if path.is_file():
                with path.open("rb") as file:
                    if hashlib.file_digest(file, algorithm).hexdigest() != value:
                        different.append(name)
        return tuple(different)


ARCHIVES: dict[str, Archive] = {
    "cifar10": Archive(
        "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "cifar-10-batches-py",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        {
            "data_batch_1": ("md5", "c99cafc152244af753f735de768cd75f"),
            "data_batch_2": ("md5", "d4bba439e000b95fd0a9bffe97cbabec"),
            "data_batch_3": ("md5", "54ebc095f3ab1f0389bbae665268c751"),
            "data_batch_4": ("md5", "634d18415352ddfa80567beed471001a"),
            "data_batch_5": ("md5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            "test_batch": ("md5", "40351d587109b95175f43aff81a1287e"),
            "batches.meta": ("sha256", "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"),
        },
    ),
    "cifar100": Archive(
        "cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "cifar-100-python",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "https://huggingface.co/datasets/nakroy/cifar100-python/resolve/main/cifar-100-python.tar.gz",
        ),
        {
            "train": ("sha256", "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b"),
            "test": ("sha256", "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864"),
            "meta": ("sha256", "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9"),
        },
    ),
    "tinyimagenet": Archive(
        "tiny-imagenet-200.zip",
        "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        "tiny-imagenet-200",
        ("https://cs231n.stanford.edu/tiny-imagenet-200.zip",),
    ),
    "camvid": Archive(
        "camvid240x180.tar",
        "973ea37b2dcdde86733645dd1d1205a4cd574b5af3933b1eab25b6353435af8f",
        "CamVid",
        (),  # for research only, in this form at no public address
    ),
}


def fetch(
    name: str,
    folder: Path,
    *,
    mirror: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download, check and unpack a data set; what is already there stays.

    Args:
        name: one of :data:`ARCHIVES`.
        folder: that will hold the unpacked folder; the archive is removed afterwards.
        mirror: an address to try first.
        progress: told (bytes done, bytes in all).

    Returns:
        The unpacked folder.

    Raises:
        ValueError: if there is no such data set, no address answers, or the checksum differs.
    """
    if name not in ARCHIVES:
        raise ValueError(f"there is nothing to fetch for {name!r}; known are {', '.join(ARCHIVES)}")
    archive = ARCHIVES[name]
    target = folder / archive.unpacks_to
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{archive.name}.part"
    failures: list[str] = []
    for address in (*([mirror] if mirror else []), *archive.addresses):
        try:
            _download(address, path, progress)
        except (URLError, OSError) as error:
            failures.append(f"{address}: {error}")
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == archive.sha256:
            _unpack(path, archive, folder)
            path.unlink()
            return target
        path.unlink()
        failures.append(f"{address}: its SHA-256 is {digest[:12]}..., not {archive.sha256[:12]}...")
    why = "; ".join(failures) or "it is at no public address"
    raise ValueError(
        f"could not fetch {name} ({why}); put {archive.name}, unpacked, in {folder} by other means or give another "
        "address with --mirror"
    )


def _download(address: str, path: Path, progress: Callable[[int, int], None] | None) -> None:
    """Append what is missing of ``path``; a server that cannot start in the middle sends it all again."""
    have = path.stat().st_size if path.is_file() else 0
    request = Request(address, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - fixed or the user's own
    try:
        answer = urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except HTTPError as error:
        if error.code == 416 and have:  # nothing is missing: the last run was cut after the last byte
            return
        raise
    with answer:
        going_on = answer.status == 206
        done = have if going_on else 0
        total = done + int(answer.headers.get("Content-Length", 0))
        with path.open("ab" if going_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
    if done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes; the same command goes on from there")


def _unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpack beside the target and move it into place, so that a cut leaves nothing half there."""
    staging = folder / f"{archive.unpacks_to}.part"
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(path) as content:
            content.extractall(staging)  # noqa: S202 - the checksum is known; zipfile keeps names inside the folder
    else:
        with tarfile.open(path) as content:
            content.extractall(staging, filter="data")
    os.replace(staging / archive.unpacks_to, folder / archive.unpacks_to)
    staging.rmdir()
