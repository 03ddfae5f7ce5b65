"""Random networks beside their programs; ``benchmarks/fuzz_networks.py`` takes thousands."""

import numpy as np
import pytest
from support import random_networks
from support.random_networks import check


@pytest.mark.parametrize("seed", range(100, 124))
@pytest.mark.filterwarnings("ignore:.*off with these formats")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
def test_a_random_network_is_its_program(seed: int):
    assert check(seed) == ""


@pytest.mark.filterwarnings("ignore:.*off with these formats")
def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch):
    true = random_networks.answers
    monkeypatch.setattr(random_networks, "answers", lambda *given: true(*given) + np.float64(1e3))
    assert "off, and the bound is" in check(100)
