"""The pieces that every family puts at a ReLU site, as modules and as layers by arithmetic."""

from __future__ import annotations

from torch import nn

from deepreshape.cost.layers import Layer, LinearLayer, ReluLayer, SquareLayer
from deepreshape.models.architecture import Reduction, Site
from deepreshape.models.staged import Staged
from deepreshape.nn import HerPN, ReuseConv, reuse_widths

__all__ = ["LayerList", "Map", "activation", "conv_norm", "head", "head_sites", "pool", "shrink"]

Map = tuple[int, tuple[int, int]]
"""Channels, and (height, width)."""


def activation(architecture: Staged, site: str, channels: int) -> nn.Module:
    """What stands at ``site``: a ReLU or a quadratic, or nothing where it was removed or is in a reused convolution."""
    if site in architecture.reduction.removed or architecture.reduction.factor(site) > 1:
        return nn.Identity()
    return HerPN(channels) if architecture.activation == "herpn" else nn.ReLU(inplace=True)


def conv_norm(
    reduction: Reduction,
    site: str | None,
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Module:
    """Convolution and batch norm before ``site``, as one reused convolution where the site's ReLUs are reused."""
    factor = reduction.factor(site)
    if factor > 1:
        return ReuseConv(in_channels, out_channels, kernel, stride, factor, reduction.form, dilation)
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def head(architecture: Staged, channels: int) -> nn.Sequential:
    """Logits of each place of a map (N, channels, h, w), or of the means over its places, as the architecture says."""
    classes = architecture.classes
    if architecture.maps:
        out = nn.Sequential(nn.Conv2d(channels, classes, 1))
    else:
        out = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    if architecture.head == "light":
        return out
    wide = nn.Sequential()
    wide.conv = conv_norm(Reduction(), None, channels, channels, 3)
    wide.act = activation(architecture, "head.act", channels)
    wide.out = out
    return wide


def head_sites(architecture: Staged, channels: int, size: tuple[int, int]) -> list[Site]:
    """Where what :func:`head` builds has ReLUs."""
    if architecture.head == "light":
        return []
    return [Site("head.act", len(architecture.phi), 1, True, channels, size, reusable=False)]


def pool(kind: str, kernel: int, stride: int, padding: int = 0) -> nn.Module:
    """A max pool or an average pool."""
    return (nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(kernel, stride, padding)


def shrink(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Size of the map after a padded convolution of this stride."""
    return -(-size[0] // stride), -(-size[1] // stride)


class LayerList:
    """The layers of a network from arithmetic alone, in the order in which they run."""

    def __init__(self, architecture: Staged) -> None:
        self.architecture = architecture
        self.reduction, self.squares = architecture.reduction, architecture.activation == "herpn"
        self.layers: list[Layer] = []

    def conv(self, name: str, before: Map, width: int, kernel: int, stride: int, dilation: int = 1) -> Map:
        """A convolution, of an even kernel one that halves; gives the map after it."""
        channels, size = before
        after = shrink(size, stride) if kernel % 2 else (size[0] // stride, size[1] // stride)
        macs = channels * width * kernel**2 * after[0] * after[1]
        padding = dilation * (kernel - 1) // 2
        self.layers.append(
            LinearLayer(
                name,
                channels,
                width,
                (kernel, kernel),
                1,
                size,
                after,
                macs,
                (stride, stride),
                (padding, padding),
                (dilation, dilation),
            )
        )
        return width, after

    def conv_norm(
        self, name: str, site: str | None, before: Map, width: int, kernel: int, stride: int = 1, dilation: int = 1
    ) -> Map:
        """What :func:`conv_norm` builds at the path ``name``; gives the map after it."""
        factor = self.reduction.factor(site)
        if factor == 1:
            return self.conv(f"{name}.0", before, width, kernel, stride, dilation)
        ins, outs, passed = reuse_widths(before[0], width, stride, factor, self.reduction.form)
        after = width, shrink(before[1], stride)
        for group, (wide_in, wide_out) in enumerate(zip(ins, outs, strict=True)):
            if group == 1 and passed:
                continue
            self.conv(f"{name}.groups.{group}.0", (wide_in, before[1]), wide_out, kernel, stride, dilation)
            if group == 0:
                self._relus(f"{name}.groups.0.2", (wide_out, after[1]))
        if self.reduction.form.mix and kernel > 1:
            self.conv(f"{name}.mix.0", after, width, 1, 1)
        return after

    def activation(self, site: str, at: Map) -> None:
        """What :func:`activation` builds at ``site``."""
        if site not in self.reduction.removed and self.reduction.factor(site) == 1:
            self._relus(site, at)

    def linear(self, name: str, channels: int, classes: int) -> None:
        """A linear layer on one vector."""
        self.layers.append(LinearLayer(name, channels, classes, (1, 1), 1, (1, 1), (1, 1), channels * classes))

    def _relus(self, name: str, at: Map) -> None:
        elements = at[0] * at[1][0] * at[1][1]
        self.layers.append(SquareLayer(name, elements) if self.squares else ReluLayer(name, elements, elements))

    def head(self, before: Map) -> None:
        """What :func:`head` builds."""
        at, path = before, "head"
        if self.architecture.head == "conv":
            at, path = self.conv("head.conv.0", at, at[0], 3, 1), "head.out"
            self.activation("head.act", at)
        if self.architecture.maps:
            self.conv(f"{path}.0", at, self.architecture.classes, 1, 1)
        else:
            self.linear(f"{path}.2", at[0], self.architecture.classes)
