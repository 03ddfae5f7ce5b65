from pathlib import Path

import pytest
from support.results import ROWS

from deepreshape.training.runs import Result, claim_folder


def test_a_row_may_have_more_than_is_known_and_not_less():
    whole = ROWS[0].to_row()
    assert Result.of(whole | {"note": "of a later version"}) == ROWS[0]
    with pytest.raises(ValueError, match=r"a row of results is not complete: .*'top1'"):
        Result.of({name: value for name, value in whole.items() if name != "top1"})


def test_another_run_is_refused_with_what_differs_alone(tmp_path: Path):
    settings = {"seed": 0, "recipe": {"epochs": 1, "lr": 0.1}, "put": {"GELU": "ReLU", "MaxPool2d": "avg"}}
    claim_folder(tmp_path, settings)
    claim_folder(tmp_path, settings)
    for changes, words in (
        ({"recipe": {"epochs": 2, "lr": 0.1}}, r"recipe\.epochs was 1, now 2"),
        ({"put": {"GELU": "ReLU"}}, r"put\.MaxPool2d was avg, now None"),
        ({"seed": 1, "put": {}}, r"seed was 0, now 1; put\.GELU was ReLU, now None; put\.MaxPool2d was avg, now None"),
        ({"more": None}, "more was None, now None"),
    ):
        with pytest.raises(ValueError, match=rf"holds another run \({words}\); use those settings, or another folder"):
            claim_folder(tmp_path, settings | changes)
