"""Networks of the shapes that torchvision has, a few channels wide: the code of their blocks is what is tried."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Basic(nn.Module):
    """ResNet-18 and -34."""

    grows = 1

    def __init__(self, wide_in: int, wide: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2, self.bn2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or wide_in != wide:
            self.downsample = nn.Sequential(nn.Conv2d(wide_in, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """ResNet-50."""

    grows = 4

    def __init__(self, wide_in: int, wide: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide_in, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2, self.bn2 = nn.Conv2d(wide, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv3, self.bn3 = nn.Conv2d(wide, 4 * wide, 1, bias=False), nn.BatchNorm2d(4 * wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or wide_in != 4 * wide:
            shortcut = nn.Conv2d(wide_in, 4 * wide, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * wide))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResidualNetwork(nn.Module):
    def __init__(self, block: type[Basic] | type[Bottleneck], depths: Sequence[int], wide: int, classes: int = 5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, wide, 7, 2, 3, bias=False), nn.BatchNorm2d(wide)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        stages, channels = list[nn.Module](), wide
        for number, depth in enumerate(depths):
            for place in range(depth):
                stages.append(block(channels, wide << number, 2 if number and not place else 1))
                channels = block.grows * (wide << number)
        self.layers, self.avgpool = nn.Sequential(*stages), nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


def vgg(plan: Sequence[int | str], norm: bool, classes: int = 5) -> nn.Module:
    """Convolutions of so many channels, and "M" for max pools; an adaptive pool and three linear layers."""
    layers, channels = list[nn.Module](), 3
    for wide in plan:
        if isinstance(wide, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(channels, wide, 3, padding=1), *[nn.BatchNorm2d(wide)] * norm, nn.ReLU(inplace=True)]
        channels = wide
    head = [nn.Linear(4 * channels, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 12), nn.ReLU(True), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), *head, nn.Linear(12, classes))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project; ReLU6."""

    def __init__(self, wide_in: int, wide: int, stride: int, expand: int):
        super().__init__()
        hidden = wide_in * expand
        layers = list[nn.Module]()
        if expand != 1:
            layers += [nn.Conv2d(wide_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(inplace=True), nn.Conv2d(hidden, wide, 1, bias=False), nn.BatchNorm2d(wide)]
        self.conv, self.adds = nn.Sequential(*layers), stride == 1 and wide_in == wide

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNet(nn.Module):
    """MobileNetV2 from rows of expansion, channels, repetitions and stride, as its paper's table 2 has them."""

    def __init__(self, rows: Sequence[tuple[int, int, int, int]], stem: int, last: int, classes: int = 5):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6(True)]
        channels = stem
        for expand, wide, count, stride in rows:
            for place in range(count):
                layers.append(Inverted(channels, wide, 1 if place else stride, expand))
                channels = wide
        layers += [nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class Excitation(nn.Module):
    """Squeeze and excitation as MobileNetV3 has it: the mean of each channel, two 1x1 convolutions, a hard sigmoid."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(channels // 4, 1)
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return self.scale_activation(scale) * x


def batch_norm(channels: int) -> nn.Module:
    """One of its last batch's statistics: with others, blocks that end without a ReLU would shrink to nothing."""
    return nn.BatchNorm2d(channels, momentum=1.0)


class Excited(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project."""

    def __init__(self, wide_in: int, kernel: int, hidden: int, wide: int, excited: bool, hard: bool, stride: int):
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        layers = list[nn.Module]()
        if hidden != wide_in:
            layers += [nn.Conv2d(wide_in, hidden, 1, bias=False), batch_norm(hidden), act(inplace=True)]
        layers += [nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)]
        layers += [batch_norm(hidden), act(inplace=True), *[Excitation(hidden)] * excited]
        layers += [nn.Conv2d(hidden, wide, 1, bias=False), batch_norm(wide)]
        self.block, self.adds = nn.Sequential(*layers), stride == 1 and wide_in == wide

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.adds else self.block(x)


def mobilenetv3(
    rows: Sequence[tuple[int, int, int, bool, bool, int]], stem: int, last: int, hidden: int, classes: int = 5
) -> nn.Module:
    """MobileNetV3 from rows of kernel, expanded and projected channels, excitation, hard swish and stride."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 2, 1, bias=False), batch_norm(stem), nn.Hardswish(True)]
    channels = stem
    for row in rows:
        layers.append(Excited(channels, *row))
        channels = row[2]
    layers += [nn.Conv2d(channels, last, 1, bias=False), batch_norm(last), nn.Hardswish(True)]
    head = [nn.Linear(last, hidden), nn.Hardswish(True), nn.Dropout(0.2), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


class Dense(nn.Module):
    """DenseNet's layer: of all that was before, norm, ReLU, 1x1, norm, ReLU, 3x3."""

    def __init__(self, channels: int, growth: int, wide: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, wide * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wide * growth)
        self.conv2 = nn.Conv2d(wide * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, channels: int, depth: int, growth: int, wide: int):
        super().__init__()
        self.layers = nn.ModuleList([Dense(channels + place * growth, growth, wide) for place in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Blocks of so many layers, with transitions between that halve channels and sides."""

    def __init__(self, depths: Sequence[int], growth: int, stem: int, wide: int, classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        layers, channels = list[nn.Module](), stem
        for number, depth in enumerate(depths):
            if number:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2, 2)]
                channels //= 2
            layers.append(DenseBlock(channels, depth, growth, wide))
            channels += depth * growth
        self.layers, self.norm = nn.Sequential(*layers), nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.layers(self.pool(self.stem(x)))), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class UNet(nn.Module):
    """Down by max pools, up by transposed convolutions or bilinearly, by turns, skips joined; a map of classes."""

    def __init__(self, wide: Sequence[int], convolutions: int, classes: int = 3):
        super().__init__()

        def block(wide_in: int, wide: int) -> nn.Module:
            sides = [wide_in, *[wide] * convolutions]
            layers = list[nn.Module]()
            for before, after in pairwise(sides):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList([block(before, after) for before, after in pairwise([3, *wide])])
        self.resize, self.up, self.pool = nn.ModuleList(), nn.ModuleList(), nn.MaxPool2d(2)
        for number, (below, here) in enumerate(pairwise(reversed(wide))):
            transposed = number % 2 == 0
            self.resize.append(
                nn.ConvTranspose2d(below, here, 2, 2) if transposed else nn.Upsample(scale_factor=2, mode="bilinear")
            )
            self.up.append(block((here if transposed else below) + here, here))
        self.out = nn.Conv2d(wide[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = list[Tensor]()
        for number, block in enumerate(self.down):
            x = block(self.pool(x) if number else x)
            skips.append(x)
        for resize, block, skip in zip(self.resize, self.up, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([skip, resize(x)], 1))
        return self.out(x)


SHALLOW = {
    "resnet18": (lambda: ResidualNetwork(Basic, (2, 2), 4), 16),
    "resnet34": (lambda: ResidualNetwork(Basic, (3, 4), 2), 16),
    "resnet50": (lambda: ResidualNetwork(Bottleneck, (2, 1), 2), 16),
    "vgg11": (lambda: vgg((4, "M", 6, "M", 8, 8, "M"), norm=False), 16),
    "vgg16-bn": (lambda: vgg((4, 4, "M", 6, 6, "M"), norm=True), 16),
    "mobilenet": (lambda: MobileNet([(1, 4, 1, 1), (2, 6, 2, 2)], 4, 8), 16),
    "mobilenetv3": (lambda: mobilenetv3([(3, 4, 4, True, False, 2), (5, 8, 4, True, True, 1)], 4, 8, 6), 16),
    "densenet": (lambda: DenseNet((2, 1), 2, 4, 2), 16),
    "unet": (lambda: UNet((4, 6, 8), 1), 8),
}
"""A network of the blocks of each, and the side of its images; of few layers."""

DEEP = {
    "resnet18": (lambda: ResidualNetwork(Basic, (2, 2, 2, 2), 8), 32),
    "resnet34": (lambda: ResidualNetwork(Basic, (3, 4, 6, 3), 8), 32),
    "resnet50": (lambda: ResidualNetwork(Bottleneck, (3, 4, 6, 3), 4), 32),
    "vgg11-bn": (lambda: vgg((8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"), norm=True), 32),
    "vgg16-bn": (
        lambda: vgg((8, 8, "M", 16, 16, "M", *(32, 32, 32, "M"), *(64, 64, 64, "M"), *(64, 64, 64, "M")), norm=True),
        32,
    ),
    "mobilenetv2": (
        lambda: MobileNet(
            [(1, 2, 1, 1), (6, 3, 2, 2), (6, 4, 3, 2), (6, 8, 4, 2), (6, 12, 3, 1), (6, 20, 3, 2), (6, 40, 1, 1)],
            4,
            160,
        ),
        32,
    ),
    "mobilenetv3-small": (
        lambda: mobilenetv3(
            [
                *((3, 2, 2, True, False, 2), (3, 9, 3, False, False, 2), (3, 11, 3, False, False, 1)),
                *((5, 12, 5, True, True, 2), (5, 30, 5, True, True, 1), (5, 30, 5, True, True, 1)),
                *((5, 15, 6, True, True, 1), (5, 18, 6, True, True, 1)),
                *((5, 36, 12, True, True, 2), (5, 72, 12, True, True, 1), (5, 72, 12, True, True, 1)),
            ],
            2,
            72,
            128,
        ),
        32,
    ),
    "densenet121": (lambda: DenseNet((6, 12, 24, 16), 4, 8, 4), 32),
    "unet": (lambda: UNet((4, 8, 16, 32, 64), 2), 32),
}
"""All layers of each, with an eighth of its channels (a sixteenth: resnet50, unet), and the side of its images."""
