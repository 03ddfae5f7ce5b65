import pytest
from support.results import ROWS

from deepreshape.training.runs import Result


def test_a_row_may_have_more_than_is_known_and_not_less():
    whole = ROWS[0].to_row()
    assert Result.of(whole | {"note": "of a later version"}) == ROWS[0]
    with pytest.raises(ValueError, match=r"a row of results is not complete: .*'top1'"):
        Result.of({name: value for name, value in whole.items() if name != "top1"})
