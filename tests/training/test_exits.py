"""Training with exits: which losses there are, and what stays as it is."""

from dataclasses import replace

import pytest
import torch
from support.few_digits import RECIPE, KilledError, digits, equal, kill_at, trained, weights
from torch.nn.functional import cross_entropy

from deepreshape.data.augment import VOID
from deepreshape.models import attach_exits
from deepreshape.models.exits import MultiExitNetwork
from deepreshape.training import Classification, Recipe, Segmentation, accuracy, distillation_loss
from deepreshape.training.exits import (
    Distillation,
    ExitAware,
    ExitTraining,
    HeadLosses,
    HeadTraining,
    heads_recipe,
    train_exits,
)
from deepreshape.training.objective import upsampled

PLAIN = Recipe(smoothing=0.0)
TARGET = torch.tensor([0, 1, 2, 3])


def logits(seed: int, right: list[bool] | None = None) -> torch.Tensor:
    values = torch.randn(4, 10, generator=torch.Generator().manual_seed(seed))
    for row, good in enumerate(right or []):
        values[row, int(TARGET[row]) if good else 9] += 20
    return values


def network() -> MultiExitNetwork:
    return attach_exits(trained(), (1, 2))


def test_every_exit_and_the_end_are_trained_at_every_step_and_each_has_its_teacher():
    aware, outputs, soft = ExitAware(Classification()), [logits(seed) for seed in range(3)], [logits(9)] * 3
    assert float(aware.loss(outputs, TARGET, None, PLAIN)) == pytest.approx(
        sum(float(cross_entropy(one, TARGET)) for one in outputs)
    )
    assert float(aware.loss(outputs, TARGET, soft, PLAIN)) == pytest.approx(
        sum(float(distillation_loss(one, TARGET, soft[0])) for one in outputs)
    )


def test_positive_filtering_lets_the_end_teach_only_where_it_is_right():
    right = [True, False, True, True]
    exit, end = logits(1), logits(2, right)
    where = torch.tensor(right)
    taught = distillation_loss(exit[where], TARGET[where], end[where])
    alone = cross_entropy(exit[~where], TARGET[~where])
    wanted = 0.75 * taught + 0.25 * alone

    def loss(distillation: Distillation) -> float:
        return float(HeadLosses(distillation, Classification()).loss([exit, end], TARGET, None, PLAIN))

    assert float(HeadLosses("pfd", Classification()).loss([exit, end], TARGET, None, PLAIN)) == pytest.approx(
        float(wanted)
    )
    everywhere = distillation_loss(exit, TARGET, end)
    assert float(HeadLosses("kd", Classification()).loss([exit, end], TARGET, None, PLAIN)) == pytest.approx(
        float(everywhere)
    )
    labels = cross_entropy(exit, TARGET)
    assert float(HeadLosses("none", Classification()).loss([exit, end], TARGET, None, PLAIN)) == pytest.approx(
        float(labels)
    )
    with pytest.raises(ValueError, match="unknown distillation 'all'; known are pfd, kd, none"):
        HeadLosses("all", Classification())  # pyright: ignore[reportArgumentType]


def test_positive_filtering_of_maps_goes_by_pixels_whose_class_is_known():
    generator = torch.Generator().manual_seed(0)
    exit, end = (torch.randn(2, 3, side, side, generator=generator) for side in (4, 2))
    target = torch.randint(0, 3, (2, 4, 4), generator=generator).to(torch.uint8)
    target[0, 0] = VOID
    known = target != VOID
    rows, taught = (upsampled(each, (4, 4)).movedim(1, -1)[known] for each in (exit, end))
    one = HeadLosses("pfd", Segmentation(3)).loss([exit, end], target, None, PLAIN)
    other = HeadLosses("pfd", Classification()).loss([rows, taught], target[known].long(), None, PLAIN)
    assert float(one) == pytest.approx(float(other))


@pytest.mark.parametrize("right", [[True] * 4, [False] * 4])
def test_positive_filtering_has_a_loss_where_the_end_is_always_right_or_never(right: list[bool]):
    loss = HeadLosses("pfd", Classification()).loss([logits(1), logits(2, right)], TARGET, None, PLAIN)
    assert torch.isfinite(loss)


def test_heads_are_trained_and_the_trunk_stays_with_its_batch_norms():
    data, model = digits(), network()
    before = weights(model)
    train_exits(model, data, ExitTraining(None, replace(RECIPE, lr=1.0)), seed=0)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("exits.")}
    assert not any(each.training for each in model.modules())


def test_heads_of_a_trunk_that_stays_are_given_no_gradient_to_it():
    model = network().eval()
    heads = HeadTraining(model)
    assert {name for name, _ in heads.named_parameters()} == {
        name for name, _ in model.named_parameters() if name.startswith("exits.")
    }
    torch.stack([each.sum() for each in heads(torch.randn(2, 1, 8, 8))]).sum().backward()
    assert all(each.grad is None for name, each in model.named_parameters() if not name.startswith("exits."))


def test_aware_training_moves_the_trunk_and_goes_on_where_it_was_killed(tmp_path):
    data, how = digits(), ExitTraining(replace(RECIPE, epochs=2), RECIPE)
    whole, cut = network(), network()
    before = weights(whole)
    done = train_exits(whole, data, how, seed=3)
    assert len(done) == 2
    assert done[0].top1_validation == accuracy(whole.exit(3), data, data.validation)
    assert not torch.equal(before["stage1.0.conv1.0.weight"], weights(whole)["stage1.0.conv1.0.weight"])
    for phase, step in (("trunk", 5), ("heads", 2)):
        with pytest.raises(KilledError):
            train_exits(cut, data, how, seed=3, folder=tmp_path, progress=kill_at(phase, step))
        cut = network()
    train_exits(cut, data, how, seed=3, folder=tmp_path)
    assert equal(weights(whole), weights(cut))


def test_heads_have_a_recipe_of_their_own():
    assert heads_recipe("digits").lr == 1.0
    assert heads_recipe("digits").batch == 64
    assert heads_recipe("digits").epochs == 2
