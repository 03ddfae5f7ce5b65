"""Networks: an architecture (a small value), its name, its ReLU sites, and the torch module it builds."""

from __future__ import annotations

import torch
from torch import nn

from deepreshape.models import resnet, resnet9, vgg, wide_resnet
from deepreshape.models.architecture import Architecture, Site
from deepreshape.models.names import PRESETS, architecture, name_of

__all__ = ["PRESETS", "Architecture", "Site", "architecture", "build", "name_of", "relus", "relus_at", "sites"]

FAMILIES = {
    "resnet": (resnet.ResNet, resnet.sites),
    "resnet9": (resnet9.ResNet9, resnet9.sites),
    "vgg": (vgg.VGG, vgg.sites),
    "wide_resnet": (wide_resnet.WideResNet, wide_resnet.sites),
}


def build(architecture: Architecture, device: str | None = None, *, seed: int | None = None) -> nn.Module:
    """A module with fresh weights.

    Args:
        architecture: what to build; the module carries it as ``.architecture``.
        device: ``"meta"`` gives shapes without storage, in milliseconds.
        seed: of the weights; torch's global generator is used, and moved, only without one.
    """
    module = FAMILIES[architecture.family][0]
    with torch.device(device or "cpu"), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return module(architecture)


def sites(architecture: Architecture) -> tuple[Site, ...]:
    """Every ReLU site of the unreduced network, front to back."""
    return tuple(FAMILIES[architecture.family][1](architecture))


def relus_at(architecture: Architecture, site: Site) -> int:
    """How many ReLUs ``architecture`` has at ``site``, by arithmetic."""
    if site.name in architecture.removed:
        return 0
    factor = dict(architecture.reused).get(site.name, 1)
    return site.channels // factor * site.size[0] * site.size[1]


def relus(architecture: Architecture) -> int:
    """How many ReLUs the network has, by arithmetic; a trace of the built network counts the same."""
    return sum(relus_at(architecture, site) for site in sites(architecture))
