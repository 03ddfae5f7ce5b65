import sys
from itertools import pairwise, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.design import coefficients, equalize
from deepreshape.design.equalize import _solutions, inequalities
from deepreshape.models import ResNet, architecture, build


def multipliers(name: str, **options) -> list[tuple[int, ...]]:
    return [design.architecture.multipliers for design in equalize(architecture(name), **options)]


def test_resnet18_gives_the_four_published_networks():
    designs = equalize(architecture("resnet18-m16"))
    assert [design.architecture.name for design in designs] == [
        "hrn-5x5x3x",
        "hrn-5x7x2x",
        "hrn-6x6x2x",
        "hrn-7x5x2x",
    ]
    assert [design.relus for design in designs] == [343_040, 378_880, 401_408, 411_648]


def test_alpha_2_gives_the_four_published_networks():
    designs = equalize(architecture("resnet18-m32"), fixed={"alpha": 2})
    names = ["hrn-2x5x2x-m32", "hrn-2x5x3x-m32", "hrn-2x6x2x-m32", "hrn-2x7x2x-m32"]
    assert [design.architecture.name for design in designs] == names


def test_resnet34_gives_its_sixteen():
    triples = multipliers("resnet34-m16")
    assert sorted(triples) == [
        (4, 3, 6), (4, 4, 5), (4, 5, 4), (4, 6, 3), (4, 9, 2), (5, 3, 5), (5, 4, 4), (5, 5, 3), (5, 7, 2),
        (6, 3, 4), (6, 4, 3), (6, 6, 2), (7, 5, 2), (8, 3, 3), (9, 4, 2), (11, 3, 2),
    ]  # fmt: skip


def test_bottlenecks_are_counted_in_their_own_graph():
    assert sorted(multipliers("resnet50-m16")) == [
        (3, 4, 5), (3, 5, 4), (3, 10, 2), (4, 3, 5), (4, 4, 4), (4, 5, 3), (4, 7, 2), (5, 3, 4), (5, 4, 3),
        (5, 6, 2), (6, 5, 2), (7, 3, 3), (7, 4, 2), (10, 3, 2),
    ]  # fmt: skip
    assert len(multipliers("resnet34-m16-phi3.3.9.3")) == 15
    assert len(multipliers("resnet34-m16-phi3.4.23.3")) == 22


def test_coefficients_are_relus_per_channel():
    assert coefficients(architecture("resnet18")) == (4096, 1024, 256, 64)
    assert coefficients(architecture("resnet50")) == (18432, 6912, 2496, 336)


def test_a_design_has_what_it_says():
    for design in equalize(architecture("resnet18-m16")):
        total = count(build(design.architecture, "meta"), design.architecture.input).total
        assert (design.relus, design.macs, design.params) == (total.relus, total.macs, total.params)


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    data=st.data(),
    low=st.integers(1, 2),
    high=st.integers(3, 9),
)
def test_the_solver_agrees_with_trying_everything(counts: list[int], data: st.DataObject, low: int, high: int):
    order = data.draw(st.permutations(range(1, len(counts) + 1)))
    places = len(counts) - 1

    def holds(values: tuple[int, ...]) -> bool:
        stages = [k * prod(values[:at]) for at, k in enumerate(counts)]
        ordered = [stages[stage - 1] for stage in order]
        return all(one > other for one, other in pairwise(ordered))

    everything = [values for values in product(range(low, high + 1), repeat=places) if holds(values)]
    least = [
        values
        for values in everything
        if not any(other != values and all(o <= v for o, v in zip(other, values, strict=True)) for other in everything)
    ]
    chain, box = inequalities(counts, order), ((low, high),) * places
    assert list(_solutions(chain, box)) == everything
    assert list(_solutions(chain, box, minimal=True)) == least


def test_six_stages_are_searched_not_enumerated(monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["deepreshape.design.equalize"]
    visits = 0

    def counted_prod(values):
        nonlocal visits
        visits += 1
        return prod(values)

    monkeypatch.setattr(module, "prod", counted_prod)
    counts = [2 * 4 ** (6 - stage) for stage in range(6)]
    solutions = list(_solutions(inequalities(counts, (4, 3, 5, 2, 6, 1)), ((2, 12),) * 5, minimal=True))
    assert len(solutions) == 19
    assert visits < 11**4  # trying everything would look at 11^5 candidates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (2, 3)}, r"R4 > R1 \(alpha\*beta\*gamma >= 65\) cannot hold with 2 <= alpha <= 3"),
        ({"fixed": {"beta": 3}}, r"R3 > R2 \(beta >= 5\) cannot hold with .*beta=3"),
        ({"fixed": {"omega": 3}}, "cannot fix omega=3; 4 stages have alpha, beta, gamma"),
        ({"order": (1, 2, 3)}, r"names each of 1 to 4 once, not \(1, 2, 3\)"),
        ({"bounds": (5, 3)}, "bounds on multipliers are 1 <= low <= high, not 5 and 3"),
    ],
)
def test_what_cannot_be_is_explained(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        equalize(architecture("resnet18-m16"), **options)


def test_two_inequalities_in_conflict_are_both_named():
    message = r"R2 > R3 \(beta <= 3\) and R3 > R1 \(alpha\*beta >= 17\) exclude each other with 2 <= alpha <= 5"
    with pytest.raises(ValueError, match=message):
        equalize(architecture("resnet20"), (2, 3, 1), bounds=(2, 5))


def test_more_stages_than_multipliers_have_names_are_refused():
    ten = ResNet((1,) * 10, 4, (2,) * 9, (3, 1024, 1024), 10)
    with pytest.raises(ValueError, match="9 stages are the most that are equalized, not 10"):
        equalize(ten, tuple(range(1, 11)))


def test_the_published_order_is_for_four_stages():
    with pytest.raises(ValueError, match="give the order of these 3"):
        equalize(architecture("resnet20"))
    assert equalize(architecture("resnet20"), (3, 2, 1))
