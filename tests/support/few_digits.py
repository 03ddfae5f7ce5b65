"""A few of the digits and a network on them, so that searches take tenths of a second."""

import copy
from dataclasses import replace

import torch
from torch import nn

from deepreshape.data import Dataset, Split
from deepreshape.models import architecture, build
from deepreshape.removal import masks_of
from deepreshape.removal.method import Task
from deepreshape.training import Classification, Progress, Recipe, train


class Untouchable(Split):
    def __getattribute__(self, name: str):
        raise AssertionError("the test split was read")


def digits() -> Dataset:
    """Two hundred images to train on, and a test split that nobody may read."""
    whole = Dataset.load("digits")
    few = Split(whole.train.images[:200], whole.train.labels[:200])
    held = Split(whole.validation.images[:60], whole.validation.labels[:60])
    return replace(whole, train=few, validation=held, test=Untouchable(*vars(whole.test).values()))


RECIPE = Recipe(epochs=1, batch=50, lr=0.02, crop=1, flip=False, precision="float32")


def trained(name: str = "resnet20-m2-phi1.1.1") -> nn.Module:
    """A network that has seen the digits once."""
    data = digits()
    model = build(architecture(name, data.shape, 10), seed=0)
    train(model, data, RECIPE, seed=0)
    return model


def task(model: nn.Module) -> Task:
    """What a search on this network is given: its masks, itself as the teacher, and every ReLU of one price."""
    data = digits()
    masks = masks_of(model, data.shape)
    teacher = copy.deepcopy(model).eval()
    return Task(data, RECIPE, teacher, masks, dict.fromkeys(masks, 1.0), 0, None, lambda at: None, Classification())


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class KilledError(Exception):
    """In place of a kill."""


def kill_at(phase: str, step: int):
    """Progress that ends the run after this step of this phase."""

    def progress(now: str, at: Progress) -> None:
        if (now, at.step) == (phase, step):
            raise KilledError

    return progress
