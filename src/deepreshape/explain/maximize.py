"""What a unit looks for: inputs that maximize it, by gradient ascent with a slope where ReLUs are off.

The gradient of a unit behind ReLUs that are off is 0, so that plain ascent does not move from most starts. With a slope
in the backward pass it does (ProxyGrad: Linse, Barth and Martinetz, IJCNN 2024); what counts is always the value that
the true network gives.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deepreshape.explain.dead import see_modules
from deepreshape.nn.backward import RECTIFIERS, backward_slope, leaky

__all__ = ["MODES", "Maximum", "Mode", "maximize"]

Mode = Literal["plain", "split", "proxy", "redirected"]
MODES: tuple[Mode, ...] = get_args(Mode)
REDIRECTED_STEPS = 16
"""Of a redirected ascent, how many steps pass gradients straight through ReLUs, as Lucid's do."""


@dataclass(frozen=True, eq=False)
class Maximum:
    """Where a gradient ascent came to, from several starts.

    Attributes:
        inputs: the best of each start, shape of the starts, within the box.
        values: of the unit there, shape (N,); of a map, its mean over positions.
        curve: mean over the starts of the best value so far, before the first step and after each.
        moved: how many starts had a gradient at all.
    """

    inputs: Tensor
    values: Tensor
    curve: tuple[float, ...]
    moved: int


def maximize(
    model: nn.Module,
    layer: str,
    unit: int,
    starts: Tensor,
    box: tuple[Tensor, Tensor],
    *,
    mode: Mode = "split",
    slope: float = 0.1,
    steps: int = 200,
) -> Maximum:
    """Gradient ascent from ``starts`` on one unit: x becomes clip(x + r g / |g|), and the best x of all counts.

    Args:
        model: in evaluation mode meanwhile, and left as it was.
        layer: path of the module whose output has the unit.
        unit: number of the channel (of a map) or of the element (of a vector).
        starts: float, shape (N, *shape of an input).
        box: smallest and largest input, which broadcast to one input. A step is 2 / ``steps`` of its diagonal long.
        mode: ``"plain"``, the gradient as it is; ``"split"``, the true forward pass and ``slope`` in the backward
            pass; ``"proxy"``, ``slope`` in both; ``"redirected"``, slope 1 in the backward pass of the first 16 steps.
        slope: where ReLUs are off.
        steps: how many.

    Raises:
        ValueError: if there is no such layer or unit, the box is empty, or a ReLU cannot be reached.
    """
    low, high = (torch.broadcast_to(side, starts.shape[1:]).to(starts) for side in box)
    if not (low < high).all():
        raise ValueError(f"the box goes from {float(low.max()):g} to {float(high.min()):g}; its low end must be lower")
    if mode not in MODES or steps < 1:
        raise ValueError(f"mode is one of {', '.join(MODES)} and steps at least 1, not {mode!r} and {steps}")
    see_modules(model, starts.shape[1:], RECTIFIERS)
    before = {module: module.training for module in model.modules()}
    model.eval()
    rate = 2 * float((high - low).norm()) / steps
    try:
        x = starts.clamp(low, high)
        best, values = x.clone(), _unit(model, layer, unit, x).detach()
        curve, moved = [float(values.mean())], torch.zeros_like(values, dtype=torch.bool)
        for step in range(steps):
            x = x.detach().requires_grad_()
            with _context(model, mode, slope, step):
                (slant,) = torch.autograd.grad(_unit(model, layer, unit, x).sum(), x)
            length = slant.flatten(1).norm(dim=1).view(-1, *(1,) * (x.dim() - 1))
            x = (x.detach() + rate * slant / length.clamp(min=1e-30)).clamp(low, high)
            now = _unit(model, layer, unit, x).detach()
            better = now > values
            best[better], values[better] = x[better], now[better]
            moved |= length.flatten() > 0
            curve.append(float(values.mean()))
    finally:
        for module, was in before.items():
            module.training = was
    return Maximum(best, values, tuple(curve), int(moved.sum()))


def _context(model: nn.Module, mode: Mode, slope: float, step: int) -> AbstractContextManager[None]:
    """In which the gradient of a step is taken."""
    match mode:
        case "split":
            return backward_slope(model, slope)
        case "proxy":
            return leaky(model, slope)
        case "redirected":
            return backward_slope(model, 1.0 if step < REDIRECTED_STEPS else 0.0)
        case "plain":
            return nullcontext()


def _unit(model: nn.Module, layer: str, unit: int, x: Tensor) -> Tensor:
    """The unit's value for each input, (N,); where ``x`` has a gradient, one can be taken."""
    modules = dict(model.named_modules())
    if layer not in modules:
        layers = ", ".join(path for path, module in modules.items() if path and not [*module.children()])
        raise ValueError(f"the network has no layer {layer!r}; its layers are {layers}")
    outputs: list[Tensor] = []
    handle = modules[layer].register_forward_hook(lambda *given: outputs.append(given[2]))
    try:
        with torch.set_grad_enabled(x.requires_grad):
            model(x)
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(f"the layer {layer!r} does not run in a forward pass; choose another")
    if not 0 <= unit < outputs[0].shape[1]:
        raise ValueError(f"the layer {layer!r} has units 0 to {outputs[0].shape[1] - 1}, not {unit}")
    return outputs[0][:, unit].flatten(1).mean(1) if outputs[0].dim() > 2 else outputs[0][:, unit]
