"""ReLUs that never or always fire."""

import pytest
import torch
from support.command_line import answer, call
from torch import Tensor, nn

from deepreshape.data import Dataset, Split
from deepreshape.explain.dead import firing, see_modules
from deepreshape.models import architecture, build
from deepreshape.nn import MaskedReLU
from deepreshape.removal.sites import masks_of


def images(pixels: Tensor) -> Dataset:
    split = Split(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    return Dataset("own", split, split, split, ("one",), (0.0,), (1.0,))


class Removed(nn.Module):
    """A site with 0 where a ReLU never fires and the identity where it always does."""

    def __init__(self, never: Tensor, always: Tensor) -> None:
        super().__init__()
        self.never, self.always = never, always

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.always, x, torch.where(self.never, torch.zeros_like(x), x.relu()))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1))
    with torch.no_grad():
        model[0].bias += torch.tensor([9.0, 9.0, -9.0, 0.0, 0.0, 0.0])
    return model


def test_what_never_or_always_fires_can_go_without_a_change_on_the_split():
    model, data = network(), images(torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8))
    sites = firing(model.train(), data)
    assert model.training
    first = sites["1"]
    assert first.always[:2].all()
    assert first.never[2].all()
    assert not (first.never & first.always).any()
    assert not (first.never | first.always)[3:].all()
    x = data.normalize(data.train.images)
    wanted = model.eval()(x)
    for path, site in sites.items():
        model.set_submodule(path, Removed(site.never, site.always))
    assert torch.equal(model(x), wanted)


def test_only_kept_relus_count():
    model, data = network(), images(torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8))
    mask = torch.zeros(6, 6, 6, dtype=torch.bool)
    mask[2] = True
    model[1] = MaskedReLU(mask)
    site = firing(model, data)["1"]
    assert (int(site.kept.sum()), int(site.never.sum()), int(site.always.sum())) == (36, 36, 0)


def test_rprelus_are_refused_by_their_name_and_relus_beside_signs_are_not():
    network = build(architecture("react18-m2-phi1.1.1.1", (1, 8, 8), 10))
    with pytest.raises(ValueError, match=r"^8 of the network's rectifiers are RPReLUs, .* by -relus"):
        see_modules(network, (1, 8, 8), nn.ReLU)
    with pytest.raises(ValueError, match=r"^480 of the model's 480 ReLUs .*: RPReLUs have learned slopes"):
        masks_of(network, (1, 8, 8))
    see_modules(build(architecture("react18-m2-phi1.1.1.1-relus", (1, 8, 8), 10)), (1, 8, 8), nn.ReLU)


def test_functions_are_refused():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).relu()

    with pytest.raises(ValueError, match="72 of the network's 72 ReLUs are not computed by"):
        firing(Functional(), images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)))


def test_the_command_counts_those_of_a_saved_network():
    report = answer("inspect", "zoo:digits")
    assert report["free"] == sum(row["never"] + row["always"] for row in report["sites"])
    assert sum(row["kept"] for row in report["sites"]) == answer("count", "zoo:digits")["relus"]
    assert report["images"] == 1257


def test_a_network_by_name_has_no_images():
    done = call("inspect", "resnet18")
    assert (done.code, "is not a saved model of a data set" in done.err) == (2, True)
