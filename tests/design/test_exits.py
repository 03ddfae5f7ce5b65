"""Where to stop: expected costs by formula, monotone policies, and no training to choose."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.few_digits import digits, equal, trained, weights

from deepreshape.data.augment import VOID
from deepreshape.design.exits import (
    THRESHOLDS,
    Costs,
    Evidence,
    cheapest_within,
    gather,
    lowest_threshold,
    search_exits,
)
from deepreshape.models import architecture, attach_exits, build
from deepreshape.private.service.stop import Stop, confidence
from deepreshape.training import Segmentation, TrainingRun, accuracy

COSTS = Costs((4.0, 6.0, 9.0))


def made_up(seed: int = 0, inputs: int = 200) -> Evidence:
    rng = np.random.default_rng(seed)
    sure = rng.random((3, inputs))
    right = rng.random((3, inputs)) < np.array([0.5, 0.7, 0.9])[:, None] * (0.5 + sure / 2)
    return Evidence((1, 2, 4), sure, right, lambda taken: 100 * float(taken.mean()))


def test_confidence_is_the_largest_probability():
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)) * 400
    assert confidence(logits.numpy()) == pytest.approx(logits.double().softmax(1).amax(1).numpy(), rel=1e-5)


def test_confidence_of_a_map_is_its_share_of_sure_pixels_and_edges_count_a_quarter():
    logits = np.zeros((2, 2, 4, 4))
    logits[:, 0, :, :2] = logits[:, 1, :, 2:] = 9.0  # two halves: the columns in the middle are next to the edge
    logits[0, 0, :, 1] = logits[0, 1, :, 2] = 0.1  # unsure there
    logits[1, 0, :, 0] = logits[1, 1, :, 3] = 0.1  # unsure away from it
    assert confidence(logits) == pytest.approx([8 / (8 + 2), 2 / (8 + 2)])
    assert confidence(np.full((1, 2, 3, 3), [[[9.0]], [[0.0]]])) == pytest.approx([1.0])


def test_quality_of_maps_is_the_miou_of_the_answers_that_are_taken():
    shape, generator = (1, 8, 8), torch.Generator().manual_seed(0)
    network = attach_exits(build(architecture("resnet20-m2-phi1.1.1-seg", shape, 3), seed=0), (1, 2)).eval()
    images, maps = torch.randn(5, *shape, generator=generator), torch.randint(0, 3, (5, 8, 8), generator=generator)
    maps[0, 0] = VOID
    evidence = gather(network, [(images[:3], maps[:3]), (images[3:], maps[3:])])
    for place, point in enumerate((1, 2, 3)):
        wanted = Segmentation(3).metric([(network.exit(point)(images), maps)])
        assert evidence.of([place], 0.0)[1] == pytest.approx(wanted)
    mixed = [(network.exit(1 if i < 2 else 3)(images[i : i + 1]), maps[i : i + 1]) for i in range(5)]
    evidence.confidence[0] = [0.9, 0.9, 0.1, 0.1, 0.1]
    assert evidence.of([0, 2], 0.5)[1] == pytest.approx(Segmentation(3).metric(mixed))


def test_expected_costs_follow_from_shares():
    shares = (0.5, 0.3, 0.2)
    again = COSTS.expected((0, 1, 2), shares)  # every exit starts again
    assert again == pytest.approx(4 + 0.5 * 6 + 0.2 * 9)
    kept = Costs((4.0, 6.0, 9.0), (1.0, 1.0, 2.0)).expected((0, 1, 2), shares)  # trunks of 3, 5 and 7 go on
    assert kept == pytest.approx(0.5 * (3 + 1) + 0.3 * (5 + 2) + 0.2 * (7 + 4))
    assert COSTS.expected((0, 2), (0.6, 0.4)) == pytest.approx(4 + 0.4 * 9)


def test_what_a_search_says_is_what_the_evidence_says():
    evidence = made_up()
    configurations = search_exits(evidence, COSTS)
    assert {each.policy for each in configurations} == {"static", "anytime", "dynamic"}
    for each in configurations:
        places = [evidence.points.index(point) for point in each.exits]
        if each.policy == "dynamic":
            assert each.threshold is not None
            ends, quality = evidence.of(places, each.threshold)
            shares = [float((ends == number).mean()) for number in range(len(places))]
            assert each.shares == pytest.approx(shares, abs=1e-4)
            assert each.expected_cost == pytest.approx(COSTS.expected(places, shares), abs=1e-5)
            assert each.leaked_bits == len(places) - 1
            assert Stop.parse(each.word) == Stop(None, each.threshold, each.exits[:-1])
        else:
            quality = 100 * evidence.right[places[-1]].mean()
            assert each.leaked_bits == 0
            assert sum(each.shares) == 1
        assert each.quality == pytest.approx(quality, abs=1e-3)


def test_static_exits_are_all_there_and_no_dynamic_one_is_beaten():
    configurations = search_exits(made_up(), COSTS)
    assert [each.exits for each in configurations if each.policy == "static"] == [(1,), (2,), (4,)]
    assert [each.expected_cost for each in configurations] == sorted(each.expected_cost for each in configurations)
    (anytime,) = (each for each in configurations if each.policy == "anytime")
    assert anytime.expected_cost == 4 + 6 + 9
    assert anytime.shares == (0, 0, 1)
    for one in configurations:
        for other in configurations:
            if other.policy == "dynamic" and one.policy != "anytime":
                assert not (one.expected_cost < other.expected_cost and one.quality >= other.quality)


@pytest.mark.parametrize("seed", range(5))
def test_a_higher_threshold_lets_fewer_end_at_the_first_exit(seed: int):
    evidence = made_up(seed)
    shares = [(evidence.of((0, 2), threshold)[0] == 0).mean() for threshold in THRESHOLDS]
    assert all(after <= before for before, after in pairwise(shares))
    assert evidence.of((0, 2), 0.0)[1] == pytest.approx(100 * evidence.right[0].mean())
    assert evidence.of((0, 2), 1.1)[1] == pytest.approx(100 * evidence.right[2].mean())


def test_the_cheapest_keeps_to_the_loss():
    configurations = search_exits(made_up(), COSTS)
    whole = next(each.quality for each in configurations if each.exits == (4,))
    for loss in (0.0, 3.0, 100.0):
        chosen = cheapest_within(configurations, loss)
        assert chosen.quality >= whole - loss
        assert all(
            each.expected_cost >= chosen.expected_cost for each in configurations if each.quality >= whole - loss
        )
    assert cheapest_within(configurations, 100.0).exits == (1,)
    evidence = made_up()
    threshold = lowest_threshold(evidence, (1, 4), 2.0)
    assert evidence.of((0, 2), threshold)[1] >= whole - 2.0
    assert all(evidence.of((0, 2), lower)[1] < whole - 2.0 for lower in THRESHOLDS if lower < threshold)


def test_choosing_another_configuration_trains_nothing(monkeypatch: pytest.MonkeyPatch):
    data, network = digits(), attach_exits(trained(), (1, 2))
    before = weights(network)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something is trained")

    monkeypatch.setattr(TrainingRun, "__init__", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    batches = [(data.normalize(x), y) for x, y in data.validation.batches(25)]
    evidence = gather(network, batches)
    cheap, dear = (cheapest_within(search_exits(evidence, costs), 100.0) for costs in (COSTS, Costs((3.0, 2.0, 1.0))))
    assert cheap.exits == (1,)
    assert dear.exits == (3,)
    assert equal(before, weights(network))
    static = [each.quality for each in search_exits(evidence, COSTS) if each.policy == "static"]
    assert static == pytest.approx([accuracy(network.exit(point), data, data.validation) for point in (1, 2, 3)])


def test_words_for_where_to_stop():
    assert Stop.parse("2") == Stop(2)
    assert Stop.parse("dynamic") == Stop()
    assert Stop.parse("dynamic:0.8:1.3") == Stop(None, 0.8, (1, 3))
    assert Stop.parse("dynamic").points((1, 2, 4)) == (1, 2, 4)
    assert Stop.parse("dynamic:0.5:2").points((1, 2, 4)) == (2, 4)


@pytest.mark.parametrize("word", ["", "first", "-1", "1.2", "dynamic:", "dynamic:2", "dynamic:nan", "dynamic:0.5:1:2"])
def test_words_that_mean_nothing_are_refused(word: str):
    with pytest.raises(ValueError, match=r"--exit .*: give the stage of an exit, such as 1, or dynamic"):
        Stop.parse(word)


@pytest.mark.parametrize("word", ["dynamic:0.5:3", "dynamic:0.5:2.1", "dynamic:0.5:4"])
def test_exits_that_a_network_does_not_have_are_refused(word: str):
    with pytest.raises(ValueError, match=r"the network has exits 1\.2; name some, rising"):
        Stop.parse(word).points((1, 2, 4))
