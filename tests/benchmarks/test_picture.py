"""The README's picture is the one that the committed rows give."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from picture import drawn

    yield drawn
    sys.modules.pop("picture")


def test_the_picture_is_that_of_the_rows(drawn):
    assert (ROOT / "docs" / "cifar100.svg").read_text() == drawn()
