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
    with pytest.raises(ValueError, match=r"q\.json is no profile .*; `deepreshape calibrate --out"):
        Profile.read(tmp_path / "q.json")
