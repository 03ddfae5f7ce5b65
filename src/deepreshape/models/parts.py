"""The pieces that every family's builder puts together at a ReLU site."""

from __future__ import annotations

from torch import nn

from deepreshape.models.architecture import Architecture
from deepreshape.nn import ReuseConv

__all__ = ["activation", "conv_norm", "pool", "shrink"]


def activation(architecture: Architecture, site: str) -> nn.Module:
    """What stands at ``site``: a ReLU, or nothing where it was removed or moved into a reused convolution."""
    gone = site in architecture.removed or site in dict(architecture.reused)
    return nn.Identity() if gone else nn.ReLU(inplace=True)


def conv_norm(
    architecture: Architecture, site: str | None, in_channels: int, out_channels: int, kernel: int, stride: int = 1
) -> nn.Module:
    """Convolution and batch norm before ``site``, as one reused convolution where the site's ReLUs are reused."""
    factor = dict(architecture.reused).get(site) if site else None
    if factor:
        return ReuseConv(in_channels, out_channels, kernel, stride, factor, architecture.reuse)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def pool(architecture: Architecture, kernel: int, stride: int, padding: int = 0) -> nn.Module:
    """The architecture's kind of pool."""
    kind = nn.MaxPool2d if architecture.pool == "max" else nn.AvgPool2d
    return kind(kernel, stride, padding)


def shrink(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Size of the map after a padded convolution of this stride."""
    return -(-size[0] // stride), -(-size[1] // stride)
