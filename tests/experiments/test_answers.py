"""The end of a job: images answered privately, kept in its folder and shown in its report."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepreshape.data import Dataset
from deepreshape.experiments.answers import answer_privately, read_answers
from deepreshape.experiments.run import Job
from deepreshape.report.answers import AnsweredImage, PrivateAnswers, png_of
from deepreshape.training import recipe_of

DATA = Dataset.load("digits")


def test_the_best_reduced_network_answers_and_is_remembered(tmp_path: Path):
    name = "resnet20-m2-phi1.1.1"
    short = replace(recipe_of("digits"), epochs=1)
    rows = Job("digits", name, (name,), (100,), (0,), short, 1).run(DATA, tmp_path, lambda *_: None)
    answers = answer_privately(rows, DATA, tmp_path, 2)
    assert answers.relus == min(row.relus for row in rows) <= 100
    assert answers.agree
    assert [image.label for image in answers.images] == [DATA.class_names[at] for at in DATA.test.labels[:2]]
    before = (tmp_path / "private.json").stat().st_mtime_ns
    assert read_answers(tmp_path) == answers == answer_privately(rows, DATA, tmp_path, 2)
    assert (tmp_path / "private.json").stat().st_mtime_ns == before
    (tmp_path / "private.json").write_text(json.dumps({"network": "x"}))
    with pytest.raises(ValueError, match=r"private.json does not hold private answers; remove it"):
        read_answers(tmp_path)


def test_right_answers_are_counted_and_shown():
    images = tuple(AnsweredImage("", name, 0.9, "3") for name in ("3", "8", "3"))
    answers = PrivateAnswers("net", 100, images, {"online": 0.5}, {"online": 2_000_000}, True)
    assert answers.right == 2
    assert str(answers) == (
        "net (100 ReLUs) answered 3 images privately, 2 of them rightly; each online 0.50 s and 2.0 MB; "
        "all equal the plain program bit for bit"
    )
    assert "NOT ALL EQUAL" in str(replace(answers, agree=False))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_its_pixels(channels: int):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, channels), dtype=np.uint8)
    with image.open(io.BytesIO(base64.b64decode(png_of(pixels.tolist())))) as read:
        assert np.array_equal(np.asarray(read).reshape(pixels.shape), pixels)
