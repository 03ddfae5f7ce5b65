"""Torch operators, as torch.export traces them, and the layers that each of them becomes."""
