"""The page on operators says what the code does."""

import re
from pathlib import Path

import torch
from torch import nn

from deepreshape.private.program.lower import OPERATORS, problems

PAGE = (Path(__file__).parents[3] / "docs" / "operators.md").read_text()
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]


def test_every_operator_of_the_table_has_a_handler_and_every_activation_a_row():
    named = {word for row in ROWS for cell in row[:2] for word in re.findall(r"`(\w+)`", cell)} - {"count"}
    assert named <= {*OPERATORS}
    some = {"relu", "max_pool2d", "conv_transpose2d", "leaky_relu", "upsample_bilinear2d", "cat", "softmax", "mul"}
    assert some <= named


def test_what_the_page_refuses_is_refused_with_a_remedy():
    refused = re.findall(r"`(\w+)`", PAGE.split("\nRefused")[1].split("products of")[0].replace("deepreshape", ""))
    assert len(refused) == 8
    for word in refused:
        assert word not in OPERATORS
    activations = [nn.GELU(), nn.SiLU(), nn.ELU(), nn.Mish(), nn.Tanh(), nn.Sigmoid()]
    for layer in [*activations, nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4)]:
        (problem, *_) = problems(nn.Sequential(nn.Conv2d(3, 4, 1), layer), (3, 4, 4))
        assert problem.layer == "1"
        assert problem.instead, problem
    with torch.no_grad():
        (problem,) = problems(_Scores(), (3, 4, 4))
    assert "two matrices of values" in problem.reason


class _Scores(nn.Module):
    """Of attention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2) @ x.flatten(2).transpose(1, 2)
