"""Recipes, the training loop, its objective, distillation."""

from deepreshape.training.distill import activations, distillation_loss, mismatch_loss
from deepreshape.training.loop import METRICS, Progress, Search, Trained, accuracy, train
from deepreshape.training.recipe import RECIPES, Recipe, check_ranges, recipe_of, set_options, with_values

__all__ = [
    "METRICS",
    "RECIPES",
    "Progress",
    "Recipe",
    "Search",
    "Trained",
    "accuracy",
    "activations",
    "check_ranges",
    "distillation_loss",
    "mismatch_loss",
    "recipe_of",
    "set_options",
    "train",
    "with_values",
]
