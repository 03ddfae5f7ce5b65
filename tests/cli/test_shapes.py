from pathlib import Path

import pytest
from support.command_line import answer, call

QUICK = ("--set", "epochs=1", "--set", "batch=256", "--set", "repeats=1", "--iterations", "1")


def test_adjust_prints_the_fixed_shape_and_names_what_to_train(tmp_path: Path):
    network, out = "resnet20-m2-phi1.1.1", str(tmp_path / "adjusted")
    adjusted = answer("adjust", network, "--data", "digits", *QUICK, "--out", out)
    first, last = adjusted["steps"]
    assert {"network", "resource", "macs", "relus", "loss", "utilisation"} <= set(first)
    assert len(first["utilisation"]) == 7
    assert 0 < last["macs"] == last["resource"] <= first["macs"]
    assert answer("count", last["network"], "--input", "1x8x8", "--classes", "10")["macs"] == last["macs"]
    assert (tmp_path / "adjusted" / "widths.svg").read_text().startswith("<svg")
    assert answer("adjust", network, "--data", "digits", *QUICK, "--out", out) == adjusted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vgg16",), "vgg16 is no ResNet"),
        (("resnet20", "--resource", "watts"), "unknown resource 'watts'; known are macs, params, relus"),
        (("resnet20", "--resource", "relus", "--link", "wan"), "--link and --protocol go with seconds and bytes"),
        (("resnet20", "--set", "floor=0"), "floor must be from 1 to 10000, not 0"),
        (("resnet20", "--set", "holdout=false"), "leave holdout on"),
    ],
)
def test_an_adjustment_that_cannot_be_is_one_line(words: tuple[str, ...], message: str, tmp_path: Path):
    refused = call("adjust", *words, "--out", str(tmp_path / "x"))
    assert refused.code == 2
    assert message in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_cells_are_named_and_searched(tmp_path: Path):
    drawn = answer("cells", "random", "--like", "sphynx-c2-l3-r0.1", "--seed", "3")
    assert drawn["network"] == f"sphynx-c2-l3-r0.1-g{drawn['genotype']}"
    out = tmp_path / "cells"
    quick = ("--epochs", "1", "--set", "channels=2", "--set", "cells=3", "--set", "batch=512", "--threads", "1")
    searched = answer("cells", "search", "--data", "digits", *quick, "--out", str(out))
    assert searched["network"].endswith(f"-g{searched['genotype']}")
    assert answer("count", searched["network"])["relus"] == 51_200
    assert (out / "genotype.json").is_file()
    assert "is not a network of cells" in call("cells", "random", "--like", "resnet18").err
