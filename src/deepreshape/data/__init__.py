"""Labelled images, and where they come from."""

from deepreshape.data.archives import ARCHIVED, data_folder
from deepreshape.data.augment import augment
from deepreshape.data.dataset import Dataset, Split
from deepreshape.data.images import Images

__all__ = ["ARCHIVED", "Dataset", "Images", "Split", "augment", "data_folder"]
