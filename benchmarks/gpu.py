"""The published comparison on CIFAR-100 within a deadline: for a quarter of an hour of a large GPU.

    python benchmarks/gpu.py --deadline 840 --data-dir data --out runs/gpu
    python benchmarks/gpu.py --tiny --deadline 60 --out runs/tiny        # all phases in seconds, on a CPU

Phases train, distil and reduce the papers' networks in the order of their value (:data:`PHASES`). Each first times some
steps of its own, and takes as many epochs as fit its share of what is left, at most those it wants; one that could not
have its least number is left out, with a line that says so. After each phase its row is appended to
``OUT/results.jsonl`` (fields as in ``benchmarks/results/cifar100.jsonl``, plus ``gpu_minutes`` and ``outside_data``)
and its weights are in ``OUT/models``; the answers of the teacher to some windows of every image are in ``OUT/teacher``,
16 logits each, for students on a CPU. Started again it goes on with the first phase that has no row. Validation
accuracy decides nothing here, so that all but the teacher learn from the validation split too; the test split is read
once for each row.
"""

import argparse
import copy
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from deepreshape.counting import count
from deepreshape.data import Dataset, Split
from deepreshape.experiments.points import measurements
from deepreshape.models import Architecture, architecture, build
from deepreshape.models.saved import Manifest, load, save, weights_digest
from deepreshape.pricing.calibrate import machine
from deepreshape.removal import SNL, Taylor, linearize
from deepreshape.training import Progress, Recipe, teach, train
from deepreshape.training.runs import RESULTS, claim_folder, read_rows, write_rows

TIMED_STEPS = 8
"""From which a phase learns how long its epochs take."""
SEARCH_SHARE = 0.15
"""Of a reduction's epochs, in the search."""
RESERVE = 0.04
"""Of the deadline, for reading the test split and writing."""
WINDOWS = 4
"""Of every image, that the teacher answers for others."""


@dataclass(frozen=True)
class Phase:
    """A network that is trained, or one of an earlier phase that is reduced.

    Attributes:
        id: of its row and folder.
        network: its name.
        epochs, least: that it wants, and without which it is left out.
        start: the phase whose network is reduced; empty for training from nothing.
        budget: ReLUs that are left.
        method: that reduces.
        teacher: the phase whose network distils into it.
    """

    id: str
    network: str
    epochs: int
    least: int
    start: str = ""
    budget: int = 0
    method: str = ""
    teacher: str = ""


def reductions(start: str, network: str, budgets: tuple[int, ...], epochs: int, teacher: str) -> tuple[Phase, ...]:
    """A chain: each budget from the network of the one before."""
    ids = [f"{start}-taylor-{budget}" for budget in budgets]
    before = [start, *ids]
    return tuple(
        Phase(name, network, epochs, 4, source, budget, "taylor", teacher)
        for name, source, budget in zip(ids, before, budgets, strict=False)
    )


PHASES = (
    Phase("resnet18", "resnet18", 100, 20),
    Phase("hrn", "hrn-5x5x3x", 80, 20, teacher="resnet18"),
    *reductions("resnet18", "resnet18", (100_000, 50_000, 25_000, 12_900), 46, "hrn"),
    Phase("resnet18-snl-50000", "resnet18", 46, 8, "resnet18", 50_000, "snl", "hrn"),
    *reductions("hrn", "hrn-5x5x3x", (100_000, 50_000), 30, "hrn"),
    Phase("wrn", "wideresnet22-8", 60, 15, teacher="hrn"),
    *reductions("wrn", "wideresnet22-8", (180_000, 150_000), 20, "wrn"),
)
TINY = {"resnet18": "resnet18-m2", "hrn-5x5x3x": "hrn-2x2x2x-m2", "wideresnet22-8": "wideresnet22-8-m2"}


def tiny(phase: Phase) -> Phase:
    """The phase with a network of few channels, its budget in proportion."""
    small = TINY[phase.network]
    networks = (architecture(name, (3, 32, 32), 100) for name in (small, phase.network))
    few, many = (count(build(network, "meta"), (3, 32, 32)).total.relus for network in networks)
    return replace(phase, network=small, budget=phase.budget * few // many, epochs=2, least=1)


def tiny_data() -> Dataset:
    """96 images of 100 classes, each class a colour of its own under noise: enough to see that all of it runs."""
    random = torch.Generator().manual_seed(0)
    colours = torch.randint(40, 216, (100, 3, 1, 1), generator=random)

    def split(n: int) -> Split:
        labels = torch.arange(n) % 100
        noise = torch.randint(-40, 40, (n, 3, 32, 32), generator=random)
        return Split((colours[labels] + noise).to(torch.uint8), labels)

    names = tuple(f"class {number}" for number in range(100))
    return Dataset("tiny", split(64), split(32), split(50), names, (0.5,) * 3, (0.25,) * 3)


class TimedError(Exception):
    """Ends a run whose steps have been timed."""


def seconds_a_step(network: nn.Module, data: Dataset, recipe: Recipe, teacher: nn.Module | None) -> float:
    """The mean over the second half of :data:`TIMED_STEPS` steps, when caches are warm; the network is used up."""
    device = next(network.parameters()).device
    times: list[float] = []

    def watch(progress: Progress) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic())
        if len(times) == TIMED_STEPS:
            raise TimedError

    with suppress(TimedError):
        train(network, data, recipe, seed=0, teacher=teacher, progress=watch)
    later = times[len(times) // 2 :]
    return (later[-1] - later[0]) / max(1, len(later) - 1)


class Comparison:
    """The phases of one folder, until a deadline."""

    def __init__(self, data: Dataset, phases: tuple[Phase, ...], recipe: Recipe, deadline: float, out: Path) -> None:
        self.data, self.phases, self.recipe, self.out = data, phases, recipe, out
        self.begin = time.monotonic()
        self.end = self.begin + deadline * (1 - RESERVE)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rate = 0.0

    def run(self) -> None:
        """All phases that have no row yet."""
        claim_folder(self.out, {"data": self.data.name, "phases": [asdict(phase) for phase in self.phases]})
        results = self.out / RESULTS
        rows = read_rows(results) if results.is_file() else []
        done = {row["id"] for row in rows}
        for number, phase in enumerate(self.phases):
            if phase.id in done:
                continue
            missing = [name for name in (phase.start, phase.teacher) if name and name not in done]
            if missing:
                print(f"{phase.id}: left out, as there is no {missing[0]}", file=sys.stderr)
                continue
            row = self._phase(phase, [later for later in self.phases[number:] if later.id not in done])
            if row:
                rows.append(row)
                done.add(phase.id)
                write_rows(results, rows)
                print(json.dumps(row), flush=True)
            if phase.id == "hrn" and phase.id in done:
                self._answers("hrn")

    def _phase(self, phase: Phase, left: list[Phase]) -> dict[str, object] | None:
        started = time.monotonic()
        network = self._load(phase.start) if phase.start else self._fresh(phase.network)
        teacher = self._load(phase.teacher) if phase.teacher else None
        an_epoch = self._seconds_an_epoch(network, teacher, reduces=bool(phase.start))
        epochs = self._epochs(phase, left, an_epoch)
        if epochs < phase.least:
            left_over = self.end - time.monotonic()
            print(f"{phase.id}: left out, {left_over:.0f} s hold {epochs} of {phase.least} epochs", file=sys.stderr)
            return None
        recipe = replace(self.recipe, epochs=epochs)
        if phase.start:
            search = max(1, round(epochs * SEARCH_SHARE))
            settings = {"budget": phase.budget, "search_epochs": search, "mismatch": 0.0}
            method = SNL(**settings) if phase.method == "snl" else Taylor(**settings)
            recipe = replace(recipe, epochs=max(1, epochs - search), lr=recipe.lr / 5)
            epochs = search + recipe.epochs
            network, _ = linearize(network, method, self.data, recipe=recipe, teacher=teacher)
        else:
            train(network, self.data, recipe, seed=0, teacher=teacher)
        return self._row(phase, network, epochs, started)

    def _row(self, phase: Phase, network: nn.Module, epochs: int, started: float) -> dict[str, object]:
        self._save(phase, network)
        minutes = round((time.monotonic() - started) / 60, 2)
        on_gpu = self.device.type == "cuda"
        return {
            "id": phase.id,
            "network": phase.network,
            "method": phase.method or "all",
            "plan": "pixels" if phase.method else "all ReLUs",
            "granularity": "pixel" if phase.method else "layer",
            "budget": phase.budget or None,
            **measurements(network, self.data),
            "seed": 0,
            "epochs": epochs,
            "cpu_minutes": 0.0 if on_gpu else minutes,
            "gpu_minutes": minutes if on_gpu else 0.0,
            "outside_data": False,
            "teacher": phase.teacher or None,
            "machine": torch.cuda.get_device_name() if on_gpu else machine()["cpu"],
            "command": f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}",
        }

    def _epochs(self, phase: Phase, left: list[Phase], an_epoch: float) -> int:
        """How many fit the phase's share of the time left; others' epochs are taken to cost by their multiply-adds."""
        macs = {name: self._macs(name) for name in {other.network for other in left}}
        cost = {other.id: other.epochs * an_epoch * macs[other.network] / macs[phase.network] for other in left}
        share = cost[phase.id] / sum(cost.values())
        remaining = self.end - time.monotonic()
        # a share that cannot hold its least takes from those after it
        fitting = max(int(remaining * share / an_epoch), min(phase.least, int(remaining / an_epoch)))
        return min(phase.epochs, fitting)

    def _macs(self, network: str) -> int:
        shape = self.data.shape
        return count(build(architecture(network, shape, len(self.data.class_names)), "meta"), shape).total.macs

    def _seconds_an_epoch(self, network: nn.Module, teacher: nn.Module | None, *, reduces: bool) -> float:
        """Seconds of an epoch of a copy; a reduction's steps watch the gates too, which is counted as a fifth more."""
        recipe = replace(self.recipe, epochs=-(-TIMED_STEPS * self.recipe.batch // len(self.data.whole)))
        a_step = seconds_a_step(copy.deepcopy(network), self.data, recipe, teacher)
        return a_step * -(-len(self.data.whole) // self.recipe.batch) * (1.2 if reduces else 1.0)

    def _fresh(self, network: str) -> nn.Module:
        made_for = architecture(network, self.data.shape, len(self.data.class_names))
        return build(made_for, seed=0).to(self.device)

    def _load(self, phase: str) -> nn.Module:
        return load(self.out / "models" / phase).to(self.device)

    def _save(self, phase: Phase, network: nn.Module) -> None:
        design = cast(Architecture, network.architecture)
        save(network, self.out / "models" / phase.id, Manifest.of(design, self.data, (asdict(phase),)), half=True)

    def _answers(self, phase: str) -> None:
        network = self._load(phase)
        name = f"{phase} {weights_digest(network)}"
        teach(network, self.data, self.out / "teacher", views=WINDOWS, crop=self.recipe.crop, teacher=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deadline", type=float, required=True, help="seconds from the start")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tiny", action="store_true", help="few channels, 96 images, two epochs")
    given = parser.parse_args()
    if given.deadline <= 0:
        parser.error(f"--deadline must be more than 0 seconds, not {given.deadline:g}")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    recipe = Recipe(batch=768, lr=0.6, warmup=0.15, ema=0.999, holdout=False)
    data, phases = (tiny_data(), tuple(map(tiny, PHASES))) if given.tiny else (None, PHASES)
    if given.tiny:
        torch.set_num_threads(1)
    try:
        if data is None:
            data = Dataset.load("cifar100", given.data_dir)
        else:
            recipe = replace(recipe, batch=32, lr=0.1, ema=0.0, precision="float32")
        Comparison(data, phases, recipe, given.deadline, given.out).run()
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
