"""Networks beside their integer programs."""

import numpy as np
import torch
from torch import nn

from deepreshape.private.program import interpret as plain
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import to_fixed
from deepreshape.private.program.quantize import Lowered


def drawn(*shape: int, seed: int = 1) -> np.ndarray:
    """Inputs, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).numpy()


def prepared(model: nn.Module, x: np.ndarray) -> nn.Module:
    """The network with running statistics of its own, in evaluation mode."""
    model.train()
    with torch.no_grad():
        model(torch.from_numpy(x))
    return model.eval()


def answers(lowered: Lowered, x: np.ndarray) -> np.ndarray:
    """What the integer program gives, real; several outputs flattened behind one another."""
    program = lowered.program
    results = program.decode(plain.run(program, to_fixed(x, program.input_fraction)))
    return results[0] if len(results) == 1 else np.concatenate([part.reshape(len(x), -1) for part in results], 1)


def checked(model: nn.Module, x: np.ndarray, fraction: int | None = 20) -> Lowered:
    """The program of a network, which is within its bound of what the network gives in double precision."""
    lowered = lower(model, x, fraction=fraction)
    with torch.no_grad():
        outputs = model.double()(torch.from_numpy(x).double())
    model.float()
    parts = (
        [*outputs.values()]
        if isinstance(outputs, dict)
        else [*outputs]
        if isinstance(outputs, (tuple, list))
        else [outputs]
    )
    wanted = parts[0].numpy() if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1).numpy()
    got = answers(lowered, x)
    assert got.shape == wanted.shape
    assert (np.abs(got - wanted) <= lowered.error + 1e-9).all()
    # the bound is for the worst case; what is seen with so many bits is far below it
    if fraction and fraction >= 18:
        assert np.abs(got - wanted).max() <= 2e-3 * (1 + np.abs(wanted).max())
    return lowered
