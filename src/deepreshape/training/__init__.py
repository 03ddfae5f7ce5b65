"""Data as tensors, recipes, the training loop, distillation."""

from deepreshape.data.dataset import DATASETS, Dataset, Split, augment, data_folder, load_data
from deepreshape.training.distill import activations, distillation_loss, mismatch_loss
from deepreshape.training.loop import METRICS, Progress, Search, Trained, accuracy, train
from deepreshape.training.recipe import RECIPES, Recipe, check_ranges, set_options, with_values

__all__ = [
    "DATASETS",
    "METRICS",
    "RECIPES",
    "Dataset",
    "Progress",
    "Recipe",
    "Search",
    "Split",
    "Trained",
    "accuracy",
    "activations",
    "augment",
    "check_ranges",
    "data_folder",
    "distillation_loss",
    "load_data",
    "mismatch_loss",
    "set_options",
    "train",
    "with_values",
]
