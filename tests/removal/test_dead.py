"""Free removals, in the whole chain: exact on the training split, saved, counted, lowered, run privately."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import answer, refusal
from torch import nn

from deepreshape.counting import count
from deepreshape.data import Dataset, Split
from deepreshape.models import architecture, build
from deepreshape.models.saved import Manifest, load, save
from deepreshape.nn import MaskedReLU, PolynomialReLU, Zeroed
from deepreshape.private.program import interpret
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Gather
from deepreshape.private.program.program import from_fixed, to_fixed
from deepreshape.removal import Coarse, Thin, apply, linearize, masks_of, plan_of, remove_dead
from deepreshape.removal.snl import SNL
from deepreshape.training import Recipe

RECIPE = Recipe(epochs=1, batch=50, lr=0.02, crop=1, flip=False, precision="float32")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = Dataset.load("digits")
    return replace(whole, train=Split(whole.train.images[:200], whole.train.labels[:200]))


def half_dead(name: str = "resnet20-m4-phi1.1.1") -> nn.Module:
    """A network with channels whose ReLUs never fire, and some whose always do."""
    model = build(architecture(name, (1, 8, 8), 10), seed=0).eval()
    with torch.no_grad():
        norms = [
            module
            for path, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d) and "shortcut" not in path
        ]
        for norm in norms:
            norm.bias[0] = -40.0
        norms[-1].bias[1] = 40.0
    return model


def outputs(model: nn.Module, data: Dataset) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(data.normalize(data.train.images))


def test_no_output_changes_on_the_training_split_and_the_record_says_what_was_left(digits: Dataset):
    model = half_dead()
    small, record = remove_dead(model, digits)
    assert torch.equal(outputs(small, digits), outputs(model, digits))
    assert not any(isinstance(module, Zeroed) for module in model.modules())
    assert any(isinstance(module, Zeroed) for module in small.modules())
    counts = count(small, digits.shape)
    assert (counts.total.relus, counts.unknown) == (record.relus, {})
    assert record.relus_before == count(model, digits.shape).total.relus
    assert 0.4 * record.relus_before < record.relus < 0.8 * record.relus_before
    assert (record.method, record.epochs, record.top1_before) == ("dead", 0, record.top1_validation)


def test_there_is_no_more_to_remove_afterwards(digits: Dataset):
    small, _ = remove_dead(half_dead(), digits)
    with pytest.raises(ValueError, match="so that none is free"):
        remove_dead(small, digits)


def test_a_second_look_adds_zeros_to_those_of_the_first(digits: Dataset):
    first, early = remove_dead(half_dead(), digits)
    with torch.no_grad():
        first.get_submodule("stem.conv.1").bias[2] = -40.0  # pyright: ignore[reportAttributeAccessIssue]
    second, late = remove_dead(first, digits)
    assert late.relus < early.relus
    ((path, zeros),) = [(path, at) for path, at in second.named_modules() if path == "stem.act"]
    assert isinstance(zeros, Zeroed), path
    assert not zeros.keep[0].any()
    always = ~zeros.relu.mask[2] & zeros.keep[2]  # pyright: ignore[reportIndexIssue]
    assert torch.equal(zeros.keep[2], always)
    assert not zeros.keep[2].all()
    assert not isinstance(zeros.relu, Zeroed)


def test_a_network_of_ones_own_keeps_its_zeros_on_disk(tmp_path: Path, digits: Dataset):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    with torch.no_grad():
        model[0].bias[0] = -40.0
    small, record = remove_dead(model, digits)
    assert record.relus <= record.relus_before - 36
    save(small, tmp_path)
    again = load(tmp_path)
    assert torch.equal(outputs(again, digits), outputs(model, digits))


def test_polynomials_are_refused(digits: Dataset):
    model = half_dead()
    mask = torch.ones(4, 8, 8, dtype=torch.bool)
    model.set_submodule("stem.act", PolynomialReLU(mask, torch.zeros(4, 3)))
    with pytest.raises(ValueError, match=r"polynomials in place of ReLUs \(at stem.act\)"):
        remove_dead(model, digits)


@pytest.mark.parametrize("method", [SNL(40), Coarse(40)], ids=["snl", "coarse"])
def test_other_methods_go_on_and_keep_the_zeros(method: SNL | Coarse, digits: Dataset):
    small, _ = remove_dead(half_dead(), digits)
    smaller, record = linearize(small, method, digits, recipe=RECIPE)
    assert record.relus == count(smaller, digits.shape).total.relus == 40
    inside = [path for path, module in smaller.named_modules() if isinstance(module, Zeroed)]
    assert inside
    assert all(isinstance(smaller.get_submodule(f"{path}.relu"), MaskedReLU) for path in inside)


def test_a_plan_carries_zeros_and_drops_those_of_culled_sites(digits: Dataset):
    small, _ = remove_dead(half_dead(), digits)
    thin, _ = apply(plan_of(small.architecture, Thin()), small)  # pyright: ignore[reportArgumentType]
    assert isinstance(thin.get_submodule("stem.act"), Zeroed)
    left = set(masks_of(thin, digits.shape))
    assert left < set(masks_of(small, digits.shape))


@pytest.mark.parametrize("name", ["resnet20-m4-phi1.1.1", "resnet9-m4-avg"])
def test_the_program_has_zeros_there_for_free_and_agrees_within_its_bound(name: str, digits: Dataset):
    small, _ = remove_dead(half_dead(name), digits)
    x = digits.normalize(digits.train.images[:64]).numpy()
    lowered = lower(small, x)
    program = lowered.program
    assert sum(isinstance(op, Gather) for op in program.ops) > 1
    seen: dict[str, np.ndarray] = {}
    kept: list[bool] = []
    integers = interpret.run(program, to_fixed(x, program.input_fraction), observe=seen.__setitem__)
    decoded = from_fixed(integers, program.values[program.outputs[0]].fraction)
    for path, site in small.named_modules():
        if isinstance(site, Zeroed):
            (value,) = (seen[name] for name in seen if name.startswith(path) and name.endswith("zeroed"))
            assert not value[:, ~site.keep.numpy()].any(), path
            kept.append(value.any())
    assert any(kept)  # some are below half a unit everywhere
    with torch.no_grad():
        wanted = small.double()(torch.from_numpy(x).double()).numpy()
    assert (np.abs(decoded - wanted) <= lowered.error).all()


def test_zeros_in_reused_convolutions_become_one_layer(digits: Dataset):
    from deepreshape.removal import Reuse

    plan = plan_of(architecture("hrn-2x-m4-phi1.1", (1, 8, 8), 10), Reuse(2))
    model = build(plan.architecture, seed=0).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias[0] = -40.0
    small, record = remove_dead(model, digits)
    assert record.relus < record.relus_before
    x = digits.normalize(digits.train.images[:16]).numpy()
    with torch.no_grad():
        wanted = small.double()(torch.from_numpy(x).double()).numpy()
    lowered = lower(small.float(), x)
    program = lowered.program
    integers = interpret.run(program, to_fixed(x, program.input_fraction))
    decoded = from_fixed(integers, program.values[program.outputs[0]].fraction)
    assert (np.abs(decoded - wanted) <= lowered.error).all()
    assert any(isinstance(op, Gather) for op in program.ops)


def test_the_command_saves_it_and_it_answers_privately(tmp_path: Path, digits: Dataset):
    model, whole = half_dead(), Dataset.load("digits")
    start, to = tmp_path / "start", tmp_path / "small"
    save(model, start, Manifest(model.architecture, "digits", whole.class_names, whole.mean, whole.std))  # pyright: ignore
    report = answer("linearize", str(start), "--method", "dead", "--out", str(to))
    assert report["relus"] == answer("count", str(to))["relus"] < answer("count", str(start))["relus"]
    assert report["top1_before"] is not None
    assert answer("inspect", str(to))["free"] == 0
    assert (to / "masks.svg").read_text().count("<image") == 9 - 2
    private = answer("private", "local", "--model", str(to), "--images", "1")
    assert private["agree"]
    assert private["relus"] == report["relus"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "dead", "--budget", "5"), "--budget does nothing for dead"),
        (("--method", "dead", "--set", "lr=1"), "--set does nothing for dead"),
        (("--method", "snl"), "--budget is missing"),
        (("--method", "dead"), "none is free"),
    ],
)
def test_words_that_do_not_fit_are_one_line(words: tuple[str, ...], said: str, tmp_path: Path):
    assert said in refusal("linearize", "zoo:digits", "--out", str(tmp_path / "x"), *words)
    assert not (tmp_path / "x").exists()
