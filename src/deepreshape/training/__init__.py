"""Recipes, the training loop, its objective, distillation."""

from deepreshape.training.cached_teacher import CachedTeacher, is_cache, load_cache, teach
from deepreshape.training.distill import activations, distillation_loss, mismatch_loss
from deepreshape.training.hooks import Hook
from deepreshape.training.loop import Progress, Trained, TrainingRun, accuracy, judge, train
from deepreshape.training.objective import (
    METRICS,
    Classification,
    Objective,
    Segmentation,
    confusion,
    ious,
    objective_of,
)
from deepreshape.training.recipe import RECIPES, Recipe, check_ranges, recipe_of, set_options, with_values

__all__ = [
    "METRICS",
    "RECIPES",
    "CachedTeacher",
    "Classification",
    "Hook",
    "Objective",
    "Progress",
    "Recipe",
    "Segmentation",
    "Trained",
    "TrainingRun",
    "accuracy",
    "activations",
    "check_ranges",
    "confusion",
    "distillation_loss",
    "ious",
    "is_cache",
    "judge",
    "load_cache",
    "mismatch_loss",
    "objective_of",
    "recipe_of",
    "set_options",
    "teach",
    "train",
    "with_values",
]
