"""Which protocol computes ReLUs: the one place that reads it from a :class:`ReluConfig`."""

from __future__ import annotations

from typing import Any

from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.base import ReluProtocol
from deepreshape.private.protocols.relu_gc import ReluGc
from deepreshape.private.protocols.relu_ot import ReluOt
from deepreshape.private.protocols.relu_sign import ReluSign

PROTOCOLS = {"gc-full": ReluGc, "gc-sign": ReluSign, "gc-stochastic": ReluSign, "ot": ReluOt}
"""By the names of ``relu_config.SETTINGS``."""


def relu_protocol(config: ReluConfig) -> ReluProtocol[Any, Any]:
    """The protocol that a config names."""
    return PROTOCOLS[config.protocol](config)
