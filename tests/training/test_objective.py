"""The loop with objectives of other kinds: maps of labels, and a network with two heads."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, one_hot

from deepreshape.data import Dataset, Split
from deepreshape.data.augment import VOID
from deepreshape.training import (
    Classification,
    Recipe,
    Segmentation,
    accuracy,
    confusion,
    distillation_loss,
    ious,
    train,
)

RECIPE = Recipe(epochs=6, batch=8, lr=0.2, crop=1, cutout=2, warmup=0.0, schedule="constant", precision="float32")


class TwoHeads(Classification):
    """The mean loss of two heads; judged by the second."""

    def loss(self, outputs, target, teacher, recipe):
        return torch.stack([super(TwoHeads, self).loss(head, target, None, recipe) for head in outputs]).mean()

    def metric(self, batches):
        return super().metric((outputs[1], labels) for outputs, labels in batches)


def data(labels: torch.Tensor, images: torch.Tensor) -> Dataset:
    few = Split(images, labels)
    return Dataset("few", few, few, few, ("dark", "bright"), (0.5,), (0.3,))


def test_maps_of_labels_are_learned():
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = data((images[:, 0] > 127).byte(), images)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    before = accuracy(model, maps, maps.test)
    trained = train(model, maps, RECIPE, seed=0)
    assert trained.top1_validation is not None
    assert trained.top1_validation > max(90, before)


def some_maps(n: int = 3, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, classes, 3, 4) and labels (n, 6, 8), a third of them void."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, classes, (n, 6, 8), generator=generator)
    void = torch.rand(labels.shape, generator=generator) < 0.3
    return torch.randn(n, classes, 3, 4, generator=generator), labels.masked_fill(void, VOID).byte()


def test_pixels_of_no_class_change_neither_loss_nor_metric():
    logits, labels = some_maps()
    pixels = interpolate(logits, size=[6, 8], mode="bilinear")
    known = labels != VOID
    rows = pixels.movedim(1, -1)[known]
    objective = Segmentation(4)
    loss = objective.loss(logits, labels, None, Recipe(smoothing=0.0))
    assert torch.allclose(loss, cross_entropy(rows, labels[known].long()) * known.float().mean())
    counts = confusion([(logits, labels)], 4)
    assert int(counts.sum()) == int(known.sum())
    for true in range(4):
        for chosen in range(4):
            both = (labels[known] == true) & (rows.argmax(1) == chosen)
            assert int(counts[true, chosen]) == int(both.sum())
    assert torch.isfinite(objective.loss(logits, torch.full_like(labels, VOID), None, RECIPE))


def test_parts_of_a_batch_add_up_to_its_loss():
    logits, labels = some_maps()
    teacher = logits.flip(1)
    whole = Segmentation(4).loss(logits, labels, teacher, RECIPE)
    parts = [Segmentation(4).loss(logits[n : n + 1], labels[n : n + 1], teacher[n : n + 1], RECIPE) for n in range(3)]
    assert torch.allclose(whole, torch.stack(parts).mean())


def test_a_teacher_is_compared_at_each_place_of_the_map():
    logits, labels = some_maps()
    recipe = Recipe(distill=1.0, temperature=4.0)
    rows = [maps.movedim(1, -1).reshape(-1, 4) for maps in (logits, logits.flip(1))]
    expected = distillation_loss(rows[0], torch.zeros(36, dtype=torch.int64), rows[1], weight=1.0)
    assert torch.allclose(Segmentation(4).loss(logits, labels, logits.flip(1), recipe), expected)
    assert torch.allclose(Segmentation(4).loss(logits, labels, logits, recipe), torch.tensor(0.0), atol=1e-6)


def test_the_miou_comes_from_one_confusion_matrix_and_leaves_out_what_no_label_has():
    batches = [(logits[None], labels[None]) for logits, labels in zip(*some_maps(), strict=True)]
    counts = confusion(batches, 4)
    assert torch.equal(counts, confusion([some_maps()], 4))
    labels = torch.tensor([[[0, 0, 1, 1, VOID]]]).byte()
    chosen = torch.tensor([[[0, 2, 1, 0, 2]]])
    logits = one_hot(chosen, 3).movedim(-1, 1).float()
    by_class = ious(confusion([(logits, labels)], 3))
    assert by_class[2] is None
    assert by_class[:2] == [100 / 3, 50]
    assert Segmentation(3).metric([(logits, labels)]) == round((100 / 3 + 50) / 2, 3)
    logits[0, 0, 0, 0] = float("nan")
    assert ious(confusion([(logits, labels)], 3))[0] == 0
    with pytest.raises(ValueError, match="no pixel has a class"):
        Segmentation(3).metric([(logits, torch.full_like(labels, VOID))])


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


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (4, 1, 3), (12,), (3, 3)])
def test_logits_of_another_shape_have_no_accuracy(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"^a network gives logits \(N, classes\), and this one \(.*\) for 4 images"):
        Classification().metric([(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))])


def test_logits_that_are_no_numbers_are_wrong():
    logits = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert Classification().metric([(logits, torch.tensor([0, 0, 0, 0]))]) == 25.0
