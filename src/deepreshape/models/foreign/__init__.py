"""Any torch module as a network of this package."""

from deepreshape.models.foreign.modules import METHODS, Foreign, Network, convert, traced

__all__ = ["METHODS", "Foreign", "Network", "convert", "traced"]
