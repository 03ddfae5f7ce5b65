"""Networks as users bring them, converted: the same function, every ReLU a module, saved without code or pickle."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import networks
from torch import nn
from torch.nn import functional as F  # noqa: N812

from deepreshape.counting import count
from deepreshape.models import convert, from_dict
from deepreshape.models.foreign import METHODS, Foreign
from deepreshape.models.saved import Manifest, load, manifest_of, save
from deepreshape.nn import MaskedReLU
from deepreshape.private.program.lower import unsupported

SHAPE = (3, 16, 16)
EVERY = [networks.ResNet, networks.Functional, networks.ReadAgain, networks.Subclassed, networks.Shared]


def logits(output):
    return output["logits"] if isinstance(output, dict) else output


@pytest.fixture(params=EVERY, ids=lambda kind: kind.__name__)
def pair(request):
    torch.manual_seed(0)
    theirs = request.param()
    for _ in range(2):  # so that batch norms have statistics of their own
        theirs(torch.randn(4, *SHAPE))
    return theirs.eval(), convert(theirs, SHAPE)


def test_it_computes_the_same_and_every_relu_is_a_module(pair):
    theirs, ours = pair
    x = torch.randn(5, *SHAPE)
    assert torch.allclose(ours(x), logits(theirs(x)), atol=1e-6)
    sites = ours.architecture.sites()
    assert all(type(ours.get_submodule(site.name)) is nn.ReLU for site in sites)
    assert len({id(ours.get_submodule(site.name)) for site in sites}) == len(sites)
    assert sum(site.relus for site in sites) == count(theirs, SHAPE).total.relus == count(ours, SHAPE).total.relus
    assert not any(getattr(module, "inplace", False) for module in ours.modules())
    assert {type(module).__name__ for module in theirs.modules()} >= {"Linear"}


def test_it_is_left_as_it_was_and_trains_as_before(pair):
    theirs, ours = pair
    assert not theirs.training
    assert not ours.training
    x = torch.randn(4, *SHAPE)
    results = []
    for network in (theirs, ours):
        network.train()
        torch.manual_seed(1)
        out = logits(network(x))
        out.square().sum().backward()
        grads = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
        results.append((out, grads, dict(network.named_buffers())))
    (a, grads, buffers), (b, other_grads, other_buffers) = results
    assert torch.allclose(a, b, atol=1e-6)
    assert grads.keys() == other_grads.keys()
    assert all(torch.allclose(grads[name], other_grads[name], atol=1e-4) for name in grads)
    assert all(torch.allclose(buffers[name], other_buffers[name]) for name in buffers)


def test_it_is_saved_and_loaded_with_its_masks_by_values_alone(pair, tmp_path: Path):
    _, ours = pair
    site = ours.architecture.sites()[0]
    shape = count(ours, SHAPE) and [site.channels, *site.size]
    ours.set_submodule(site.name, MaskedReLU(torch.rand(shape) < 0.5))
    save(ours, tmp_path, Manifest(ours.architecture, class_names=("a", "b")))
    again = load(tmp_path)
    manifest = manifest_of(again)
    x = torch.randn(3, *SHAPE)
    assert torch.equal(again(x), ours.eval()(x))
    assert manifest.architecture.to_dict() == ours.architecture.to_dict()
    assert manifest.class_names == ("a", "b")
    assert again.architecture.relus == sum(each.relus for each in again.architecture.sites())
    with_masks = count(again, SHAPE)
    assert with_masks.total.relus < again.architecture.relus
    assert ours.architecture.layers() == tuple(
        replace(layer, relus=layer.elements) if layer.name == site.name else layer for layer in with_masks.layers
    )
    assert convert(again, SHAPE) is again


def test_a_network_of_the_package_is_left_alone():
    from deepreshape.models import architecture, build

    network = build(architecture("resnet20-m2"))
    assert convert(network, (3, 32, 32)) is network


class Decides(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Aside(nn.Module):
    """In training mode it computes something else."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        out = self.fc(x.mean((2, 3)))
        return 2 * out if self.training else out


class Half(nn.Module):
    """Works in place on a part of what is read again."""

    def forward(self, x):
        y = x * 2
        F.relu_(y[:, :1])
        return y.flatten(1)


class Exotic(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real.flatten(1)


class Two(nn.Module):
    def forward(self, x):
        return x.flatten(1), x.flatten(1)


class Drops(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), Drop(), nn.Flatten())


class Drop(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(16, 2)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Decides(), "cannot be traced on inputs of shape .* it decides by the values of its input"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), Decides()),
            "^1: the network .* at line .* of test_foreign.py, `.*`: it decides",
        ),
        (Aside(), "in training mode its outputs would be .* off; write it without hooks, code that asks for self"),
        (Half(), "works in place on a part of a value that flatten reads again; write it out of place"),
        (Exotic(), "the network calls fft_fft at .*, which a saved network cannot name"),
        (Two(), "the network gives 2 outputs; one can be trained"),
        (Drops(), "^1.dropout: dropout is called without training=self.training, and drops in evaluation too; say it"),
        (Locked(), "^the network cannot be copied: cannot pickle '_thread.lock' object"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_is_one_line(network: nn.Module, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        convert(network, SHAPE)
    assert "\n" not in str(caught.value)


def pruned(layer: nn.Module) -> nn.Module:
    return nn.utils.prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
        pruned,
        lambda layer: pruned(pruned(layer)),
        lambda layer: nn.utils.weight_norm(nn.utils.weight_norm(layer), "bias"),
    ],
)
def test_computed_weights_become_plain_ones(compute):
    network = nn.Sequential(compute(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten())
    x = torch.randn(2, *SHAPE)
    network(x)  # so that its weights have been computed, with a gradient
    names = [*network.state_dict()]
    ours = convert(network, SHAPE)
    assert [*ours.state_dict()] == [name for name, _ in nn.Sequential(nn.Conv2d(3, 4, 3)).named_parameters()]
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert torch.allclose(ours.eval()(x), network.eval()(x), atol=1e-6)
    assert [*network.state_dict()] == names


class Optional(nn.Module):
    """Takes more than its batch, with defaults, as torchvision's and timm's do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, scale=2.0, mask=None, *others, features=False, **more):
        if mask is not None or others or more:
            x = x * mask
        out = F.relu(self.conv(x)).flatten(1) * scale
        return (out, x) if features else out


def test_what_has_a_default_is_no_input(tmp_path: Path):
    network = Optional().eval()
    ours = convert(network, SHAPE)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(ours(x), network(x))
    assert [call.name for call in ours.architecture.calls if call.kind == "input"] == ["x"]
    save(ours, tmp_path, Manifest(ours.architecture))
    assert torch.equal(load(tmp_path)(x), network(x))


class Compiled(nn.Module):
    """As ``torch.compile`` gives it, without the compiler, which takes seconds to import."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._orig_mod = module

    def __getattr__(self, name: str):
        return super().__getattr__(name) if name == "_orig_mod" else getattr(self._orig_mod, name)

    def __call__(self, x):
        raise AssertionError("it is the module in it that is converted")


@pytest.mark.parametrize("wrap", [nn.DataParallel, Compiled, lambda network: Compiled(nn.DataParallel(network))])
def test_what_is_wrapped_is_converted_without_its_wrapper(wrap):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    x = torch.randn(2, *SHAPE)
    for wrapped in (wrap(network), nn.Sequential(wrap(network[:2]), network[2]).eval()):
        ours = convert(wrapped, SHAPE)
        assert torch.equal(ours(x), network(x))
        assert all(part not in name for name in ours.state_dict() for part in ("module", "_orig_mod"))
    assert ours.architecture.name == "Sequential"
    assert convert(wrap(ours), SHAPE) is ours


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(2).max(2)[0],
        lambda x: torch.min(x.flatten(2), 2).values,
        lambda x: torch.max(x, x.flip(3)),
        lambda x: torch.roll(x.movedim(1, 3), 1, 2),
        lambda x: F.unfold(x, 3).roll(1, 1),
    ],
)
def test_what_runs_privately_can_be_named(function, tmp_path: Path):
    class Moves(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return function(F.relu(self.conv(x))).flatten(1)

    network = Moves().eval()
    x = torch.randn(2, *SHAPE)
    ours = convert(network, SHAPE)
    save(ours, tmp_path, Manifest(ours.architecture))
    assert torch.equal(load(tmp_path)(x), network(x))
    assert not unsupported(network, SHAPE)


class Standardized(nn.Module):
    """Reads buffers, and tensors that its code makes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1))

    def forward(self, x):
        x = (x - self.mean) / self.std
        return F.relu(x * torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1))


def test_buffers_and_constants_are_read_and_saved(tmp_path: Path):
    network = nn.Sequential(Standardized(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    names = [*network.state_dict()]
    ours = convert(network, SHAPE)
    save(ours, tmp_path, Manifest(ours.architecture))
    x = torch.randn(5, *SHAPE)
    assert torch.equal(ours(x), network(x))
    assert torch.equal(load(tmp_path)(x), network(x))
    assert [*network.state_dict()] == names
    assert not hasattr(network, "_tensor_constant0")


class Contracted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        x = torch.einsum("bchw,cd->bdhw", x, self.weight)
        return (
            torch.relu(torch.einsum("bdhw,bd->bhw", x, x.amin((2, 3)))).flatten(1) - torch.amin(x, (1, 2, 3))[:, None]
        )


def test_sums_of_products_and_minima_are_saved(tmp_path: Path):
    network = Contracted()
    ours = convert(network, SHAPE)
    save(ours, tmp_path, Manifest(ours.architecture))
    x = torch.randn(2, *SHAPE)
    assert torch.equal(load(tmp_path)(x), network(x))


def test_tied_weights_are_saved(tmp_path: Path):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Flatten())
    network[2].weight = network[0].weight
    ours = convert(network, SHAPE)
    save(ours, tmp_path, Manifest(ours.architecture))
    x = torch.randn(2, *SHAPE)
    assert torch.equal(load(tmp_path)(x), network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda values: values["calls"][1].__setitem__(1, "function"),
            "the function 'conv' at conv is none that a saved",
        ),
        (
            lambda values: values["calls"].append(["x", "method", "__class__", [], {}]),
            "the method '__class__' at x is none",
        ),
        (
            lambda values: values["calls"].append(["x", "function", "os.system", ["ls"], {}]),
            "the function 'os.system' at x",
        ),
        (
            lambda values: values["calls"].append(["x", "function", "shape", [1, "__dict__"], {}]),
            "the function 'shape' at",
        ),
        (lambda values: values.pop("calls"), "not a saved graph of layers: 'calls'"),
    ],
)
def test_a_manifest_can_name_nothing_but_what_is_listed(change, message: str):
    values = json.loads(json.dumps(convert(networks.ReadAgain(), SHAPE).architecture.to_dict()))
    change(values)
    with pytest.raises(ValueError, match=message):
        from_dict(values)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"class": "Module.__subclasses__", "arguments": {}}, "is not a layer of torch.nn"),
        ({"class": "DataParallel", "arguments": {}}, "'DataParallel' is not a layer of torch.nn"),
    ],
)
def test_a_layer_is_one_of_torch_nn(layer: dict, message: str):
    values = convert(networks.ReadAgain(), SHAPE).architecture.to_dict()
    values["modules"]["conv"] = layer
    with pytest.raises(ValueError, match=message):
        Foreign.from_dict(values).build()


def test_the_lists_hold_nothing_that_reaches_out():
    assert not METHODS & {"numpy", "tofile", "storage", "register_hook", "apply_", "map_"}
    assert all(not name.startswith("_") for name in METHODS)
