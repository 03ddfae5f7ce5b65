"""Networks of squares and mixed ones as integer programs: close to the network, run alike by two parties, refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.programs import run_both
from torch import nn

from deepreshape.counting import count
from deepreshape.models import architecture, build
from deepreshape.nn import HerPN, PolynomialReLU
from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Conv2d, ProgramError, Square
from deepreshape.private.protocols.choose import Protocols

SHAPE = (1, 8, 8)


def settled(model: nn.Module, seed: int = 0) -> tuple[nn.Module, np.ndarray]:
    """The network with the statistics of a batch, and the batch, so that evaluation is what training was."""
    torch.manual_seed(seed)
    x = torch.randn(24, *SHAPE)
    model.train()
    with torch.no_grad():
        for _ in range(80):
            model(x)
    return model.eval(), x.numpy()


def squares_only() -> tuple[nn.Module, np.ndarray]:
    return settled(build(architecture("resnet18-m2-herpn", SHAPE, 10), seed=1))


def mixed() -> tuple[nn.Module, np.ndarray]:
    """A ResNet in which AutoReP's quadratics share channels with ReLUs, and one layer keeps all of its ReLUs."""
    model, x = settled(build(architecture("resnet18-m2-phi1.1.1.1", SHAPE, 10), seed=1))
    rng = np.random.default_rng(0)
    for number, (name, module) in enumerate([*model.named_modules()]):
        if isinstance(module, nn.ReLU) and not name.startswith("stage3"):
            place = dict(model.named_modules())[name.rpartition(".")[0]]
            shape = shapes_of(model, x)[name]
            mask = torch.as_tensor(rng.random(shape) < 0.4)
            square = torch.as_tensor(rng.uniform(0.05, 0.2, shape[0]))
            coefficients = torch.stack([0.1 * square, 0.3 + square, square], 1).float()
            setattr(place, name.rpartition(".")[2], PolynomialReLU(mask, coefficients))
        assert number < 1000
    return model.eval(), x


def shapes_of(model: nn.Module, x: np.ndarray) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(lambda _, given, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU | PolynomialReLU)
    ]
    with torch.no_grad():
        model(torch.as_tensor(x[:1]))
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize("make", [squares_only, mixed], ids=["squares", "mixed"])
def test_two_parties_run_a_network_with_squares_as_it_is(make):
    model, x = make()
    lowered = lower(model, x)
    program = lowered.program
    with torch.no_grad():
        wanted = model(torch.as_tensor(x)).double().numpy()
    fine = lower(model, x, fraction=15)
    (got,) = fine.program.decode(plain.run(fine.program, fine.program.encode(x)))
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    for lowered_model in (lowered, fine):
        (got,) = lowered_model.program.decode(plain.run(lowered_model.program, lowered_model.program.encode(x)))
        assert np.abs(got - wanted).max() <= lowered_model.error.max() < np.inf
    run = run_both(program, program.encode(x[0]), batch=4096)
    replayed = plain.run(program, program.encode(x[:1]), client=run.client_shares, protocols=Protocols())
    assert np.array_equal(run.output, replayed[0])
    assert sum(row.squares for row in Plan(program.public()).declared().only(phase="online").rows) == program.squares
    assert bool(program.relus) == (make is mixed)


@pytest.mark.filterwarnings("ignore:head.2 is .* of its largest value off:UserWarning")  # coarse formats
def test_identity_shortcuts_and_negative_squares_take_no_layer_of_their_own_and_no_public_sign():
    model, x = squares_only()
    signs = [module.scale for module in model.modules() if isinstance(module, HerPN)]
    programs = []
    for scale in (1.0, -1.0):
        with torch.no_grad():
            for each in signs:
                each[0] = scale * each[0].abs()
        lowered = lower(model, x, modulus=Ring(48), fraction=8)
        assert sum(isinstance(op, Conv2d) for op in lowered.program.ops) == sum(
            isinstance(module, nn.Conv2d) for module in model.modules()
        )
        programs.append(lowered.program)
    one, other = ([op for op in program.ops if isinstance(op, Square)] for program in programs)
    assert [(op.name, op.mask) for op in one] == [(op.name, op.mask) for op in other]


def test_what_cannot_be_squared_is_refused_by_name():
    model, x = squares_only()
    with pytest.raises(ProgramError, match=r"squares are computed over a ring, not .*; use Ring\(bits\)"):
        lower(model, x, modulus=Field(CIRCA_PRIME))
    with pytest.raises(ProgramError, match=r"Ring\(bits=16\) leaves .*use Ring"):
        lower(model, x, modulus=Ring(16))
    with torch.no_grad():
        site = next(module for module in model.modules() if isinstance(module, HerPN))
        site.scale[1] = 0
    with pytest.raises(ProgramError, match=r"stem.act: channel 1 has no square"):
        lower(model, x)


def test_a_hard_swish_is_two_relus_and_a_square_and_runs_privately():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6, 6)
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.Hardswish(), nn.Flatten(), nn.Linear(108, 4)).eval()
    with torch.no_grad():
        conv.weight.mul_(6)  # values on all three sides of -3 and 3
        y, wanted = conv(x), model(x).double().numpy()
    assert min((y < -3).sum(), (y.abs() < 3).sum(), (y > 3).sum()) > 50
    lowered = lower(model, x.numpy())
    program = lowered.program
    kinds = [type(op).__name__ for op in program.ops]
    assert (kinds.count("Square"), kinds.count("Conv2d"), kinds.count("Linear")) == (1, 1, 1)
    assert program.relus == 2 * 108
    total = count(model, (3, 6, 6)).total
    assert (total.relus, total.squares) == (108, 108)
    (got,) = program.decode(plain.run(program, program.encode(x.numpy())))
    assert (np.abs(got - wanted) <= lowered.error + 1e-6).all()
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    inputs = program.encode(x.numpy()[:1])
    run = run_both(program, inputs[0])
    replayed = plain.run(program, inputs, client=run.client_shares, protocols=Protocols())
    assert (run.output == replayed[0]).all()
