import os
from pathlib import Path

import pytest

from deepreshape.cli.options import new_file, new_model
from deepreshape.models.saved import MANIFEST


@pytest.fixture
def readable_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file in which this user may not write; also where the tests run as root, who may everything."""
    (tmp_path / "old.svg").write_text("a picture")
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path).is_relative_to(tmp_path)))
    return tmp_path


def test_a_file_that_cannot_be_written_is_refused_before_the_work(readable_only: Path) -> None:
    with pytest.raises(ValueError, match=r"new\.svg cannot be written: you may not write to its folder"):
        new_file(readable_only / "new.svg")
    with pytest.raises(ValueError, match=r"old\.svg cannot be written: you may not write it"):
        new_file(readable_only / "old.svg")
    assert (readable_only / "old.svg").read_text() == "a picture"


def test_a_file_has_a_folder_and_its_ending(tmp_path: Path) -> None:
    new_file(tmp_path / "new.SVG", ".svg")
    with pytest.raises(ValueError, match=r"new\.png cannot be written: it is to be of the kind \.svg"):
        new_file(tmp_path / "new.png", ".svg")
    with pytest.raises(ValueError, match="cannot be written: it is a folder"):
        new_file(tmp_path)
    with pytest.raises(ValueError, match="cannot be written: its folder is missing"):
        new_file(tmp_path / "missing" / "new.svg")


def test_a_model_is_written_where_nothing_is_lost(tmp_path: Path) -> None:
    new_model(tmp_path / "new" / "model")
    assert not list(tmp_path.iterdir())
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="finished holds a finished model"):
        new_model(tmp_path / "finished")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; a model is written to a folder"):
        new_model(tmp_path / "file" / "model")
    (tmp_path / "others" / "run").mkdir(parents=True)
    (tmp_path / "others" / "run" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="run is no run of this package and would be removed"):
        new_model(tmp_path / "others")


def test_a_model_needs_a_folder_that_can_be_written(readable_only: Path) -> None:
    with pytest.raises(ValueError, match=r"model cannot be written: you may not write to "):
        new_model(readable_only / "deep" / "model")
