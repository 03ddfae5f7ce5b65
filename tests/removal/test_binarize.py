"""Binary networks of real ones: which layers change, two steps, the record, and what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from support.command_line import refusal
from support.few_digits import RECIPE, KilledError, digits, equal, kill_at, trained, weights
from torch import nn

from deepreshape.cli.options import new_model
from deepreshape.counting import count
from deepreshape.models.saved import load, manifest_of, save
from deepreshape.nn import HerPN, MaskedReLU, RPReLU, SignConv2d
from deepreshape.removal import Binarization, binarize


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    return trained()


def test_inner_convolutions_have_one_bit_and_the_teacher_is_left_alone(whole: nn.Module, tmp_path: Path):
    data, before = digits(), weights(whole)
    binary, record = binarize(whole, data, recipe=RECIPE)
    assert equal(weights(whole), before)
    inner = [path for path, at in whole.named_modules() if isinstance(at, nn.Conv2d) and at.kernel_size[0] > 1]
    assert record.layers == tuple(inner[1:])
    layers = [binary.get_submodule(path) for path in record.layers]
    assert all(isinstance(layer, SignConv2d) and layer.binary for layer in layers)
    assert all(isinstance(binary.get_submodule(path), RPReLU) for path in ("stem.act", "stage3.0.act2"))
    counts = count(binary, data.shape)
    # the inputs of all inner convolutions: two blocks of 2 x 8 x 8 and 4 x 4 x 4 that halve
    assert counts.total.signs == record.signs == 2 * 128 + (128 + 64) + (64 + 32)
    assert (counts.total.relus, counts.unknown) == (record.relus, {})
    assert record.relus == record.relus_before
    assert None not in (record.top1_before, record.top1_step1, record.top1_validation)
    save(binary, tmp_path)
    again = load(tmp_path)
    assert equal(weights(again), weights(binary))
    x = data.normalize(data.validation.images)
    assert torch.equal(again(x), binary.to(memory_format=torch.contiguous_format)(x))  # pyright: ignore
    assert manifest_of(again).history[-1]["method"] == "binarize"


def test_the_second_step_begins_where_the_first_ended(whole: nn.Module):
    steps: list[tuple[str, int]] = []
    binarize(whole, digits(), recipe=RECIPE, progress=lambda name, at: steps.append((name, at.step)))
    assert steps == [(name, step) for name in ("signs", "weights") for step in range(1, 5)]


def test_relus_may_stay_and_layers_be_chosen(whole: nn.Module):
    binary, record = binarize(whole, digits(), layers=["stage2.0.conv2.0"], rprelu="none", recipe=RECIPE)
    assert record.layers == ("stage2.0.conv2.0",)
    assert record.signs == 64
    assert isinstance(binary.get_submodule("stem.act"), nn.ReLU)


@pytest.mark.parametrize("phase", ["signs", "weights"])
def test_a_killed_run_goes_on_to_the_same_network(phase: str, whole: nn.Module, tmp_path: Path):
    expected, _ = binarize(whole, digits(), recipe=RECIPE)
    with pytest.raises(KilledError):
        binarize(whole, digits(), recipe=RECIPE, folder=tmp_path, progress=kill_at(phase, 2))
    network, _ = binarize(whole, digits(), recipe=RECIPE, folder=tmp_path)
    assert equal(weights(network), weights(expected))


def test_a_folder_says_whose_run_was_killed_in_it(whole: nn.Module, tmp_path: Path):
    with pytest.raises(KilledError):
        binarize(whole, digits(), recipe=RECIPE, folder=tmp_path / "run", progress=kill_at("signs", 2))
    new_model(tmp_path)  # the command given again goes on, and does not take the folder for somebody else's
    other = copy.deepcopy(whole)
    other.load_state_dict({name: -tensor for name, tensor in weights(whole).items()})
    for given, words in (
        ({"model": other}, "network was"),
        ({"rprelu": "none"}, "rprelu was prelu, now none"),
        ({"layers": ["stage2.0.conv2.0"]}, "binarize was"),
    ):
        with pytest.raises(ValueError, match=words):
            binarize(**{"model": whole, "data": digits(), "recipe": RECIPE, "folder": tmp_path / "run", **given})


def test_a_record_of_maps_has_the_word_of_their_metric():
    record = Binarization((), "prelu", 1, 1, 1, 50.0, 40.0, 45.0, {}, 0, "miou").to_dict()
    assert [record[f"miou_{when}"] for when in ("before", "step1", "validation")] == [50.0, 40.0, 45.0]
    assert not any("top1" in name for name in record)


def with_a(site: nn.Module) -> nn.Module:
    model = trained()
    model.set_submodule("stem.act", site)
    return model


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (lambda: with_a(MaskedReLU(torch.ones(2, 8, 8, dtype=torch.bool))), {}, "a masked-relu at stem.act"),
        (lambda: with_a(HerPN(2)), {}, "a herpn at stem.act"),
        (trained, {"layers": ["stem.conv.0"]}, "stem.conv.0 is the first or last layer"),
        (trained, {"layers": ["head.2"]}, "head.2 is the first or last layer"),
        (trained, {"layers": ["nosuch"]}, "no convolution 'nosuch'; its inner ones are stage1.0.conv1.0"),
        (trained, {"layers": ["stage2.0.shortcut.0"]}, "is a 1x1 convolution, and stays real"),
        (trained, {"rprelu": "maybe"}, "rprelu is one of prelu, none, not 'maybe'"),
    ],
)
def test_what_cannot_be_binary_is_refused(model, given: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        binarize(model(), digits(), **given)  # pyright: ignore[reportArgumentType]


def test_a_binary_network_is_not_made_binary_twice(whole: nn.Module):
    binary, _ = binarize(whole, digits(), recipe=RECIPE)
    with pytest.raises(ValueError, match=r"is binary already \(at stage1.0.conv1.0\)"):
        binarize(binary, digits())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("zoo:digits",), "a masked-relu at stem.act"),
        (("resnet18-m16",), "is a name and no trained network"),
        (("zoo:digits", "--set", "nosuch=1"), "unknown setting 'nosuch'"),
    ],
)
def test_words_that_do_not_fit_are_one_line(words: tuple[str, ...], said: str, tmp_path: Path):
    assert said in refusal("binarize", *words, "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_several_processes_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    said = refusal("binarize", "zoo:digits", "--out", str(tmp_path / "x"))
    assert "binarize trains in one process; start it without torchrun" in said
    assert not (tmp_path / "x").exists()
