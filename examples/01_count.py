"""Count the ReLUs of a network of your own, whatever way it calls them."""

import torch
from torch import nn
from torch.nn import functional

from deepreshape import architecture, build, count


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.conv(x)), 2)
        return self.head(functional.gelu(x.mean((2, 3))))


counted = count(Mine(), (3, 32, 32))
print(f"{counted.total.relus:,} ReLUs, {counted.total.maxpool_comparisons:,} max-pool comparisons")
print(f"{counted.total.macs:,} MACs, {counted.total.params:,} parameters")
print(f"not counted: {counted.unknown}")

# one of ours, without making its weights
hrn = architecture("hrn-5x5x3x", (3, 32, 32), classes=100)
for name, stage in count(build(hrn, "meta"), hrn.input).by_stage.items():
    print(f"{name or 'network':8} {stage.relus:>8,} ReLUs {stage.macs:>12,} MACs")
