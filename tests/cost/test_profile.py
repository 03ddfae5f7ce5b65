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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"units": ["he.start"]}, r"its units is \['he.start'\]"),
        ({"machine": {"cpu": "AMD"}}, "its machine has no cpus"),
        ({"resident": "much"}, "its resident is 'much'"),
        ({"seconds": {}}, "it is no JSON object with name, date, machine, versions, units, resident and factors"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_in_a_users_words(change: dict, why: str, tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps(json.loads(reference().to_json()) | change))
    with pytest.raises(ValueError, match=rf"p\.json is not a cost profile \({why}\); create one with"):
        Profile.read(tmp_path / "p.json")
    for content, said in (("{}", "it is no JSON object with name"), ("{", "it is no JSON"), ("7", "it is no JSON obj")):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(ValueError, match=rf"cost profile \({said}"):
            Profile.read(tmp_path / "p.json")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", '"1"', "true", "null"])
def test_a_unit_that_is_no_time_is_refused_when_the_file_is_read(value: str, tmp_path: Path):
    content = json.loads(reference().to_json())
    content["units"]["x"] = "HERE"
    (tmp_path / "p.json").write_text(json.dumps(content).replace('"HERE"', value))
    with pytest.raises(ValueError, match=r"p\.json is not a cost profile \(x: .* is no number of seconds or bytes\)"):
        Profile.read(tmp_path / "p.json")
