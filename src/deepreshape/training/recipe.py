"""How a network is trained: one frozen value, checked when it comes from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from deepreshape.nn import Faults

__all__ = ["RECIPES", "Recipe", "check_ranges", "recipe_of", "set_options", "with_values"]


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        epochs: passes over the training split.
        batch: images a step.
        optimizer: SGD with Nesterov momentum 0.9, AdamW, or Muon, which makes the steps of convolutions orthogonal
            (:mod:`.muon`) and trains in fewer epochs.
        lr: peak learning rate; about 0.4 for SGD, 0.05 for Muon.
        lr_other: times that rate for all but convolutions: batch norms, biases, the last layer. Muon's rate, which is
            for orthogonal steps, says nothing about theirs.
        schedule: ``"onecycle"`` rises linearly over ``warmup`` of the steps, then falls linearly to 0; ``"cosine"``
            falls along a cosine after the same rise; ``"constant"`` stays after it.
        warmup: share of the steps.
        weight_decay: on convolution and linear weights only, not on batch norm and biases.
        smoothing: of the labels.
        crop: pixels of reflected border from which a window is cut.
        flip: whether images are mirrored at random.
        cutout: side of the square that is blanked at random; 0 for none.
        grow: share of the steps that see smaller images: half the side in its first half, three quarters in its second
            (progressive resizing), for 1/4 and 9/16 of the multiply-adds. Not with masks, which have one size.
        holdout: whether the validation split is held out. A last run, whose settings are fixed, may train on it too;
            then there is no validation accuracy.
        ema: decay of the moving average of the weights that is returned; 0 returns the last weights.
        temperature, distill: T and w of the distillation loss, where there is a teacher.
        relu: trains with the faults of a stochastic ReLU in the loop, as ``stochastic:drop=12,fraction=20`` says
            (:class:`~deepreshape.nn.Faults`); empty for exact ReLUs.
        backward_slope: of ReLUs where they are off, in the backward pass only (ProxyGrad); 0 is a ReLU's own gradient.
        mismatch: weight of the mismatch between the teacher's activation maps and those at masked ReLUs (SENet's PRAM);
            0 does not look at them.
        escape: weight of the penalty on inputs of squares that lie more than four deviations from their channel's mean
            (:func:`~deepreshape.nn.escape`); only networks of HerPNs have any. Without it single images end in NaN.
        frozen_norms: whether batch norms keep the statistics that the network came with, and only their scale and shift
            are trained; for fine-tuning a network that was trained elsewhere, on small batches.
        precision: ``"auto"`` is bfloat16 autocast where the processor has it in hardware.
    """

    epochs: int = 10
    batch: int = 256
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.4
    lr_other: float = 1.0
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: float = 0.2
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    crop: int = 4
    flip: bool = True
    cutout: int = 0
    grow: float = 0.0
    holdout: bool = True
    ema: float = 0.0
    temperature: float = 4.0
    distill: float = 0.9
    relu: str = ""
    backward_slope: float = 0.0
    mismatch: float = 0.0
    escape: float = 1.0
    frozen_norms: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        check_ranges(
            self,
            epochs=(1, 100_000),
            batch=(1, 1_000_000),
            lr=(1e-9, 100),
            lr_other=(1e-9, 1000),
            warmup=(0, 1),
            weight_decay=(0, 1),
            smoothing=(0, 1),
            crop=(0, 64),
            cutout=(0, 1024),
            grow=(0, 1),
            ema=(0, 1),
            temperature=(1e-3, 1000),
            distill=(0, 1),
            mismatch=(0, 1e6),
            backward_slope=(0, 1),
            escape=(0, 1e6),
        )
        if self.relu:
            Faults.parse(self.relu)
        if self.relu and self.mismatch:
            raise ValueError(
                f"mismatch={self.mismatch} compares exact ReLUs and relu={self.relu} has none; leave one out"
            )
        if self.relu and self.backward_slope:
            raise ValueError(
                f"backward_slope={self.backward_slope} is for exact ReLUs and relu={self.relu} has none; leave one out"
            )

    def with_values(self, values: dict[str, Any]) -> Recipe:
        """The recipe with some settings changed; strings are converted.

        Raises:
            ValueError: if a setting is unknown or its value does not fit.
        """
        return with_values(self, values)


def check_ranges(config: Any, **ranges: tuple[float, float]) -> None:
    """See that settings are numbers within these ranges, ends included.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, not {value}")


def with_values(config: Any, values: dict[str, Any]) -> Any:
    """A frozen dataclass with some fields changed and all checked; strings are converted.

    Raises:
        ValueError: if a field is unknown or its value does not fit.
    """
    now = {field.name: getattr(config, field.name) for field in fields(config)}
    unknown = next((name for name in values if name not in now), None)
    if unknown is not None:
        raise ValueError(f"unknown setting {unknown!r}; known are {', '.join(now)}")
    try:
        return TypeAdapter(type(config)).validate_python(now | values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # what the dataclass itself says, with the value in it
            raise ValueError(str(first.get("ctx", {}).get("error", first["msg"]))) from None
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}={first['input']!r}: {first['msg']}") from None


def set_options(values: Mapping[str, Any], usual: Mapping[str, Any], of: str = "") -> list[str]:
    """The words of a command line that set what is not as usual: ``--set``, ``of`` and ``name=value``, for each."""
    changed = [f"{of}{name}={value}" for name, value in values.items() if value != usual[name]]
    return [word for setting in changed for word in ("--set", setting)]


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(epochs=10, batch=64, lr=0.1, crop=1, flip=False, precision="float32"),
    "digit-sums": Recipe(
        epochs=10, batch=64, optimizer="muon", lr=0.05, lr_other=0.2, crop=1, flip=False, precision="float32"
    ),
    "cifar10": Recipe(epochs=20),
    "cifar100": Recipe(epochs=20),
    "cifar100-coarse": Recipe(epochs=20),
    "tinyimagenet": Recipe(epochs=20, crop=8),
    "shapes": Recipe(epochs=10, batch=32, optimizer="muon", lr=0.05, lr_other=0.2, smoothing=0.0, precision="float32"),
    "camvid": Recipe(epochs=20, batch=8, optimizer="muon", lr=0.05, lr_other=0.2, smoothing=0.0, crop=16),
    "camvid-120x96": Recipe(epochs=20, batch=16, optimizer="muon", lr=0.05, lr_other=0.2, smoothing=0.0, crop=16),
}
"""Defaults of the data sets that come by name."""


def recipe_of(data: str) -> Recipe:
    """The recipe of a data set by name; ``Recipe()`` of any other."""
    return RECIPES.get(data, Recipe())
