"""A network of your own, trained by your own code, run privately between two processes.

On the command line it is `deepreshape private local --model examples/08_a_network_of_your_own.py:net --samples X.npy`.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deepreshape.data import Dataset
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import to_fixed
from deepreshape.private.service.local_run import run_local


def net() -> nn.Module:
    """A callable without arguments makes it; here it would load your weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def main() -> None:
    data = Dataset.load("digits")
    images, labels = data.normalize(data.train.images[:]), data.train.labels
    network = net()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()

    lowered = lower(network.eval(), images[:256].contiguous().numpy())
    print(lowered)
    new = data.normalize(data.test.images[:2]).contiguous().numpy()
    report = run_local(lowered.program, to_fixed(new, lowered.program.input_fraction))
    print(f"private equals plain: {report['agree']}; online {report['seconds']['online']:.2f} s")


if __name__ == "__main__":
    main()
