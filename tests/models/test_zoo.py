import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.engines.ckks.parameters import choose_modulus
from deepreshape.models.saved import load, manifest_of
from deepreshape.models.zoo import folder_of, names
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.graph import Quadratic
from deepreshape.private.program.lower import lower, real_layers
from deepreshape.private.program.program import to_fixed
from deepreshape.removal import METHODS
from deepreshape.training import RECIPES, accuracy
from deepreshape.training.recipe import with_values

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"


@pytest.mark.parametrize("name", names())
def test_every_network_is_whole_small_and_says_how_it_was_made(name: str):
    folder = folder_of(f"zoo:{name}")
    model = load(folder)
    manifest = manifest_of(model)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    assert {"train", manifest.history[-1]["method"]} <= {step["method"] for step in manifest.history}
    assert count(model, manifest.architecture.input).total.relus == manifest.history[-1]["relus"]
    assert manifest.class_names


@pytest.mark.parametrize("name", names())
def test_the_documented_command_has_the_settings_that_made_it(name: str):
    (row,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `zoo:{name}`")]
    given = dict(re.findall(r"--set (\w+)=([\w.-]+)", row.rpartition("`deepreshape linearize")[2]))
    _ = load(folder_of(f"zoo:{name}"))
    manifest = manifest_of(_)
    step = manifest.history[-1]
    usual = {"settings": METHODS[step["method"]](step["budget"]), "recipe": RECIPES[manifest.dataset]}
    assert set(given) <= set(step["settings"]) | set(step["recipe"])
    for part, config in usual.items():
        options = {key: value for key, value in given.items() if key in step[part]}
        here = asdict(with_values(config, options))
        taken = {key: value for key, value in here.items() if key in step[part] and value is not None}
        assert taken == {key: step[part][key] for key in taken}


@pytest.mark.parametrize("name", ["digits", "digits-herpn"])
def test_the_digits_are_read(name: str):
    data = Dataset.load("digits")
    model = load(folder_of(f"zoo:{name}"))
    assert accuracy(model, data, data.test) > 90


@pytest.mark.parametrize("name", [name for name in names() if name.endswith("-herpn")])
def test_a_network_of_squares_fits_under_ckks(name: str):
    model = load(folder_of(f"zoo:{name}"))
    manifest = manifest_of(model)
    assert manifest.architecture.name.endswith("-herpn")
    layers = real_layers(model, manifest.architecture.input)
    squares = [layer for layer in layers if isinstance(layer, Quadratic)]
    # one after the other: no square of these networks stands beside another
    parameters = choose_modulus(2 * len(squares) + 1, len(squares), 1 << 10)
    assert parameters.expected_error < 1e-3


@pytest.mark.parametrize("name", [name for name in names() if not name.endswith("-herpn")])
def test_masks_by_pixel_are_lowered(name: str):
    model = load(folder_of(f"zoo:{name}"))
    manifest = manifest_of(model)
    x = torch.randn(64, *manifest.architecture.input, generator=torch.Generator().manual_seed(0))
    program = lower(model, x.numpy()).program
    assert program.relus == manifest.history[-1]["relus"]
    outputs = plain.run(program, to_fixed(x.numpy(), program.input_fraction)).reshape(len(x), -1)
    with torch.no_grad():
        wanted = model(x).numpy()
    assert (np.argmax(outputs, axis=1) == np.argmax(wanted, axis=1)).mean() > 0.95


def test_a_path_is_a_path_and_a_wrong_name_is_one_line(tmp_path):
    assert folder_of(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match=r"there is no .moby. in the zoo; it has .*digits"):
        folder_of("zoo:moby")
