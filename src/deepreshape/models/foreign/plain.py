"""A user's module without what PyTorch's tools have put around it or on it: a copy of plain layers and parameters."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["plain_copy", "unwrapped"]

COMPILED = "_orig_mod"
"""Where ``torch.compile`` keeps the module; asking for its class would import the compiler, for seconds."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``; any other as it is."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif COMPILED in model._modules:
            model = model.get_submodule(COMPILED)
        else:
            return model


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with no wrapper in it, whose computed weights are parameters that have their values in evaluation mode.

    Computed are those of ``torch.nn.utils.parametrize`` and, by older calls, of weight norm, spectral norm and pruning.

    Raises:
        ValueError: if something in it cannot be copied.
    """
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf  # which torch does not copy
    ]
    try:
        model = copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
    except Exception as error:  # whatever a network may hold
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the network cannot be copied: {reason}") from error
    training = model.training
    model.eval()
    _unwrap_parts(model)
    for module in model.modules():
        _keep_values(module)
    return model.train(training)


def _unwrap_parts(model: nn.Module) -> None:
    for name, part in [*model._modules.items()]:
        if part is not None:
            model._modules[name] = unwrapped(part)
            _unwrap_parts(unwrapped(part))


def _keep_values(module: nn.Module) -> None:
    """Make the computed weights of one module parameters."""
    for hook in [*module._forward_pre_hooks.values()]:
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # pyright: ignore
        # torch's own removal would take the weights from the class, which the original module has too
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
