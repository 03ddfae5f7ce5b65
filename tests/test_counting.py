"""The counter against the published counts, and against networks that are not ours."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepreshape.cost import PROFILES, LinearLayer, ReluLayer, SquareLayer, published_seconds
from deepreshape.cost.published import price_published
from deepreshape.counting import count
from deepreshape.models import architecture, build
from deepreshape.nn import HerPN, MaskedReLU, PolynomialReLU

PUBLISHED = [
    # name, input side, classes, ReLUs, without the stem's, MACs in M to one decimal, params in M to two
    ("resnet18", 32, 100, 557_056, 491_520, 555.5, 11.22),
    ("hrn-5x5x3x", 32, 100, 343_040, 326_656, 1053.4, 48.65),
    ("hrn-5x7x2x", 32, 100, 378_880, 362_496, 1270.3, 49.38),
    ("hrn-6x6x2x", 32, 100, 401_408, 385_024, 1365.8, 52.39),
    ("hrn-7x5x2x", 32, 100, 411_648, 395_264, 1325.6, 49.73),
    ("hrn-2x5x3x-m32", 32, 100, 372_736, 339_968, 709.6, 31.20),
    ("hrn-2x5x2x-m32", 32, 100, 352_256, 319_488, 472.0, 16.32),
    ("hrn-2x6x2x-m32", 32, 100, 376_832, 344_064, 644.8, 23.36),
    ("hrn-2x7x2x-m32", 32, 100, 401_408, 368_640, 848.5, 31.67),
    ("stch-4x4x4x", 32, 100, 278_528, 262_144, 659.6, 33.11),
    ("resnet34", 32, 100, 966_656, 901_120, 1159.4, 21.33),
    ("resnet50", 32, 100, 2_940_928, 2_875_392, 1298.0, 23.71),
    ("wideresnet22-8", 32, 100, 1_392_640, 1_392_640, 2454.2, 17.20),
    ("resnet18", 64, 200, 2_228_224, 1_966_080, 2221.8, 11.27),
    ("resnet20", 32, 10, 188_416, 172_032, 40.8, 0.27),
    ("resnet32", 32, 10, 303_104, 286_720, 69.1, 0.47),
    ("vgg16", 32, 10, 276_480, 276_480, 313.2, 14.72),
    ("resnet9-m32", 32, 100, 102_400, 69_632, 95.3, 1.67),
]


@pytest.mark.parametrize(("name", "side", "classes", "relus", "without_stem", "macs", "params"), PUBLISHED)
def test_published_counts(
    name: str, side: int, classes: int, relus: int, without_stem: int, macs: float, params: float
):
    shape = (3, side, side)
    counted = count(build(architecture(name, shape, classes), "meta"), shape)
    assert counted.total.relus == relus
    assert counted.relus_without_stem == without_stem
    assert round(counted.total.macs / 1e6, 1) == macs
    assert round(counted.total.params / 1e6, 2) == params
    assert counted.unknown == {}


def test_resnet18_stage_by_stage():
    counted = count(build(architecture("resnet18"), "meta"), (3, 32, 32))
    assert {name: stage.relus for name, stage in counted.by_stage.items() if name} == {
        "stem": 65_536, "stage1": 262_144, "stage2": 131_072, "stage3": 65_536, "stage4": 32_768, "head": 0,
    }  # fmt: skip
    assert counted.total.macs == 555_468_800


def test_the_final_relu_of_a_wide_resnet_is_a_line_of_its_own():
    counted = count(build(architecture("wideresnet22-8"), "meta"), (3, 32, 32))
    assert counted.by_module["head.act"].relus == 32_768


@pytest.mark.parametrize(
    ("function", "relus"),
    [
        (functional.relu, 24),
        (torch.relu, 24),
        (lambda x: torch.relu_(x.clone()), 24),
        (lambda x: functional.relu(x.clone(), inplace=True), 24),
        (functional.relu6, 24),
        (functional.leaky_relu, 24),
        (lambda x: x.clamp(min=0), 24),
        (lambda x: x.clone().clamp_(min=0), 24),
        (lambda x: torch.clamp_min(x, 0), 24),
        (lambda x: functional.threshold(x, 0, 0), 24),
        (lambda x: functional.prelu(x, torch.ones(1)), 24),
        (lambda x: functional.relu(functional.relu(x)), 48),
        (lambda x: x + 1, 0),
        (lambda x: 2 * x, 0),
    ],
)
def test_functional_forms_count_like_modules(function, relus: int):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    counted = count(Net(), (2, 3, 4))
    assert counted.total.relus == relus
    assert counted.unknown == {}


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (functional.gelu, "aten.gelu"),
        (torch.sigmoid, "aten.sigmoid"),
        (lambda x: x.clamp(min=1), "aten.clamp"),
        (lambda x: x**3, "aten.pow"),
        (lambda x: 2**x, "aten.pow"),
        (lambda x: x**x, "aten.pow"),
        (lambda x: 1 / x, "aten.reciprocal"),
        (lambda x: functional.hardtanh(x), "aten.hardtanh"),
        (lambda x: x.softmax(1), "aten._softmax"),
    ],
)
def test_what_is_neither_linear_nor_a_relu_is_listed(function, operator: str):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    counted = count(Net(), (2, 3, 4))
    assert counted.total.relus == 0
    assert counted.unknown[operator] == 24


@pytest.mark.parametrize(
    ("function", "squares"),
    [
        (lambda x: x * x, 24),
        (lambda x: x**2, 24),
        (torch.square, 24),
        (lambda x: x * x.flip(2), 48),
        (lambda x: x.mean((2, 3), keepdim=True) * x, 48),
        (lambda x: x.clone().mul_(x + 1), 48),
        (lambda x: x.mean((2, 3)) * x.sum((2, 3)), 4),
    ],
)
def test_a_power_of_two_is_a_square_and_a_product_of_two_values_is_two(function, squares: int):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    counted = count(Net(), (2, 3, 4))
    assert counted.unknown == {}
    assert counted.total.squares == squares == sum(layer.squares for layer in counted.layers)  # pyright: ignore


def test_a_product_with_the_models_own_tensor_is_linear():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 1, 1))

        def forward(self, x):
            return x * self.scale / 2

    assert count(Net(), (2, 3, 4)).unknown == {}


def test_max_pools_have_a_line_of_their_own():
    net = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AdaptiveMaxPool2d(2))
    counted = count(net, (1, 8, 8))
    assert counted.total.relus == 0
    assert [counted.by_module[str(at)].maxpool_comparisons for at in range(3)] == [16 * 3, 16 * 8, 16 - 4]


def test_the_least_counts_like_the_largest():
    class Net(nn.Module):
        def forward(self, x):
            return x.amin((2, 3)) + x.flatten(2).min(2)[0] + x.amax((2, 3)) + x.flatten(2).max(2)[0]

    counted = count(Net(), (2, 3, 4))
    assert counted.unknown == {}
    assert counted.total.maxpool_comparisons == 4 * 2 * 11


def test_a_mask_counts_what_it_keeps():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :3] = True
    assert count(MaskedReLU(mask), (2, 4, 4)).total.relus == 12
    assert count(MaskedReLU(mask), torch.zeros(5, 2, 4, 4)).total.relus == 60


def test_macs_of_the_usual_operators():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
            self.up = nn.ConvTranspose2d(6, 3, 2, stride=2)
            self.linear = nn.Linear(3 * 8 * 8, 5)

        def forward(self, x):
            return self.linear(self.up(self.conv(x)).flatten(1))

    counted = count(Net(), (4, 8, 8))
    assert counted.by_module["conv"].macs == 6 * 2 * 9 * 16
    assert counted.by_module["up"].macs == 6 * 3 * 4 * 16
    assert counted.by_module["linear"].macs == 192 * 5


def test_attention_counts_its_products_and_names_its_softmax():
    class Net(nn.Module):
        def forward(self, x):
            return functional.scaled_dot_product_attention(x, x, x)

    counted = count(Net(), torch.randn(1, 2, 6, 8))
    assert counted.total.macs == 2 * 2 * 6 * 6 * 8
    assert counted.complete().unknown == {"aten._softmax": 2 * 6 * 6}


class Foreign(nn.Module):
    """Laid out like the networks of torchvision: one ReLU module used twice in a block, a stem in the open."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.relu(self.conv(x)) + x)

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(self.Block(), self.Block())
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.layer1(self.relu(self.conv1(x)))
        return self.fc(x.mean((2, 3)))


def test_networks_of_others():
    counted = count(Foreign(), (3, 8, 8))
    assert counted.total.relus == 5 * 4 * 64
    assert counted.by_module["layer1.0.relu"].relus == 2 * 4 * 64
    assert counted.relus_without_stem == 4 * 4 * 64
    assert counted.by_operator["aten.relu_"].relus == counted.total.relus
    assert sum(stage.params for stage in counted.by_stage.values()) == sum(p.numel() for p in Foreign().parameters())


def test_a_relu_in_the_open_at_the_end_is_not_the_stems():
    class Late(Foreign):
        def forward(self, x):
            return super().forward(x).relu()

    counted = count(Late(), (3, 8, 8))
    assert counted.total.relus - counted.relus_without_stem == 4 * 64


def test_shared_weights_count_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert count(net, (3,)).total.params == 9


def test_a_convolution_used_twice_counts_its_work_twice_and_its_weights_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    counted = count(Twice(), (4, 8, 8))
    assert (counted.total.macs, counted.total.params) == (2 * 4 * 4 * 9 * 64, 4 * 4 * 9 + 4)
    assert [layer.name for layer in counted.layers if isinstance(layer, LinearLayer)] == ["conv", "conv"]


def test_layers_are_those_of_one_input_of_a_batch():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), HerPN(3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2))
    many, one = count(net, torch.zeros(5, 2, 8, 8)), count(net, (2, 8, 8))
    assert many.priced_layers == one.priced_layers
    assert one.priced_layers[-1].relus == 27 * 3
    assert (many.total.relus, many.total.maxpool_comparisons) == (5 * 3 * 36, 5 * 27 * 3)
    binary = build(architecture("react18-m2", (3, 8, 8), 10))
    assert count(binary, torch.zeros(2, 3, 8, 8)).layers == count(binary, (3, 8, 8)).layers


def test_an_upper_bound_is_priced_as_a_second_comparison():
    bounded = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU6(), nn.Hardswish(), Bounded(), nn.ReLU(), nn.LeakyReLU())
    counted = count(bounded, torch.zeros(4, 2, 2, 2))
    assert counted.total.relus == 4 * 5 * 12
    layers = [layer for layer in counted.priced_layers if layer.name.endswith(".upper")]
    assert layers == [ReluLayer(f"{place}.upper", 12, 12) for place in (1, 2, 3)]


class Bounded(nn.Module):
    def forward(self, x):
        return x.clamp(0, 3)


def test_what_is_not_counted_has_no_price():
    counted = count(nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.GELU()), (2, 2, 2))
    words = r"the price would miss aten.native_group_norm \(.*, aten.gelu \(16 elements\).*`deepreshape check`"
    with pytest.raises(ValueError, match=words):
        _ = counted.priced_layers


@pytest.mark.parametrize(
    ("norm", "linear"),
    [
        (nn.BatchNorm2d(4), True),
        (nn.InstanceNorm2d(4, track_running_stats=True), True),
        (nn.InstanceNorm2d(4, affine=True), False),
        (nn.BatchNorm2d(4, track_running_stats=False), False),
    ],
)
def test_a_norm_is_linear_by_stored_statistics_only(norm: nn.Module, linear: bool):
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 1), norm, nn.ReLU())
    counted = count(net, (2, 2, 2))
    assert counted.total.relus == 16
    if linear:
        assert counted.unknown == {}
    else:
        with pytest.raises(ValueError, match=r"the price would miss aten.native_batch_norm \(\d+ elements\)"):
            _ = counted.priced_layers


def test_what_does_not_depend_on_the_input_is_not_counted():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))
            self.scale = torch.ones(4)  # no buffer: a tensor like any other attribute

        def forward(self, x):
            weight = self.weight.relu() / (self.weight @ self.weight.T).trace()
            return functional.linear(x, weight) * self.scale.sigmoid()

    counted = count(Computed(), (6,))
    assert (counted.total.macs, counted.total.relus, counted.unknown) == (24, 0, {})
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))
    assert count(spectral, (2, 8, 8)).unknown == {}
    assert count(spectral, (2, 8, 8)).total.macs == 3 * 2 * 9 * 36


def test_an_encoder_layer_is_seen_in_its_parts():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    counted = count(layer, (3, 8))
    assert counted.total.relus == 3 * 16
    assert counted.total.macs == 3 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + 2 * 3 * 3 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_data_parallel_counts_as_what_it_holds():
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    counted, inner = count(nn.DataParallel(net), (8,)), count(net, (8,))
    assert counted.unknown == {}
    assert counted.total == inner.total


@pytest.mark.parametrize(
    ("net", "shape", "operator"),
    [(lambda: nn.LSTM(8, 4), (3, 8), "rnn"), (lambda: Matrix(), (4,), "aten.mv")],
)
def test_work_of_unknown_size_is_refused(net, shape: tuple[int, ...], operator: str):
    counted = count(net(), shape)
    with pytest.raises(ValueError, match=f"the totals would miss the multiply-adds of .*{operator}"):
        counted.complete()


def test_unknown_operators_without_hidden_work_are_kept():
    counted = count(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Softmax(1)), (4,))
    assert counted.complete() is counted
    assert set(counted.unknown) == {"aten.gelu", "aten._softmax"}


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_network_is_refused():
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), {nn.Linear})
    counted = count(quantised, torch.zeros(1, 8))
    assert counted.unknown == {"quantized.linear_dynamic": 4}
    with pytest.raises(
        ValueError, match=r"quantized\.linear_dynamic \(4 elements\): count the network as it was before"
    ):
        counted.complete()


class Matrix(nn.Module):
    """Takes one vector out of its batch, and multiplies it by a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, x):
        return self.weight.mv(x[0])


def test_the_model_is_left_as_it_was():
    model = build(architecture("resnet20"))
    model.train()
    model.stage1.eval()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count(model, (3, 32, 32))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_input_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"does not run on an input of shape \(1, 1, 32, 32\)"):
        count(build(architecture("resnet20")), (1, 32, 32))


class Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(AssertionError("32 pixels"), "32 pixels"), (AssertionError(), "AssertionError"), (KeyError("norm"), "'norm'")],
)
def test_whatever_a_networks_code_raises_is_its_reason(error: Exception, reason: str):
    with pytest.raises(ValueError, match=rf"does not run on an input of shape \(1, 3, 8, 8\): {reason}$"):
        count(nn.Sequential(Failing(error)), (3, 8, 8))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("inside", [False, True])
def test_a_scripted_network_is_refused(inside: bool):
    scripted = torch.jit.trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"TorchScript, .*; give the module that it was made from"):
        count(nn.Sequential(scripted) if inside else scripted, (3, 4, 4))


def test_layers_come_in_order_with_their_shapes():
    layers = count(build(architecture("resnet18"), "meta"), (3, 32, 32)).layers
    first, second = layers[:2]
    assert first == LinearLayer("stem.conv.0", 3, 64, (3, 3), 1, (32, 32), (32, 32), 27 * 64 * 1024, padding=(1, 1))
    assert second == ReluLayer("stem.act", 65_536, 65_536)
    assert len(layers) == 17 + 3 + 1 + 17


def test_quadratics_are_counted_as_squares():
    mask = torch.zeros(4, 3, 3, dtype=torch.bool)
    mask[:, 0] = True
    mixed = PolynomialReLU(mask, torch.ones(4, 3))
    counts = count(nn.Sequential(nn.Conv2d(1, 4, 1), mixed, HerPN(4)), (1, 3, 3))
    assert (counts.total.relus, counts.total.squares, counts.unknown) == (12, 24 + 36, {})
    assert [layer.squares for layer in counts.layers if isinstance(layer, SquareLayer)] == [24, 36]


def test_published_quadratics_of_a_resnet20():
    counts = count(build(architecture("resnet20-herpn"), "meta"), (3, 32, 32))
    assert (counts.total.relus, counts.total.squares, counts.total.macs) == (0, 188_416, 40_818_944)


def test_published_systems_price_no_squares():
    layers = architecture("resnet20-m4-herpn").layers()
    with pytest.raises(ValueError, match="price no squares, and the network has 47,104"):
        price_published(layers, next(iter(PROFILES.values())))
    assert published_seconds(layers) == {}


def test_a_count_prints_as_a_line_and_one_for_each_stage():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.GELU(), nn.Identity())
    assert str(count(net, (1, 4, 4))) == (
        "32 ReLUs, 24 max-pool comparisons, 32 MACs, 2 parameters\n"
        "  0: 0 ReLUs, 32 MACs, 2 parameters\n"
        "  1: 32 ReLUs, 0 MACs, 0 parameters\n"
        "  2: 0 ReLUs, 24 max-pool comparisons, 0 MACs, 0 parameters\n"
        "  not counted: aten.gelu (8 elements)"
    )
