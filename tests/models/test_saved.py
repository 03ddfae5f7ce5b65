import json
from pathlib import Path

import pytest
import torch
from torch import nn

from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.models import Reduction, architecture, build
from deepreshape.models.saved import Manifest, load, manifest, manifest_of, note_step, save
from deepreshape.nn import MaskedReLU, PolynomialReLU

ARCHITECTURE = architecture("resnet20-m4", (1, 8, 8), 10)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(
        build(ARCHITECTURE, seed=0),
        tmp_path / "model",
        Manifest(ARCHITECTURE, dataset="digits", mean=(0.3,), std=(0.4,)),
    )
    return tmp_path / "model"


def test_a_model_comes_back_with_its_masks_and_manifest(tmp_path: Path):
    model = build(ARCHITECTURE, seed=0).eval()
    mask = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    model.set_submodule("stage1.0.act1", MaskedReLU(mask))
    save(model, tmp_path, Manifest(ARCHITECTURE, class_names=("a", "b"), history=({"method": "by hand"},)))
    again = load(tmp_path)
    carried = manifest_of(again)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), model(x))
    assert count(again, (1, 8, 8)).by_module["stage1.0.act1"].relus == int(mask.sum())
    assert carried.class_names == ("a", "b")
    assert carried.history == ({"method": "by hand"},)
    assert not any(tensor.is_meta for tensor in again.state_dict().values())


def test_a_model_alone_is_saved_with_what_it_carries(tmp_path: Path):
    data, model = Dataset.load("digits"), build(ARCHITECTURE, seed=0).eval()
    save(model, str(tmp_path / "built"))
    assert manifest(tmp_path / "built") == Manifest(ARCHITECTURE)
    note_step(model, data, {"method": "by hand"})
    other = build(ARCHITECTURE, seed=1)
    note_step(other, data, {"method": "again"}, source=model)
    save(other, tmp_path / "other")
    again = load(tmp_path / "other")
    history = ({"method": "by hand"}, {"method": "again"})
    assert manifest_of(again) == Manifest.of(ARCHITECTURE, data, history)
    save(again, tmp_path / "copy")
    assert manifest(tmp_path / "copy") == manifest_of(again)


def test_a_module_that_nothing_rebuilds_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"how a Linear is rebuilt; .*models.convert\(model, data.shape\)"):
        save(nn.Linear(2, 2), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_weights_are_no_pickle(saved: Path):
    assert (saved / "model.safetensors").read_bytes()[8:9] == b"{"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "holds no saved model"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is broken: Expecting"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is broken"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "its digest differs"),
        (lambda folder: edit(folder, "format", 99), "its format is 99, this version reads 1 and 2"),
        (
            lambda folder: edit(folder, "nonlinearities", {"stage9.act": "masked-relu"}),
            "is broken: a masked-relu needs the tensor",
        ),
        (
            lambda folder: edit(folder, "architecture", {}),
            "unknown family of networks None; this version knows resnet9",
        ),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(saved: Path, damage, message: str):
    damage(saved)
    with pytest.raises(ValueError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sixteen_bits_are_half_the_size_and_come_back_as_float32(saved: Path, tmp_path: Path):
    whole = load(saved)
    whole.set_submodule("stage1.0.act1", MaskedReLU(torch.ones(4, 8, 8, dtype=torch.bool)))
    save(whole, tmp_path / "whole")
    save(whole, tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    rounded = {name: value.half().float() if value.is_floating_point() else value for name, value in
               whole.state_dict().items()}  # fmt: skip
    again = load(tmp_path / "half").state_dict()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in rounded.items())


def test_weights_past_sixteen_bits_are_refused(saved: Path, tmp_path: Path):
    model = load(saved)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = 1e5
    with pytest.raises(ValueError, match=r"weight has a value of 100000, too large for 16 bits"):
        save(model, tmp_path / "half", half=True)
    assert not (tmp_path / "half" / "manifest.json").exists()


def test_a_model_of_format_1_is_still_read(tmp_path: Path):
    model = load(Path(__file__).parent / "format1")
    carried = manifest_of(model)
    assert carried.architecture.reduction == Reduction(frozenset({"stage1.0.act1"}), (("stage3.0.act2", 2),))
    assert isinstance(model.get_submodule("stem.act"), MaskedReLU)
    assert isinstance(model.get_submodule("stage1.0.act2"), PolynomialReLU)
    # what the version that wrote it gave
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    assert model(x).tolist() == [pytest.approx([0.3138393759, 0.2393599599, 0.2522100508], abs=1e-5)]
    save(model, tmp_path, carried)
    again = load(tmp_path)
    same = manifest_of(again)
    assert same == carried
    assert torch.equal(again(x), model(x))


def edit(folder: Path, key: str, value: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
