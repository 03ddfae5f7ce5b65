"""Random convolutional networks of everything that is claimed to run privately, and the check that each has to pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from random import Random
from typing import Any

import numpy as np
import torch
from support.lowered import answers
from support.network_arithmetic import arithmetic
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from deepreshape.counting import count
from deepreshape.pricing.estimate import estimate_steps
from deepreshape.private.crypto.he.packing import Convolution
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.encoding import digest, from_bytes, to_bytes
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import ProgramError, Relu
from deepreshape.private.program.program import Program
from deepreshape.private.program.quantize import Lowered

SIDE = 10
"""The largest side of a map."""


class Step(nn.Module):
    """A function of a map and of layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


class RandomNetwork(nn.Module):
    """Steps one behind another, then one of several ends; ``words`` tells which they are."""

    def __init__(self, seed: int):
        super().__init__()
        self.draw = Random(seed)  # noqa: S311 - it draws networks, no keys
        torch.manual_seed(seed)
        self.words: list[str] = []
        self.relu = nn.ReLU(inplace=self.draw.random() < 0.5)
        self.shape = [self.draw.choice([1, 2, 3]), self.draw.randint(5, 8), self.draw.randint(5, 8)]
        self.input = tuple(self.shape)
        self.norm_input = self.draw.random() < 0.2
        self.steps = nn.ModuleList([self._conv(), *(self._step() for _ in range(self.draw.randint(2, 6)))])
        self.end = self._end()

    def forward(self, x: Tensor) -> Any:
        if self.norm_input:
            x = (x - 0.3) / 1.7
        for step in self.steps:
            x = step(x)
        return self.end(x)

    def _try(self, word: str, step: nn.Module) -> nn.Module | None:
        """The step, if a map of the present shape can go through it and stays small."""
        try:
            with torch.no_grad():
                out = step.eval()(torch.zeros(2, *self.shape))
        except (RuntimeError, ValueError):
            return None
        shape = [*out.shape[1:]]
        # a window of a max pool that lies wholly in its padding gives minus infinity
        if not out.isfinite().all() or len(shape) != 3 or not min(shape) >= 1 or max(shape[1:]) > SIDE or shape[0] > 12:
            return None
        self.shape = shape
        self.words.append(word)
        return step

    def _step(self) -> nn.Module:
        kinds = [self._conv, self._activation, self._activation, self._pool, self._branch, self._move, self._resize]
        while True:
            step = self.draw.choice(kinds)()
            if step is not None:
                return step

    def _conv(self) -> nn.Module:
        pick, channels = self.draw, self.shape[0]
        while True:
            groups = pick.choice([1, 1, 1, channels, 2])
            kernel = (pick.choice([1, 2, 3, 3, 5]), pick.choice([1, 3, 3]))
            kernel = kernel if pick.random() < 0.3 else (kernel[0], kernel[0])
            wide = groups * pick.randint(1, max(1, 8 // groups))
            dilation, stride = pick.choice([1, 1, 1, 2]), pick.choice([1, 1, 2, (2, 1)])
            padding: Any = pick.choice([0, kernel[0] // 2, 1, (1, 0), "same"])
            padding = padding if stride == 1 or padding != "same" else 0
            if channels % groups:
                continue
            layer: nn.Module = nn.Conv2d(channels, wide, kernel, stride, padding, dilation, groups, pick.random() < 0.7)
            if pick.random() < 0.1:
                layer = nn.utils.parametrizations.spectral_norm(layer)
            if pick.random() < 0.1:
                with torch.no_grad():
                    next(layer.parameters()).mul_(10.0 ** pick.uniform(-2, 2))
            layers = [layer, nn.BatchNorm2d(wide)] if pick.random() < 0.5 else [layer]
            step = self._try(f"conv {kernel} {stride} {padding} {dilation} {groups}", nn.Sequential(*layers))
            if step is not None:
                return step

    def _activation(self) -> nn.Module | None:
        channels, pick = self.shape[0], self.draw
        word, step = pick.choice(
            [
                ("shared relu", self.relu),
                ("relu", Step(lambda x: F.relu(x))),
                ("relu6", nn.ReLU6(inplace=True)),
                ("leaky", nn.LeakyReLU(0.2)),
                ("prelu", nn.PReLU(channels)),
                ("clamp", Step(lambda x: x.clamp(-0.7, 0.9))),
                ("hard sigmoid", nn.Hardsigmoid()),
                ("hard swish", nn.Hardswish()),
                ("dropout, relu", nn.Sequential(nn.Dropout2d(), nn.ReLU(inplace=True))),
                ("read again", Step(lambda x: _read_again(x))),
            ]
        )
        return self._try(word, step)

    def _pool(self) -> nn.Module | None:
        pick = self.draw
        kernel, stride = pick.choice([2, 3, (2, 3)]), pick.choice([1, 2, None])
        padding, ceil = pick.choice([0, 0, 1]), pick.random() < 0.3
        counts, dilation = pick.random() < 0.5, pick.choice([1, 1, 2])
        word, step = pick.choice(
            [
                ("max pool", nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)),
                ("max pool", nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)),
                ("average pool", nn.AvgPool2d(kernel, stride, padding, ceil, counts)),
                ("adaptive average", nn.AdaptiveAvgPool2d(pick.randint(1, 4))),
                ("adaptive maximum", nn.AdaptiveMaxPool2d(pick.randint(1, 4))),
            ]
        )
        return self._try(f"{word} {kernel} {stride} {padding} {ceil}", step)

    def _branch(self) -> nn.Module | None:
        channels, pick = self.shape[0], self.draw
        layer, other = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1, bias=False)
        word, step = pick.choice(
            [
                ("skip", Step(lambda x, a, b: x + b(F.relu(a(x))), layer, other)),
                ("skip in place", Step(lambda x, a: _add_in_place(a(x), x), layer)),
                ("shared twice", Step(lambda x, a: a(F.relu(a(x))) + a(x), layer)),
                ("two branches", Step(lambda x, a, b: F.relu(a(x) - 0.5 * b(x)), layer, other)),
                ("cat", Step(lambda x, a: torch.cat([x, F.relu(a(x))], 1), other)),
                ("maximum", Step(lambda x, a: torch.maximum(x, a(x)), other)),
                ("gate", Step(lambda x, a: F.relu(x + a(x.mean((2, 3), keepdim=True))), other)),
                ("excitation", Step(lambda x, a: x * F.hardsigmoid(a(x.mean((2, 3), keepdim=True))), other)),
                ("product", Step(lambda x, a: a(F.relu(x)) * x, other)),
            ]
        )
        return self._try(word, step)

    def _move(self) -> nn.Module | None:
        channels, pick = self.shape[0], self.draw
        word, step = pick.choice(
            [
                ("shuffle", nn.ChannelShuffle(2)),
                ("halves", Step(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1))),
                ("pad", nn.ZeroPad2d((1, 0, 0, 2))),
                ("reflect", nn.ReflectionPad2d(1)),
                ("flip", Step(lambda x: x.flip(3) * 0.5 + x)),
                ("unshuffle", nn.PixelUnshuffle(2)),
                ("linear on channels", Step(_linear_on_channels, nn.Linear(channels, pick.randint(1, 6)))),
            ]
        )
        return self._try(word, step)

    def _resize(self) -> nn.Module | None:
        channels, pick = self.shape[0], self.draw
        kernel, padding = pick.choice([(2, 0), (3, 1), (4, 1), (3, 0)])
        word, step = pick.choice(
            [
                ("nearest", nn.Upsample(scale_factor=2)),
                ("bilinear", nn.Upsample(scale_factor=2, mode="bilinear")),
                ("transposed", nn.ConvTranspose2d(channels, pick.randint(1, 6), kernel, 2, padding, padding % 2)),
            ]
        )
        return self._try(word, step)

    def _end(self) -> nn.Module:
        channels, height, width = self.shape
        size = channels * height * width
        ends = {
            "mean, linear": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)),
            "flatten, linear": nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Linear(6, 4)),
            "map": nn.Conv2d(channels, 3, 1),
            "dictionary": Step(lambda x, a: {"out": a(x.amax((2, 3)))}, nn.Linear(channels, 3)),  # pyright: ignore
            "two": Step(lambda x, a: (a(x.mean((2, 3))), 2 * x), nn.Linear(channels, 3)),  # pyright: ignore
        }
        word = self.draw.choice([*ends])
        self.words.append(word)
        return ends[word]


def _read_again(x: Tensor) -> Tensor:
    """An in-place ReLU whose input is added again."""
    y = x.clone()
    z = F.relu(y, inplace=True)
    return z + y


def _add_in_place(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return F.relu_(x)


def _linear_on_channels(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def built(seed: int) -> tuple[RandomNetwork, np.ndarray]:
    """A network with statistics of its own, and inputs."""
    model = RandomNetwork(seed)
    x = torch.randn(8, *model.input, generator=torch.Generator().manual_seed(seed))
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(x)
    return model.eval(), x.numpy()


def miscounted(model: RandomNetwork) -> str:
    """What is wrong with the counts of a network by the arithmetic of its shapes; empty if nothing is."""
    wanted, counted = arithmetic(model, torch.zeros(1, *model.input)), count(model, model.input).total
    for name in ("relus", "maxpool_comparisons", "macs", "squares"):
        if getattr(counted, name) != wanted[name]:
            return f"{getattr(counted, name)} {name} counted, and there are {wanted[name]}"
    return ""


def mispriced(model: RandomNetwork, program: Program) -> str:
    """What is wrong with the layer records of a network beside the plan of its program; empty if nothing is.

    Each linear layer that was counted must be one of the plan, which has others too: norms and slopes that could not be
    folded; two with nothing between them may be one there. A program has the comparisons of the network's activations,
    or fewer where some are the same.
    """
    try:
        plan = Plan(program.public())
    except ProgramError as error:
        return f"refused by the plan: {error}"
    planned = Counter(map(_geometry, plan.convolutions.values()))
    steps = estimate_steps(count(model, model.input).layers)
    priced = Counter(_geometry(each) for _, each in steps.linear.values())
    while missing := priced - planned:
        joined = (layers for layers in _with_two_as_one(priced) if (layers - planned).total() < missing.total())
        if not (priced := next(joined, Counter[Convolution]())):
            break
    if missing:
        return f"a layer is priced as {next(iter(missing))}, and the plan has {[*planned]}"
    total = arithmetic(model, torch.zeros(1, *model.input))
    relus = sum(op.count(program.values[op.inputs[0]]) for op in program.ops if isinstance(op, Relu))
    most = total["relus"] + total["pairs"] + total["maxpool_comparisons"]
    return f"the program has {relus} comparisons, and the network {most}" if relus > most else ""


def _with_two_as_one(layers: Counter[Convolution]) -> Iterator[Counter[Convolution]]:
    """The layers with two of them as one, where the second may read what the first gives and one has a 1x1 kernel."""
    for first, second in permutations(layers.elements(), 2):
        gives = [(side - first.kernel) // first.stride + 1 for side in (first.height, first.width)]
        around = {side - given for side, given in zip((second.height, second.width), gives, strict=True)}
        if first.out_channels != second.in_channels or len(around) > 1:
            continue
        (padded,) = around
        rest = layers - Counter([first, second])
        if second.kernel == 1 and not padded:
            both = replace(first, out_channels=second.out_channels, stride=first.stride * second.stride)
            yield rest + Counter([both])
        if first.kernel == first.stride == 1 and padded >= 0:
            yield rest + Counter([replace(second, in_channels=first.in_channels)])


def _geometry(convolution: Convolution) -> Convolution:
    """With its padding as a part of its image, and without the widths of weights, which rest on calibration."""
    height, width = (side + 2 * convolution.padding for side in (convolution.height, convolution.width))
    return replace(convolution, height=height, width=width, padding=0, weight_bits=1, sum_bits=1)


def check(seed: int) -> str:
    """What is wrong with the program, the counts or the prices of a random network; empty if nothing is."""
    model, x = built(seed)
    if problem := miscounted(model):
        return problem
    with torch.no_grad():
        outputs = model.double()(torch.from_numpy(x).double())
    model.float()
    parts = (
        [*outputs.values()] if isinstance(outputs, dict) else [*outputs] if isinstance(outputs, tuple) else [outputs]
    )
    wanted = parts[0].numpy() if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1).numpy()
    try:
        lowered: Lowered = lower(model, x)
    except ProgramError as error:
        return f"refused: {error}"
    apart = np.abs(answers(lowered, x) - wanted)
    if not (apart <= lowered.error + 1e-6).all():
        return f"{apart.max():.3g} off, and the bound is {lowered.error.max():.3g}"
    if apart.max() > 0.1 * np.abs(wanted).max() and not lowered.losses:
        return f"{apart.max():.3g} off of {np.abs(wanted).max():.3g}, and nothing says so"
    if digest(from_bytes(to_bytes(lowered.program))) != digest(lowered.program):
        return "its bytes are those of another program"
    return mispriced(model, lowered.program)
