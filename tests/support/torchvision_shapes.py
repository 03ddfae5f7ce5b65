"""Networks of the shapes that torchvision has, a few channels wide: the code of their blocks is what is tried."""

from collections.abc import Sequence

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
    def __init__(self, classes: int = 5):
        super().__init__()
        stem = [nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6(inplace=True)]
        blocks = [Inverted(4, 4, 1, 1), Inverted(4, 6, 2, 2), Inverted(6, 6, 1, 2)]
        last = [nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*stem, *blocks, *last)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class Dense(nn.Module):
    """DenseNet's layer: of all that was before, norm, ReLU, 1x1, norm, ReLU, 3x3."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu(self.norm2(x)))


class DenseNet(nn.Module):
    def __init__(self, classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool, self.layers = nn.MaxPool2d(3, 2, 1), nn.ModuleList([Dense(4, 2), Dense(6, 2)])
        transition = [nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1, bias=False), nn.AvgPool2d(2, 2)]
        self.transition, self.norm, self.classifier = (
            nn.Sequential(*transition),
            nn.BatchNorm2d(4),
            nn.Linear(4, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [self.pool(self.stem(x))]
        for layer in self.layers:
            features.append(layer(features))
        x = F.relu(self.norm(self.transition(torch.cat(features, 1))), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class UNet(nn.Module):
    """Down by a max pool, up by a transposed convolution and by bilinear upsampling, skips joined; a map of classes."""

    def __init__(self, classes: int = 3):
        super().__init__()

        def block(wide_in: int, wide: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(wide_in, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(inplace=True))

        self.one, self.two, self.three = block(3, 4), block(4, 6), block(6, 8)
        self.up, self.bilinear = nn.ConvTranspose2d(8, 6, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.four, self.five, self.out = block(12, 4), block(8, 4), nn.Conv2d(4, classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(self.pool(one))
        three = self.three(self.pool(two))
        x = self.four(torch.cat([two, self.up(three)], 1))
        return self.out(self.five(torch.cat([one, self.bilinear(x)], 1)))


SHAPES = {
    "resnet18": (lambda: ResidualNetwork(Basic, (2, 2), 4), 16),
    "resnet34": (lambda: ResidualNetwork(Basic, (3, 4), 2), 16),
    "resnet50": (lambda: ResidualNetwork(Bottleneck, (2, 1), 2), 16),
    "vgg11": (lambda: vgg((4, "M", 6, "M", 8, 8, "M"), norm=False), 16),
    "vgg16-bn": (lambda: vgg((4, 4, "M", 6, 6, "M"), norm=True), 16),
    "mobilenet": (MobileNet, 16),
    "densenet": (DenseNet, 16),
    "unet": (UNet, 8),
}
"""A network of each, and the side of its images."""
