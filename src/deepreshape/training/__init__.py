"""Data as tensors, recipes, the training loop, distillation."""

from deepreshape.training.data import DATASETS, Dataset, Split, augment, data_folder, load_data
from deepreshape.training.distill import distillation_loss
from deepreshape.training.loop import Progress, Trained, accuracy, train
from deepreshape.training.recipe import RECIPES, Recipe

__all__ = [
    "DATASETS",
    "RECIPES",
    "Dataset",
    "Progress",
    "Recipe",
    "Split",
    "Trained",
    "accuracy",
    "augment",
    "data_folder",
    "distillation_loss",
    "load_data",
    "train",
]
