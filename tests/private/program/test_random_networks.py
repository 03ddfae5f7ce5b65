"""Random networks beside their programs; ``benchmarks/fuzz_networks.py`` takes thousands."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from support import random_networks
from support.random_networks import check

from deepreshape.cost.layers import Layer, LinearLayer


@pytest.mark.parametrize("seed", range(100, 120))
@pytest.mark.filterwarnings("ignore:.*off with these formats")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
def test_a_random_network_is_its_program(seed: int):
    assert check(seed) == ""


@pytest.mark.filterwarnings("ignore:.*off with these formats")
def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch):
    true = random_networks.answers
    monkeypatch.setattr(random_networks, "answers", lambda *given: true(*given) + np.float64(1e3))
    assert "off, and the bound is" in check(100)


@pytest.mark.filterwarnings("ignore:.*off with these formats")
def test_the_check_sees_other_counts_and_prices(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(random_networks, "arithmetic", lambda *_: Counter(macs=7))
        assert check(100).endswith("and there are 0")
    true = random_networks.estimate_steps
    monkeypatch.setattr(random_networks, "estimate_steps", lambda layers: true([strided(each) for each in layers]))
    assert "a layer is priced as Convolution" in check(100)


def strided(layer: Layer) -> Layer:
    return replace(layer, in_channels=layer.in_channels + 1) if isinstance(layer, LinearLayer) else layer
