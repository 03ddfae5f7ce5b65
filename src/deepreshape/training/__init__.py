"""Data as tensors, recipes, the training loop, distillation."""

from deepreshape.training.data import DATASETS, Dataset, Split, augment, data_folder, load_data
from deepreshape.training.distill import distillation_loss
from deepreshape.training.loop import METRICS, Progress, Trained, accuracy, train
from deepreshape.training.recipe import RECIPES, Recipe

__all__ = [
    "DATASETS",
    "METRICS",
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
