import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.models import CellNet, architecture, build, from_dict
from deepreshape.models.genotype import OPERATORS, SPHYNX, CellEdge, Genotype


def genotypes():
    edges = [
        st.builds(CellEdge, st.sampled_from(sorted(OPERATORS)), st.integers(0, 1 + number // 2)) for number in range(8)
    ]
    return st.builds(Genotype, st.tuples(*edges), st.tuples(*edges))


@pytest.mark.parametrize(
    ("name", "side", "classes", "relus"),
    [
        ("c5-l5-r0.1", 32, 100, 25_600),
        ("c5-l6-r0.1", 32, 100, 30_720),
        ("c5-l8-r1.3", 32, 100, 40_960),
        ("c5-l10-r0.5", 32, 100, 51_200),
        ("c7-l10-r0.5", 32, 100, 71_680),
        ("c10-l10-r0.5", 32, 100, 102_400),
        ("c5-l5-r0.1", 64, 200, 102_400),
        ("c5-l10-r0.5", 64, 200, 204_800),
        ("c7-l10-r0.5", 64, 200, 286_720),
        ("c12-l10-r0.5", 64, 200, 491_520),
        ("c15-l10-r0.5", 64, 200, 614_400),
        ("c20-l10-r1.5-imagenet", 224, 1000, 344_960),
        ("c30-l10-r1.5-imagenet", 224, 1000, 517_440),
        ("c40-l10-r1.5-imagenet", 224, 1000, 689_920),
        ("c50-l10-r1.5-imagenet", 224, 1000, 862_400),
        ("c60-l10-r1.5-imagenet", 224, 1000, 1_034_880),
    ],
)
def test_published_networks_have_their_relus(name: str, side: int, classes: int, relus: int):
    cells = architecture(f"sphynx-{name}", (3, side, side), classes)
    counted = count(build(cells, "meta"), cells.input)
    assert cells.relus == counted.total.relus == relus
    assert cells.layers() == tuple(counted.layers)
    assert cells.name == f"sphynx-{name}"


@pytest.mark.parametrize(("name", "macs"), [("sphynx-c5-l5-r0.1", 194_573_120), ("sphynx-c10-l10-r0.5", 1_131_648_640)])
def test_multiply_adds_are_those_of_the_published_code(name: str, macs: int):
    assert count(build(architecture(name), "meta"), (3, 32, 32)).total.macs == macs


@settings(max_examples=12)
@given(genotype=genotypes(), base=st.integers(2, 5), first=st.integers(0, 1))
def test_any_cells_have_one_relu_layer_each_and_a_name(genotype: Genotype, base: int, first: int):
    cells = CellNet((first, 1, 2), base, (4, 4), (3, 16, 16), 7, genotype=str(genotype))
    counted = count(build(cells, "meta"), (3, 16, 16))
    assert counted.total.relus == cells.relus == (first + 3) * base * 256
    assert cells.layers() == tuple(counted.layers)
    assert architecture(cells.name, (3, 16, 16), 7) == cells == from_dict(cells.to_dict())
    assert Genotype.parse(str(genotype)) == genotype


def test_it_runs_and_herpn_takes_the_relus_place():
    net = build(architecture("sphynx-c2-l3-r0.1", (3, 16, 16), 5), seed=0)
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    quadratic = architecture("sphynx-c2-l3-r0.1-herpn", (3, 16, 16), 5)
    counted = count(build(quadratic, "meta"), (3, 16, 16)).total
    assert (counted.relus, counted.squares) == (0, 3 * 2 * 256)
    assert architecture(quadratic.name, (3, 16, 16), 5) == quadratic


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("sphynx-c5-l10-r5.5", 32, "reductions rise and are cells, 0 to 9, not 5 and 5"),
        ("sphynx-c5-l10-r0.10", 32, "reductions rise and are cells, 0 to 9, not 0 and 10"),
        ("sphynx-c5-l10-r0.5-gs0s1", 32, "'s0s1' is not a genotype"),
        ("sphynx-c5-l10-r0.5-g" + SPHYNX.replace("V2", "x2"), 32, "unknown operator 'x'; known are s .skip."),
        ("sphynx-c5-l10-r0.5-g" + SPHYNX.replace("d0s2", "d0s7"), 32, "edge s7 of node 4 comes from a later value"),
        ("sphynx-c0-l10-r0.5", 32, "base must be positive, not 0"),
        ("sphynx-c5-l10", 32, "unknown network 'sphynx-c5-l10'; .* sphynx-cC-lL-rI.J"),
        ("sphynx-c5-l10-r0.5", 30, "cell 5 halves a map of 15x15, which has an odd side"),
    ],
)
def test_cells_that_cannot_be_are_refused(name: str, side: int, message: str):
    with pytest.raises(ValueError, match=message):
        build(architecture(name, (3, side, side)), "meta")
