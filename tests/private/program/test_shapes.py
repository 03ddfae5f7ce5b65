"""Networks of torchvision's shapes: each lowers within its bound and runs between two parties bit for bit."""

import numpy as np
import pytest
import torch
from support.lowered import checked, drawn, prepared
from support.programs import run_both
from support.torchvision_shapes import SHALLOW

from deepreshape.private.program import interpret as plain
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import to_fixed
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.choose import Protocols


@pytest.mark.parametrize("name", SHALLOW)
def test_the_program_is_the_network(name: str):
    torch.manual_seed(0)
    make, side = SHALLOW[name]
    x = drawn(8, 3, side, side)
    # the bound grows with depth, and says little without many bits; squares take twice as many
    checked(prepared(make(), x), x, fraction=18 if name == "mobilenetv3" else 22)


@pytest.mark.parametrize(
    ("name", "relu"),
    [
        *(
            (name, relu)
            for name in ("resnet18", "mobilenet", "mobilenetv3", "unet")
            for relu in ("gc-full", "gc-sign", "ot")
        ),
        *((name, "gc-sign") for name in ("resnet34", "resnet50", "vgg11", "vgg16-bn", "densenet")),
    ],
)
def test_it_runs_privately_bit_for_bit(name: str, relu: str):
    torch.manual_seed(0)
    make, side = SHALLOW[name]
    x = drawn(8, 3, side, side)
    program = lower(prepared(make(), x), x).program
    inputs = to_fixed(x[0], program.input_fraction)
    config = ReluConfig.parse(relu)
    run = run_both(program, inputs, relu=config, workers=1)
    wanted = plain.run(program, inputs[None], client=run.client_shares, protocols=Protocols(config))[0]
    assert (run.output == wanted).all()
    exact = program.decode(plain.run(program, inputs[None]))[0]
    assert np.abs(program.decode(run.output[None])[0] - exact).max() < 0.02 * (1 + np.abs(exact).max())
