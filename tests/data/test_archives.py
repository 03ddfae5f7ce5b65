import hashlib
import os
import pickle
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cifar import python_2_pickle

from deepreshape.data import Dataset, fetch
from deepreshape.data.images import moments


def test_splits_are_disjoint_and_fixed():
    one, other = Dataset.load("digits"), Dataset.load("digits")
    assert (len(one.train), len(one.validation), len(one.test)) == (1257, 180, 360)
    assert torch.equal(one.validation.images, other.validation.images)
    seen = {image.numpy().tobytes() for image in one.train.images}
    assert not seen & {image.numpy().tobytes() for image in one.validation.images}
    assert one.normalize(one.train.images).mean().abs() < 1e-3


def write_cifar100(folder: Path, count: int = 6000) -> None:
    where = folder / "cifar-100-python"
    where.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)
    for part in ("train", "test"):
        content: dict[str, object] = {"data": pixels, "fine_labels": [at % 100 for at in range(count)]}
        content["coarse_labels"] = [at % 20 for at in range(count)]
        (where / part).write_bytes(pickle.dumps(content, protocol=2))
    names: dict[str, list[str]] = {"fine_label_names": [f"class {at}" for at in range(100)]}
    names["coarse_label_names"] = [f"kind {at}" for at in range(20)]
    (where / "meta").write_bytes(pickle.dumps(names, protocol=2))


def test_cifar100_in_its_official_form_is_read_and_said_to_be_another(tmp_path: Path):
    write_cifar100(tmp_path)
    with pytest.warns(
        UserWarning, match=r"^train, test, meta in .*cifar-100-python: not the official cifar100"
    ) as told:
        data = Dataset.load("cifar100", tmp_path)
    assert len(told) == 1
    assert data.shape == (3, 32, 32)
    assert (len(data.train), len(data.validation), len(data.test)) == (1000, 5000, 6000)
    assert data.class_names[3] == "class 3"


@pytest.mark.filterwarnings("ignore:.*not the official cifar100")
def test_the_superclasses_of_cifar100_are_a_data_set(tmp_path: Path):
    write_cifar100(tmp_path)
    fine, coarse = (Dataset.load(name, tmp_path) for name in ("cifar100", "cifar100-coarse"))
    assert torch.equal(fine.train.images, coarse.train.images)
    assert torch.equal(fine.train.labels % 20, coarse.train.labels)
    assert (coarse.name, coarse.class_names[3], len(coarse.class_names)) == ("cifar100-coarse", "kind 3", 20)


def write_cifar10(folder: Path) -> Path:
    where = folder / "cifar-10-batches-py"
    where.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 3072), dtype=np.uint8)
    for part in (*(f"data_batch_{at}" for at in range(1, 6)), "test_batch"):
        (where / part).write_bytes(
            pickle.dumps({"data": pixels, "labels": [at % 10 for at in range(1200)]}, protocol=2)
        )
    (where / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {at}" for at in range(10)]}, protocol=2))
    return where


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_official_files_are_read_without_a_word_and_one_changed_byte_is_named(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where = write_cifar10(tmp_path)
    digests = {
        path.name: (algorithm, hashlib.new(algorithm, path.read_bytes()).hexdigest()) for path in where.iterdir()
    }
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", replace(fetch.ARCHIVES["cifar10"], digests=digests))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = Dataset.load("cifar10", tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (1000, 5000, 1200)
    batch = where / "data_batch_3"
    content = bytearray(batch.read_bytes())
    content[len(content) // 2] ^= 1
    batch.write_bytes(content)
    with pytest.warns(UserWarning, match=r"^data_batch_3 in .*: not the official cifar10, by the digest"):
        Dataset.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_every_file_that_is_read_has_a_digest(name: str, tmp_path: Path):
    folder = tmp_path / fetch.ARCHIVES[name].unpacks_to
    (write_cifar10 if name == "cifar10" else write_cifar100)(tmp_path)
    assert set(fetch.ARCHIVES[name].unofficial(tmp_path)) == {path.name for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:.*not the official:UserWarning")
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path):
    write_cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(OrderedDict(data=os.getcwd)))
    with pytest.raises(ValueError, match=r"is not an official cifar100 file: collections.OrderedDict has no place"):
        Dataset.load("cifar100", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tinyimagenet"])
def test_missing_data_says_where_it_was_looked_for(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"{name} is not there: no file .*run `deepreshape fetch {name}`"):
        Dataset.load(name, tmp_path)


def test_digit_sums_are_pairs_of_the_digits_of_a_split():
    digits, sums = Dataset.load("digits"), Dataset.load("digit-sums")
    assert [len(split) for split in (sums.train, sums.validation, sums.test)] == [3000, 1000, 2000]
    assert (sums.shape, len(sums.class_names)) == ((1, 16, 16), 19)
    known = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(digits.test.images[:], digits.test.labels, strict=True)
    }
    for image, label in zip(sums.test.images[:50], sums.test.labels[:50], strict=True):
        values = []
        for half in (image[:, :, :8], image[:, :, 8:]):
            windows = (half[:, above : above + 8].contiguous() for above in range(9))
            values.append(next(known[w.numpy().tobytes()] for w in windows if w.numpy().tobytes() in known))
        assert sum(values) == label
    assert torch.equal(sums.train.images[:], Dataset.load("digit-sums").train.images[:])


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="unknown data set 'mnist'; known are digits, digit-sums, cifar10"):
        Dataset.load("mnist")


def test_tiny_imagenet_is_read_in_both_layouts(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n1", "n2"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for at in range(10):
            image.new("RGB", (64, 64), (at, 0, 0)).save(root / "train" / wnid / "images" / f"{wnid}_{at}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    image.new("L", (64, 64), 7).save(root / "val" / "images" / "val_0.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t9\t9\n")
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "words.txt").write_text("n1\ta cat\nn2\ta dog\n")
    data = Dataset.load("tinyimagenet", tmp_path)
    assert (len(data.train), len(data.validation), data.test.labels.tolist()) == (18, 2, [1])
    assert data.class_names == ("a cat", "a dog")


@pytest.mark.filterwarnings("ignore:.*not the official:UserWarning")
def test_bytes_as_python_2_wrote_them_are_read(tmp_path: Path):
    write_cifar100(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3072), dtype=np.uint8)
    (tmp_path / "cifar-100-python" / "test").write_bytes(python_2_pickle(pixels, [3, 4]))
    data = Dataset.load("cifar100", tmp_path)
    assert data.test.labels.tolist() == [3, 4]
    assert np.array_equal(np.asarray(data.test.images[:]).reshape(2, 3072), pixels)


def test_the_real_cifar100():
    folder = os.environ.get("DEEPRESHAPE_DATA")
    if not folder or not (Path(folder) / "cifar-100-python").is_dir():
        pytest.skip("DEEPRESHAPE_DATA does not point at a folder with cifar-100-python")
    data = Dataset.load("cifar100")
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.mean == pytest.approx((0.507, 0.487, 0.441), abs=2e-3)


class Crafted:
    """Pickles as a call of ``make`` with ``words``, and a state that is set afterwards."""

    def __init__(self, make: object, words: tuple, state: object) -> None:
        self.parts = make, words, state

    def __reduce__(self) -> tuple:
        return self.parts


RECONSTRUCT = np.array([1]).__reduce__()[0]
EMPTY = (np.ndarray, (0,), b"b")


@pytest.mark.filterwarnings("ignore:.*not the official:UserWarning")
@pytest.mark.parametrize(
    "data",
    [
        # the object kind, without the flag that says so: raw bytes would be taken for pointers
        Crafted(
            RECONSTRUCT,
            EMPTY,
            (1, (1,), Crafted(np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)), False, b"\x41" * 8),
        ),
        Crafted(RECONSTRUCT, EMPTY, (1, (1 << 40, 3072), np.dtype("u1"), False, b"")),
        Crafted(RECONSTRUCT, EMPTY, (1, (-1, -3072), np.dtype("u1"), False, bytes(3072))),
        Crafted(RECONSTRUCT, EMPTY, (1, (1, 384), np.dtype("f8"), False, bytes(3072))),
        np.array([None]),
        [[0] * 3072],
        7,
    ],
    ids=["pointers", "large header", "negative", "floats", "objects", "list", "number"],
)
def test_only_arrays_of_bytes_are_taken(data: object, tmp_path: Path):
    write_cifar100(tmp_path)
    content = {"data": data, "fine_labels": [0]}
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="is not an official cifar100 file"):
        Dataset.load("cifar100", tmp_path)


@pytest.mark.filterwarnings("ignore:.*not the official:UserWarning")
@pytest.mark.parametrize(
    "content", [{"data": None}, [1], {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}]
)
def test_what_has_not_the_form_of_an_official_file_is_refused(content: object, tmp_path: Path):
    write_cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="is not an official"):
        Dataset.load("cifar100", tmp_path)


def test_moments_are_those_of_the_pixels_as_floats():
    images = torch.randint(0, 256, (50, 3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, 1] //= 3
    mean, std = moments(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=5.1e-5)
    assert std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=5.1e-5)


def test_moments_of_one_grey_are_no_division_by_zero():
    assert moments(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((0.2,), (0.001,))
    assert moments(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)) == ((0.2,), (0.001,))
