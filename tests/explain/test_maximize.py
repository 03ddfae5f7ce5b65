"""Activation maximization: plain, with a slope in one pass or in both, and redirected."""

from pathlib import Path

import pytest
import torch
from support.command_line import answer, refusal
from torch import Tensor, nn

from deepreshape.explain.maximize import MODES, maximize
from deepreshape.nn import MaskedReLU

BOX = torch.tensor(-3.0), torch.tensor(3.0)


class Nested(nn.Module):
    """R(R(x1 - 1/2) + R(x2 - 1/2) - 1), which is 4 at (3, 3) and 0 where the sum is small."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x - 0.5).sum(1, keepdim=True) - 1)


def starts(n: int = 50) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(1)) * 6 - 3


def test_a_slope_reaches_the_maximum_from_where_there_is_no_gradient():
    model = Nested()
    dead = starts()[model(starts())[:, 0] == 0]
    plain = maximize(model, "outer", 0, dead, BOX, mode="plain")
    assert (plain.moved, float(plain.values.max())) == (0, 0.0)
    assert torch.equal(plain.inputs, dead)
    for mode in ("split", "proxy", "redirected"):
        slopes = maximize(model, "outer", 0, dead, BOX, mode=mode)
        assert slopes.moved == len(dead), mode
        assert slopes.values.max() == 4, mode
        if mode != "redirected":  # whose 16 steps are too few from some starts
            assert (slopes.values > 1).all(), mode


@pytest.mark.parametrize("mode", MODES)
def test_values_are_those_of_the_true_network_and_inputs_stay_in_the_box(mode: str):
    torch.manual_seed(0)
    mask = torch.rand(3, 4, 4) < 0.5
    model = nn.Sequential(nn.Conv2d(1, 3, 3), MaskedReLU(mask), nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True)).train()
    low, high = torch.full((1, 6, 6), -1.0), torch.full((1, 6, 6), 0.5)
    before = [*model]
    best = maximize(model, "3", 1, torch.zeros(2, 1, 6, 6), (low, high), mode=mode, steps=20)  # pyright: ignore
    assert [*model] == before
    assert model.training
    assert torch.allclose(model(best.inputs)[:, 1].mean((1, 2)), best.values)
    assert best.inputs.min() >= -1
    assert best.inputs.max() <= 0.5
    assert len(best.curve) == 21
    assert [*best.curve] == sorted(best.curve)
    assert best.curve[-1] == pytest.approx(float(best.values.mean()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layer": "nosuch"}, "no layer 'nosuch'; its layers are inner, outer"),
        ({"unit": 1}, "'outer' has units 0 to 0, not 1"),
        ({"slope": 2.0}, "from 0 to 1, not 2.0"),
        ({"box": (torch.tensor(1.0), torch.tensor(1.0))}, "the box goes from 1 to 1"),
        ({"mode": "best"}, "mode is one of plain, split, proxy, redirected"),
        ({"steps": 0}, "not 'split' and 0"),
    ],
)
def test_what_cannot_be_maximized_is_refused(given: dict[str, object], words: str):
    usual: dict[str, object] = {"layer": "outer", "unit": 0, "starts": starts(2), "box": BOX}
    with pytest.raises(ValueError, match=words):
        maximize(Nested(), **(usual | given))  # pyright: ignore[reportArgumentType]


def test_units_behind_functions_are_refused():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).relu()

    with pytest.raises(ValueError, match="3 of the network's 3 ReLUs are not computed by"):
        maximize(Functional(), "layer", 0, starts(2), BOX)


def test_the_command_makes_a_page_with_the_plain_run_beside_it(tmp_path: Path):
    page = tmp_path / "unit.html"
    words = ("inspect", "zoo:digits", "--maximize", "stage4.pair.act2:7", "--starts", "3", "--out", str(page))
    report = answer(*words)
    plain, split = report["modes"]
    assert (plain["mode"], split["mode"], report["starts"]) == ("plain", "split", 3)
    assert split["best"] >= split["mean"] > 0
    assert page.read_text().count("data:image/png;base64,") == 6
    assert "deepreshape inspect zoo:digits --maximize stage4.pair.act2:7 --mode split" in page.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--maximize", "nosuch:0"), "no layer 'nosuch'"),
        (("--maximize", "stage4.pair.act2"), "takes LAYER:UNIT"),
        (("--maximize", "stage4.pair.act2:999999"), "not 999999"),
        (("--maximize", "stage4.pair.act2:0", "--slope", "2"), "from 0 to 1, not 2.0"),
        (("--maximize", "stage4.pair.act2:0", "--mode", "best"), "not 'best'"),
        (("--out", "page.html"), "is for --maximize"),
    ],
)
def test_bad_words_are_one_line(words: tuple[str, ...], said: str):
    assert said in refusal("inspect", "zoo:digits", *words)
