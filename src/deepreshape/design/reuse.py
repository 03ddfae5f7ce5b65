"""ReLU reuse (DeepReShape section 4): divide the ReLUs of a layer by N without making the layer narrower."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deepreshape.models import Architecture, sites
from deepreshape.nn import ReuseForm

__all__ = ["Reuse"]


@dataclass(frozen=True)
class Reuse:
    """Every convolution that still has a ReLU is split in groups of which one keeps it.

    Attributes:
        factor: N, by which the count is divided; 2, 4, 8 and 16 in the paper.
        form: the wiring.
    """

    factor: int
    form: ReuseForm = field(default_factory=ReuseForm)

    def __str__(self) -> str:
        return f"reuse/{self.factor}" + ("" if self.form.kind == "fixed" else f" {self.form.kind}")

    def __call__(self, architecture: Architecture) -> Architecture:
        if architecture.reused:
            raise ValueError(f"ReLUs are already reused {architecture.reused[0][1]} times; give one factor for both")
        left = [site for site in sites(architecture) if site.name not in architecture.removed]
        usable = [site for site in left if site.reusable]
        if not usable:
            raise ValueError(f"no ReLU of this {architecture.family} follows a convolution that could be split")
        narrow = min(usable, key=lambda site: site.channels)
        if not 2 <= self.factor <= narrow.channels:
            raise ValueError(
                f"cannot reuse ReLUs {self.factor} times: {narrow.name} has {narrow.channels} channels; "
                f"2 to {narrow.channels} works"
            )
        return replace(architecture, reused=tuple((site.name, self.factor) for site in usable), reuse=self.form)
