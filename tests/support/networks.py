"""Networks as users bring them: none of them knows this package."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class BasicBlock(nn.Module):
    """One ReLU module at two places and ``+=``, as in torchvision."""

    def __init__(self, wide_in: int, wide: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.downsample = None
        if stride != 1 or wide_in != wide:
            self.downsample = nn.Sequential(nn.Conv2d(wide_in, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A 7x7 stem, a max pool, four stages, as in torchvision; small."""

    def __init__(self, classes: int = 10, wide: int = 4, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wide, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(wide, wide), BasicBlock(wide, wide))
        self.layer2 = nn.Sequential(BasicBlock(wide, 2 * wide, 2), BasicBlock(2 * wide, 2 * wide))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2 * wide, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Functional(nn.Module):
    """Functional ReLUs on maps and on vectors, functional dropout, an assert on the shape, ``x.size(0)``."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1 = nn.Linear(6 * 4 * 4, 16)
        self.fc2 = nn.Linear(16, 10)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        _, channels, height, width = x.shape
        assert channels == self.conv1.in_channels and height == width  # noqa: PT018
        x = F.max_pool2d(F.relu(self.conv1(x)), height // 4)
        x = self.conv2(x).clamp(min=0) * self.scale
        x = x.view(x.size(0), -1)
        x = F.dropout(torch.relu(self.fc1(x)), 0.3, self.training)
        return {"logits": self.fc2(x)}


class ReadAgain(nn.Module):
    """An in-place ReLU whose input a skip adds again: it adds what the ReLU gave."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        out = self.conv(x)
        rectified = F.relu_(out)
        return self.fc((rectified + out).mean((2, 3)))


class Leaky(nn.ReLU):
    """A subclass of ReLU with a forward of its own is none."""

    def forward(self, x):
        return torch.maximum(x, 0.1 * x)


class Subclassed(nn.Module):
    """One that is a ReLU by inheritance alone, one that is not."""

    def __init__(self, channels: int = 3):
        super().__init__()

        class Named(nn.ReLU):
            pass

        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), Leaky(), nn.Conv2d(4, 4, 1), Named())
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class Shared(nn.Module):
    """One block at two places, and one ReLU under two names."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, padding=1)
        self.block = BasicBlock(4, 4)
        self.act = self.block.relu
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = self.act(self.stem(x))
        return self.fc(self.block(self.block(x)).mean((2, 3)))
