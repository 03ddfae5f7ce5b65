"""A ResNet-18 as torchvision builds it, on photos in folders: trained, then reduced to 25 % and 10 % of its ReLUs.

    python benchmarks/acceptance.py images tinyimagenet --out photos
    python benchmarks/acceptance.py run photos --work runs --seeds 0 1 --out benchmarks/results/acceptance.jsonl

The photos are those of the first twenty classes of Tiny-ImageNet, 64x64; its official validation images of these
classes are the test. ``images`` takes a folder with ``wnids.txt`` and archives of ``train/CLASS`` and ``val/CLASS``.
The network is written down below as a user would bring it: a 7x7 stem, a max pool, in-place adds, one ReLU module used
twice in a block. Removal is one call with its defaults. A run that was stopped goes on from its checkpoints; processor
minutes add up over all parts of it.
"""

import argparse
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deepreshape as dr
from deepreshape.pricing.calibrate import machine
from deepreshape.removal import Taylor
from deepreshape.training import accuracy
from deepreshape.training.runs import append_row

CLASSES = 20
SHARES = 0.25, 0.10
FIRST = dr.Recipe(epochs=20, batch=64, optimizer="muon", lr=0.05, lr_other=0.2, crop=8, grow=0.6)


class Block(nn.Module):
    """Two 3x3 convolutions and a skip."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016) with the stem for large images."""

    def __init__(self, classes: int, base: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [base, base, 2 * base, 4 * base, 8 * base]
        for at in range(1, 5):
            blocks = Block(widths[at - 1], widths[at], min(at, 2)), Block(widths[at], widths[at], 1)
            self.add_module(f"layer{at}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * base, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for at in range(1, 5):
            x = self.get_submodule(f"layer{at}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def write_images(source: Path, to: Path) -> None:
    """Folders ``train/CLASS`` and ``val/CLASS`` of the first classes, out of archives that hold them for all."""
    wanted = set((source / "wnids.txt").read_text().split()[:CLASSES])
    for archive in sorted(source.glob("*.tar.xz")):
        with tarfile.open(archive) as members:
            for member in members:
                part, *name = Path(member.name).parts
                if part in ("train", "val") and len(name) == 2 and name[0] in wanted:
                    place = to / part / name[0] / name[1]
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(members.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]


def first_training(data: dr.Dataset, seed: int, base: int, folder: Path) -> tuple[nn.Module, float]:
    """The network with all its ReLUs, and the processor minutes of its training."""
    torch.manual_seed(seed)
    network = ResNet18(len(data.class_names), base)
    weights, record = folder / "whole.safetensors", folder / "whole.json"
    if not record.is_file():
        trained = dr.train(network, data, FIRST, seed=seed, folder=folder / "first")
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
        record.write_text(json.dumps({"cpu_minutes": round(trained.seconds / 60, 2)}))
    network.load_state_dict(load_file(weights))
    return network.eval(), json.loads(record.read_text())["cpu_minutes"]


def rows(photos: Path, work: Path, seeds: list[int], base: int) -> Iterator[dict[str, object]]:
    """One result for each seed and budget."""
    data = dr.Dataset.from_folder(photos)
    for seed in seeds:
        folder = work / f"m{base}-seed{seed}"
        network, minutes = first_training(data, seed, base, folder)
        top1 = accuracy(network, data, data.test)
        relus = dr.count(network, data.shape).total.relus
        for share in SHARES:
            budget = round(share * relus)
            # what a user types: no rewriting, no setting but the budget
            reduced, removal = dr.linearize(network, Taylor(budget), data, seed=seed, folder=folder / str(budget))
            after = accuracy(reduced, data, data.test)
            yield {
                "network": f"resnet18-7x7-maxpool-m{base}",
                "classes": len(data.class_names),
                "train_images": len(data.train),
                "test_images": len(data.test),
                "seed": seed,
                "relus_before": relus,
                "relus": removal.relus,
                "share": share,
                "top1_test_before": top1,
                "top1_test": after,
                "drop": round(top1 - after, 3),
                "top1_validation": [removal.top1_before, removal.top1_searched, removal.top1_validation],
                "cpu_minutes": removal.minutes,
                "cpu_minutes_first_training": minutes,
                "first": asdict(FIRST),
                "removal": removal.settings | {"recipe": removal.recipe},
                "threads": torch.get_num_threads(),
                "machine": machine(),
            }


def main() -> None:
    """Read the command line and do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images")
    images.add_argument("source", type=Path)
    images.add_argument("--out", type=Path, required=True)
    run = commands.add_parser("run")
    run.add_argument("photos", type=Path)
    run.add_argument("--work", type=Path, required=True)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    run.add_argument("--base", type=int, default=64, help="channels of the first stage; torchvision's are 64")
    run.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "images":
        write_images(given.source, given.out)
        return
    given.out.unlink(missing_ok=True)
    for row in rows(given.photos, given.work, given.seeds, given.base):
        append_row(given.out, row)
        print(f"seed {row['seed']}: {row['relus']:,} ReLUs, test top-1 {row['top1_test_before']} -> {row['top1_test']}")


if __name__ == "__main__":
    main()
