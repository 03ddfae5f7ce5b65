import json
from pathlib import Path

import pytest

from deepreshape.cost import Profile, reference


def test_the_reference_profile_says_what_it_is():
    profile = reference()
    assert profile.machine["cpu"]
    assert profile.versions["numpy"]
    assert min(profile.units.values()) >= 0
    assert all(profile.units[unit] > 0 for unit in ("gc-full.server.garble", "he2.encrypt", "ot.choose", "tls.send"))


def test_a_profile_comes_back_from_its_file(tmp_path: Path):
    (tmp_path / "p.json").write_text(reference().to_json())
    assert Profile.read(tmp_path / "p.json") == reference()
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(ValueError, match=r"q\.json is not a cost profile .*; create one with `deepreshape"):
        Profile.read(tmp_path / "q.json")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", '"1"', "true", "null"])
def test_a_unit_that_is_no_time_is_refused_when_the_file_is_read(value: str, tmp_path: Path):
    content = json.loads(reference().to_json())
    content["units"]["x"] = "HERE"
    (tmp_path / "p.json").write_text(json.dumps(content).replace('"HERE"', value))
    with pytest.raises(ValueError, match=r"p\.json is not a cost profile \(x: .* is no number of seconds or bytes\)"):
        Profile.read(tmp_path / "p.json")
