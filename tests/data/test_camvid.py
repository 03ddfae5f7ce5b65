"""CamVid's reader on files of the same layout that hold noise: the data set itself is not in the repository."""

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepreshape.data import Dataset, camvid
from deepreshape.data.augment import VOID

COUNTS = {"train": 3, "val": 1, "test": 2}


def write(folder: Path, size: tuple[int, int] = (240, 180), largest: int = 11) -> None:
    random = np.random.default_rng(0)
    for word, count in COUNTS.items():
        for number in range(count):
            image = Image.fromarray(random.integers(0, 256, (180, 240, 3), np.uint8))
            labels = Image.fromarray(random.integers(0, largest + 1, size[::-1], np.uint8))
            for path, picture in ((f"{word}/{number}.jpg", image), (f"{word}annot/{number}.png", labels)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                picture.save(folder / path)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch):
    splits = {name: (word, COUNTS[word]) for name, (word, _) in camvid.SPLITS.items()}
    monkeypatch.setattr(camvid, "SPLITS", splits)


@pytest.mark.filterwarnings("ignore:the files of CamVid")
def test_frames_are_read_and_what_is_of_no_class_is_void(tmp_path: Path):
    write(tmp_path / "CamVid")
    data = Dataset.load("camvid", tmp_path)
    assert data.maps
    assert (data.shape, len(data.train), len(data.validation), len(data.test)) == ((3, 180, 240), 3, 1, 2)
    assert len(data.class_names) == len(data.colours) == 11
    written = np.array(Image.open(tmp_path / "CamVid" / "trainannot" / "1.png"))
    assert np.array_equal(data.train.labels[1].numpy(), np.where(written == 11, VOID, written))


@pytest.mark.filterwarnings("ignore:the files of CamVid")
def test_four_windows_cover_a_frame_and_its_map_alike(tmp_path: Path):
    write(tmp_path / "CamVid")
    whole, windows = Dataset.load("camvid", tmp_path), Dataset.load("camvid-120x96", tmp_path)
    assert (windows.shape, len(windows.train)) == ((3, 96, 120), 12)
    for frames, cut in ((whole.train.images, windows.train.images), (whole.train.labels, windows.train.labels)):
        covered = torch.full_like(frames[1], 99)
        for place, (top, left) in enumerate(((0, 0), (0, 120), (84, 0), (84, 120))):
            covered[..., top : top + 96, left : left + 120] = cut[4 + place]
        assert torch.equal(covered, frames[1])


@pytest.mark.filterwarnings("ignore:the files of CamVid")
def test_a_tar_is_read_as_the_folder_in_it(tmp_path: Path):
    write(tmp_path / "there" / "CamVid")
    with tarfile.open(tmp_path / "camvid240x180.tar", "w") as tar:
        tar.add(tmp_path / "there" / "CamVid", "CamVid")
    one, other = Dataset.load("camvid", tmp_path), Dataset.load("camvid", tmp_path / "there")
    assert torch.equal(one.test.labels, other.test.labels)
    assert torch.equal(one.train.images[:], other.train.images[:])


def test_other_files_are_warned_of(tmp_path: Path):
    write(tmp_path / "CamVid")
    with pytest.warns(UserWarning, match="not the known ones, by the digest"):
        Dataset.load("camvid", tmp_path)


@pytest.mark.filterwarnings("ignore:the files of CamVid")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda root: write(root, size=(120, 90)),
            "0.png of CamVid is a map of 120x90 pixels, and its image",
        ),
        (
            lambda root: write(root, largest=13),
            "has class 1[23], and there are 11 classes, 0 to 10; pixels",
        ),
        (
            lambda root: (root / "testannot" / "1.png").unlink(),
            "2 images and as many maps of the same names, not",
        ),
        (lambda root: (root / "test" / "1.jpg").write_bytes(b"no"), "test/1.jpg of CamVid is not an image"),
        (lambda root: Image.new("RGB", (240, 180)).save(root / "trainannot" / "0.png"), "a picture of mode RGB"),
        (lambda root: Image.new("RGB", (24, 18)).save(root / "train" / "0.jpg"), "24x18 pixels, not 240x180"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, spoil, said: str):
    write(tmp_path / "CamVid")
    spoil(tmp_path / "CamVid")
    with pytest.raises(ValueError, match=said):
        Dataset.load("camvid", tmp_path)


@pytest.mark.filterwarnings("ignore:the files of CamVid")
def test_a_data_set_that_is_missing_or_no_tar(tmp_path: Path):
    with pytest.raises(ValueError, match=r"camvid is not there: no folder .*CamVid and no file .*camvid240x180.tar"):
        Dataset.load("camvid-120x96", tmp_path)
    (tmp_path / "camvid240x180.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="is not the tar of CamVid"):
        Dataset.load("camvid", tmp_path)
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("CamVid/train"))
    (tmp_path / "camvid240x180.tar").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="CamVid's train is to have 3 images"):
        Dataset.load("camvid", tmp_path)
