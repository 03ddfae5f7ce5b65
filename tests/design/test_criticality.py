import pytest

from deepreshape.design import measure_criticality, only_stage
from deepreshape.models import architecture


def test_keeping_one_stage_keeps_the_stem_with_the_first():
    whole = architecture("resnet18")
    kept = [only_stage(whole, stage).relus for stage in (1, 2, 3, 4)]
    assert kept == [327_680, 131_072, 65_536, 32_768]


def test_criticality_is_the_published_score():
    tops = {1: 50.0, 2: 60.0, 3: 65.0, 4: 55.0}
    by_relus = {only_stage(architecture("resnet18"), stage).relus: tops[stage] for stage in tops}
    criticality = measure_criticality(
        architecture("resnet18"), lambda candidate, seed: by_relus[candidate.relus] + seed, seeds=(0, 2)
    )
    assert criticality.order == (3, 2, 4, 1)
    assert criticality.mean[2] == pytest.approx((65 - 50) / 65_536**0.07)
    assert criticality.mean[0] == 0
    assert criticality.spread == pytest.approx((0, 0, 0, 0), abs=1e-12)
