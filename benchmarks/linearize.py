"""Our SNL beside SNL as its authors published it: seconds a search step, peak memory, accuracy after equal time.

    python benchmarks/linearize.py speed --out benchmarks/results/linearize_speed.json
    python benchmarks/linearize.py accuracy --model whole --budget 50000 --minutes 20 --out accuracy.json

The published procedure is stated here on the seam that every method of ours uses, from a reading of the authors' code,
with its faults: gates free to leave [0, 1] and computed by three elementwise products, a teacher that is differentiated
through, Adam at 1e-3 on everything, lambda raised by 1.1 after each epoch (from the fifth on) that brings no new least
count, gates above 0.01 kept whole. Rows between the two undo one fault after the other. Every measurement of speed runs
in a process of its own, because peak memory is the process's; rounds alternate, and the median and range over rounds
are reported. ``accuracy`` gives each procedure as many epochs of search as fit half the time, and as many of
fine-tuning, and reads validation accuracy.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepreshape.counting import count
from deepreshape.data import Dataset, Split
from deepreshape.models import architecture, build
from deepreshape.models.saved import load, manifest_of
from deepreshape.pricing.calibrate import machine
from deepreshape.removal import SNL, linearize
from deepreshape.removal.mask_search import MaskSearch, SearchMethod
from deepreshape.removal.method import Reduced, Task
from deepreshape.removal.sites import Masks, keep_best
from deepreshape.training import RECIPES, Progress

THRESHOLD = 1e-2
PROCEDURES = ("published", "no teacher gradient", "fused gates", "ours")
"""From the published one to ours, one change after the other."""


class EnoughError(Exception):
    """Ends a search that has run for as many steps as are timed."""


class ProductGate(nn.Module):
    """c relu(x) + (1 - c) x, as autograd keeps it."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(mask.shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(nn.functional.relu(x), self.gate) + torch.mul(x, 1 - self.gate)


class Differentiated(nn.Module):
    """A teacher whose gradients are computed, and thrown away."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.network(x)


@dataclass(frozen=True)
class Published(SearchMethod):
    """Settings of SNL as published."""

    exact: ClassVar[bool] = False

    search_epochs: int = 2000
    search_lr: float = 1e-3
    search_optimizer: str = "adamw"  # without decay it is Adam
    search_schedule: str = "constant"
    strength: float = 1e-5
    growth: float = 1.1
    patience: int = 5
    teacher_gradient: bool = True

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        search = PublishedSearch(self, network, task)
        if self.teacher_gradient:
            task = replace(task, teacher=Differentiated(task.teacher))
        return self.find(search, replace(task, recipe=replace(task.recipe, warmup=0.0)))


class PublishedSearch(MaskSearch):
    """Ends when the gates above the threshold are within the budget, which they then fall short of or meet."""

    strength: Tensor
    least: Tensor
    epoch: Tensor

    def __init__(self, method: Published, network: nn.Module, task: Task) -> None:
        super().__init__(network, task)
        self.method = method
        for path, mask in task.masks.items():
            network.set_submodule(path, ProductGate(mask))
        total = sum(int(mask.sum()) for mask in task.masks.values())
        self.register_buffer("strength", torch.tensor(method.strength, dtype=torch.float64))
        self.register_buffer("least", torch.tensor(total))
        self.register_buffer("epoch", torch.tensor(0))
        self.an_epoch = -(-len(task.data.train) // task.recipe.batch)

    def gates(self) -> list[nn.Parameter]:
        return [module.gate for module in self.network.modules() if isinstance(module, ProductGate)]

    @property
    def gate_lr(self) -> float:
        return self.method.search_lr

    def penalty(self) -> Tensor:
        return self.strength.float() * torch.stack([gate.abs().sum() for gate in self.gates()]).sum()

    @torch.no_grad()
    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        if (step + 1) % self.an_epoch:
            return
        self.epoch += 1
        left = sum(int((gate > THRESHOLD).sum()) for gate in self.gates())
        if left < self.least:
            self.least.fill_(left)
        elif self.epoch >= self.method.patience:
            self.strength.mul_(self.method.growth)

    def over(self) -> bool:
        return int(self.least) <= self.method.budget

    def masks(self) -> Masks:
        gates = dict(zip(self.where, self.gates(), strict=True))
        above = {path: gates[path] > THRESHOLD for path in gates}
        if sum(int(mask.sum()) for mask in above.values()) <= self.method.budget:
            return {path: mask.detach().clone() for path, mask in above.items()}
        return keep_best(gates, self.where, self.method.budget, self.seed)  # out of time: what it would come to


def method_of(procedure: str, budget: int, search_epochs: int) -> SearchMethod:
    """The method that states a procedure."""
    if procedure in ("published", "no teacher gradient"):
        return Published(budget, search_epochs=search_epochs, teacher_gradient=procedure == "published")
    if procedure == "fused gates":  # gates in [0, 1] that the backward pass recomputes from the input; nothing annealed
        return SNL(budget, search_epochs=search_epochs, soft=1.0)
    return SNL(budget, search_epochs=search_epochs)


def noise(images: int) -> Dataset:
    """Images of CIFAR-100's shape: time and memory do not depend on what is in them, and real ones peak when loaded."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, 100, (n,), generator=generator))

    names = tuple(f"class {label}" for label in range(100))
    return Dataset("cifar100", split(images), split(100), split(1), names, (0.5,) * 3, (0.25,) * 3)


def time_steps(procedure: str, network: str, steps: int, batch: int) -> dict[str, float]:
    """Processor seconds of a search step, and this process's peak memory."""
    # two epochs, so that both halves of ours are in it: gates alone, and gates pulled to a mask
    data = noise(batch * -(-(steps + 2) // 2))
    model = build(architecture(network, data.shape, len(data.class_names)), seed=0)
    recipe = replace(RECIPES[data.name], batch=batch)
    started: list[float] = []

    def progress(phase: str, at: Progress) -> None:
        started.append(time.process_time())
        if len(started) > steps:
            raise EnoughError

    budget = count(model, data.shape).total.relus // 2
    with suppress(EnoughError):
        linearize(model, method_of(procedure, budget, 2), data, recipe=recipe, progress=progress)
    laps = [after - before for before, after in pairwise(started)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds_a_step": statistics.median(laps), "peak_mib": peak}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Every procedure in processes of its own, in turn, several rounds."""
    rounds_of: dict[str, list[dict[str, float]]] = {procedure: [] for procedure in PROCEDURES}
    for _ in range(options.rounds):
        for procedure, rounds in rounds_of.items():
            words = ["one", procedure, "--network", options.network]
            words += ["--steps", str(options.steps), "--batch", str(options.batch), "--threads", str(options.threads)]
            done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
            rounds.append(json.loads(done.stdout))
    rows = []
    for procedure, rounds in rounds_of.items():
        row: dict[str, Any] = {"procedure": procedure}
        for name in ("seconds_a_step", "peak_mib"):
            values = [measured[name] for measured in rounds]
            row[name] = {
                key: round(of(values), 4) for key, of in (("median", statistics.median), ("min", min), ("max", max))
            }
        rows.append(row)
    return {"network": options.network, "batch": options.batch, "n": options.rounds, "rows": rows}


def equal_time(options: argparse.Namespace) -> dict[str, Any]:
    """Validation accuracy after the epochs that fit the time, half of them search and half fine-tuning."""
    model = load(options.model)
    manifest = manifest_of(model)
    data = Dataset.load(manifest.dataset)
    recipe = replace(RECIPES[data.name], lr=options.lr)
    rows = []
    for procedure in ("published", "ours"):
        for seed in range(options.seeds):
            an_epoch = seconds_an_epoch(procedure, model, data, options.budget)
            epochs = max(1, int(30 * options.minutes / an_epoch))
            started = time.process_time()
            _, record = linearize(
                model,
                method_of(procedure, options.budget, epochs),
                data,
                recipe=replace(recipe, epochs=epochs),
                seed=seed,
            )
            rows.append(
                {
                    "procedure": procedure,
                    "seed": seed,
                    "search_epochs": epochs,
                    "epochs": epochs,
                    "relus": record.relus,
                    "top1_validation": record.top1_validation,
                    "cpu_minutes": round((time.process_time() - started) / 60, 2),
                }
            )
    return {"model": options.model.name, "budget": options.budget, "minutes": options.minutes, "rows": rows}


def seconds_an_epoch(procedure: str, model: nn.Module, data: Dataset, budget: int) -> float:
    """Processor seconds of an epoch of this procedure's search, from a few steps of it."""
    laps: list[float] = []

    def progress(phase: str, at: Progress) -> None:
        laps.append(time.process_time())
        if len(laps) > 4:
            raise EnoughError

    with suppress(EnoughError):
        linearize(model, method_of(procedure, budget, 1), data, progress=progress)
    return (laps[-1] - laps[0]) / (len(laps) - 1) * len(data.train) / RECIPES[data.name].batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "accuracy", "one"))
    parser.add_argument("procedure", nargs="?", choices=PROCEDURES)
    parser.add_argument("--network", default="resnet18-m16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--budget", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "one":
        print(json.dumps(time_steps(options.procedure, options.network, options.steps, options.batch)))
        return
    result = speed(options) if options.what == "speed" else equal_time(options)
    result |= {
        "command": " ".join(["python", "benchmarks/linearize.py", *sys.argv[1:]]),
        "machine": machine(),
        "threads": options.threads,
        "versions": {name: version(name) for name in ("deepreshape", "torch")},
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
