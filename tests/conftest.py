"""Settings shared by all tests."""

import torch
from hypothesis import settings

# examples that build and trace networks take long, but the same ones every time
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")

torch.set_num_threads(1)
