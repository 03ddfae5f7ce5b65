"""Recipes, the training loop, its objective, distillation."""

from deepreshape.training.cached_teacher import CachedTeacher, is_cache, load_cache, teach
from deepreshape.training.distill import activations, distillation_loss, mismatch_loss
from deepreshape.training.hooks import Hook
from deepreshape.training.loop import Progress, Trained, TrainingRun, accuracy, train
from deepreshape.training.objective import Classification, Objective
from deepreshape.training.recipe import RECIPES, Recipe, check_ranges, recipe_of, set_options, with_values

__all__ = [
    "RECIPES",
    "CachedTeacher",
    "Classification",
    "Hook",
    "Objective",
    "Progress",
    "Recipe",
    "Trained",
    "TrainingRun",
    "accuracy",
    "activations",
    "check_ranges",
    "distillation_loss",
    "is_cache",
    "load_cache",
    "mismatch_loss",
    "recipe_of",
    "set_options",
    "teach",
    "train",
    "with_values",
]
