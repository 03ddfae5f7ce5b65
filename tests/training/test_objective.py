"""The loop with objectives of other kinds: maps of labels, and a network with two heads."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deepreshape.data import Dataset, Split
from deepreshape.data.augment import VOID
from deepreshape.training import Classification, Recipe, accuracy, train

RECIPE = Recipe(epochs=6, batch=8, lr=0.2, crop=1, cutout=2, warmup=0.0, schedule="constant", precision="float32")


class PixelClasses:
    """A class for each pixel; the share of pixels that are right."""

    def target(self, labels, moves):
        return moves.maps(labels)

    def loss(self, outputs, target, teacher, recipe):
        return cross_entropy(outputs.float(), target, ignore_index=VOID)

    def metric(self, batches):
        right, total = 0, 0
        for outputs, labels in batches:
            right += int((outputs.argmax(1) == labels).sum())
            total += labels.numel()
        return 100 * right / total


class TwoHeads(Classification):
    """The mean loss of two heads; judged by the second."""

    def loss(self, outputs, target, teacher, recipe):
        return sum(super(TwoHeads, self).loss(head, target, None, recipe) for head in outputs) / 2

    def metric(self, batches):
        return super().metric((outputs[1], labels) for outputs, labels in batches)


def data(labels: torch.Tensor, images: torch.Tensor) -> Dataset:
    few = Split(images, labels)
    return Dataset("few", few, few, few, ("dark", "bright"), (0.5,), (0.3,))


def test_maps_of_labels_are_learned():
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = data((images[:, 0] > 127).long(), images)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    before = accuracy(model, maps, maps.test, objective=PixelClasses())
    trained = train(model, maps, RECIPE, seed=0, objective=PixelClasses())
    assert trained.top1_validation is not None
    assert trained.top1_validation > max(90, before)


def test_several_heads_are_trained_at_once():
    images = torch.cat([torch.zeros(8, 1, 4, 4), torch.full((8, 1, 4, 4), 255)]).byte()
    halves = data(torch.arange(16) // 8, images)

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)) for _ in range(2))

        def forward(self, x):
            return self.one(x), self.two(x)

    torch.manual_seed(1)
    model = Heads()
    before = [parameter.clone() for parameter in model.parameters()]
    trained = train(model, halves, replace(RECIPE, cutout=0), seed=0, objective=TwoHeads())
    assert trained.top1_validation == 100
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_logits_that_are_not_numbers_are_wrong():
    logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0], [0.0, 1.0]])
    assert Classification().metric([(logits, torch.tensor([0, 0, 0, 1]))]) == 50


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norms_keep_their_statistics_and_train_their_scale(frozen: bool):
    images = torch.randint(0, 256, (16, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    halves = data(torch.arange(16) % 2, images)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    train(model, halves, replace(RECIPE, epochs=1, frozen_norms=frozen), seed=0)
    assert torch.equal(norm.running_mean, torch.zeros(4)) == frozen  # pyright: ignore[reportArgumentType]
    assert not torch.equal(norm.weight, torch.ones(4))


def test_logits_that_are_no_numbers_are_wrong():
    logits = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert Classification().metric([(logits, torch.tensor([0, 0, 0, 0]))]) == 25.0
