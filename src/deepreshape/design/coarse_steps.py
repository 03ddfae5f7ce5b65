"""Coarse steps: cull a stage, thin what is left, reshape (DeepReDuce, Jha et al., ICML 2021), reuse (DeepReShape).

Each step turns an architecture into one with fewer ReLUs, by arithmetic on its sites.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from deepreshape.models import Staged
from deepreshape.nn import ReuseForm

__all__ = ["Cull", "Reuse", "Scale", "Thin"]


@dataclass(frozen=True)
class Cull:
    """Remove every ReLU of a stage; with ``stem``, the stem's too (it goes with the first stage in the papers)."""

    stage: int = 1
    stem: bool = True

    def __str__(self) -> str:
        return f"cull S{self.stage}" + ("+stem" if self.stem and self.stage == 1 else "")

    def __call__(self, architecture: Staged) -> Staged:
        stages = {self.stage, 0} if self.stem and self.stage == 1 else {self.stage}
        gone = {site.name for site in architecture.sites() if site.stage in stages}
        if not gone:
            raise ValueError(f"there is no stage {self.stage} to cull; stages are 1 to {len(architecture.phi)}")
        return replace(architecture, reduction=architecture.reduction.without(gone))


@dataclass(frozen=True)
class Thin:
    """Remove alternate ReLUs: of each block only one stays, in the given stages (all by default).

    Attributes:
        keep: ``"last"``, the one after the residual add, as in DeepReDuce's published networks, or ``"first"``.
        stages: where; empty for everywhere. The stem's ReLU is never touched.
    """

    keep: Literal["last", "first"] = "last"
    stages: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = " S" + ",".join(map(str, self.stages)) if self.stages else ""
        return "thin" + where + ("" if self.keep == "last" else " keep first")

    def __call__(self, architecture: Staged) -> Staged:
        gone = {
            site.name
            for site in architecture.sites()
            if site.stage
            and (not self.stages or site.stage in self.stages)
            and not (site.last if self.keep == "last" else site.position == 1)
        }
        return replace(architecture, reduction=architecture.reduction.without(gone))


@dataclass(frozen=True)
class Scale:
    """Divide the channels of all stages, or the resolution of all maps; the weights do not carry over."""

    channels: int = 1
    resolution: int = 1

    def __str__(self) -> str:
        parts = [f"channels/{self.channels}"] * (self.channels > 1) + [f"resolution/{self.resolution}"] * (
            self.resolution > 1
        )
        return " ".join(parts)

    def __call__(self, architecture: Staged) -> Staged:
        if architecture.base % self.channels:
            raise ValueError(f"m={architecture.base} channels cannot be divided by {self.channels}")
        return replace(
            architecture,
            base=architecture.base // self.channels,
            resolution=architecture.resolution * self.resolution,
        )


@dataclass(frozen=True)
class Reuse:
    """ReLU reuse (DeepReShape section 4): every convolution that still has a ReLU is split in groups, one keeps it.

    The count of a layer is divided without making the layer narrower.

    Attributes:
        factor: N, by which the count is divided; 2, 4, 8 and 16 in the paper.
        form: the wiring.
    """

    factor: int
    form: ReuseForm = field(default_factory=ReuseForm)

    def __str__(self) -> str:
        return f"reuse/{self.factor}" + ("" if self.form.kind == "fixed" else f" {self.form.kind}")

    def __call__(self, architecture: Staged) -> Staged:
        reduction = architecture.reduction
        if reduction.reused:
            raise ValueError(f"ReLUs are already reused {reduction.reused[0][1]} times; give one factor for both")
        left = [site for site in architecture.sites() if site.name not in reduction.removed]
        usable = [site for site in left if site.reusable]
        if not usable:
            raise ValueError(f"no ReLU of this {architecture.family} follows a convolution that could be split")
        narrow = min(usable, key=lambda site: site.channels)
        if not 2 <= self.factor <= narrow.channels:
            raise ValueError(
                f"cannot reuse ReLUs {self.factor} times: {narrow.name} has {narrow.channels} channels; "
                f"2 to {narrow.channels} works"
            )
        reused = tuple((site.name, self.factor) for site in usable)
        return replace(architecture, reduction=replace(reduction, reused=reused, form=self.form))
