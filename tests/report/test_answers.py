"""Images whose pixels were classified privately, in the report."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deepreshape.data.augment import VOID
from deepreshape.experiments.answers import read_answers, segmented_answer
from deepreshape.private.service.bundle import Facts
from deepreshape.private.service.segmented import SegmentedImage
from deepreshape.report.answers import PrivateAnswers


def test_a_map_stands_beside_the_truth_and_pixels_are_counted(tmp_path: Path):
    logits = np.zeros((2, 2, 2))
    logits[1, 0] = 1
    facts = Facts(("sky", "road"), colours=((0, 0, 255), (128, 64, 128)), upsample=(2, 2))
    answer = SegmentedImage.of(logits, facts, seconds={}, bytes={}, agree=None)
    assert answer.classes.tolist() == [[1, 1], [0, 0]]
    truth = np.array([[1, 0], [0, VOID]], np.uint8)
    one = segmented_answer("AA", answer, truth)
    assert (one.right, one.known) == (2, 3)
    assert one.truth != one.answer
    same = segmented_answer("AA", answer, answer.classes.astype(np.uint8))
    assert same.truth == same.answer
    assert same.right == same.known == 4
    cost = {"online": 0.5}, {"online": 2_000_000}
    answers = PrivateAnswers("net", 100, (), *cost, True, (one, same), (("sky", "#0000ff"), ("road", "#804080")))
    assert "net (100 ReLUs) segmented 2 images privately, 85.7% of their pixels rightly; each online" in str(answers)
    (tmp_path / "private.json").write_text(json.dumps(asdict(answers)))
    assert read_answers(tmp_path) == answers
