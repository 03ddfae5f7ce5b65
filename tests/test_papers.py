"""The ledger of the papers' claims: the page, the rows and the judges are of one mind."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def papers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("papers", ROOT / "benchmarks" / "papers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["papers"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_rows(papers: ModuleType):
    assert papers.PAGE.read_text() == papers.page()


def test_measured_values_are_written_for_readers(papers: ModuleType):
    cell = sys.modules["papers_claim"].cell
    assert not set("{}[]") & set(papers.page().replace("](", "").replace("[its rows", ""))
    assert cell({"gap": 9.4e-05, "never_rises": True, "bytes": [124750424, 2.5]}) == (
        "gap: 9.4e-05; never rises: yes; bytes: 124,750,424 / 2.5"
    )
    many = {str(number): 1000 * number for number in range(1, 8)}
    assert cell({"relus": many, "published": dict(many)}) == (
        "relus: 7 values from 1,000 to 7,000; published: the same"
    )
    assert cell({"by_seed": [{"dead_units": {"plain": 1.25}}]}) == "by seed: (dead units = (plain = 1.25))"


def test_a_stored_verdict_is_the_judges(papers: ModuleType):
    claims = {claim.id: claim for claim in papers.CLAIMS}
    assert len(claims) == len(papers.CLAIMS)
    for name, row in papers.known().items():
        assert row["verdict"] == claims[name].judge(row["measured"])


def test_each_judge_can_say_no(papers: ModuleType):
    claims = {claim.id: claim for claim in papers.CLAIMS}
    worst = {
        "NTK-1": {"never_rises": True, "objective_over_ntk": 0.9, "gap": 0.01},
        "NTK-2": {"optimum_better": 2, "tables": 5},
        "PRX-1": {"percent_of_starts_at_slope": {"0.0": 30.0, "0.1": 30.0}},
        "AES-1": {"coefficients_off": 1e-7, "folded_off": 1e-3},
        "AES-2": {"points_lost": {"digits": 0.1, "resnet8": 3.1}},
        "AES-5": {"relu": [97.0, 97.0], "herpn": [97.0, 93.5], "square": [None, 10.0]},
        "AES-3": {"ratio": {"online": 14.9}},
        "AES-4": {"ratio": {"loopback": 2.9, "wan": 1.0}},
        "DRS-1": {"measured": {"gc-full": 1.4}},
        "DRS-2": {"measured": {"gc-full": 1.4}},
        "REA-1": {"cases": 200_000, "different": 1},
        "REA-2": {"points_lost": [1.0, 6.5]},
        "REA-3": {"points": [1.0, -2.0, 0.5]},
        "REA-4": {"two_steps_one_step": [[90.0, 91.0], [90.0, 90.0]]},
        "PRX-2": {"points": [0.5, -1.0, 0.2]},
        "PRX-3": {"by_seed": [{"gain_percent": -0.1, "dead_units": {"plain": 10, "split": 0}}]},
        "DRS-3": {"points": {"50,000, seed 0": -0.1}},
        "DRS-4": {"points": {"taylor": 0.4, "coarse": -0.6}},
        "SNL-2": {"points": {"50,000": 0.0}},
        "CIR-1": {"ratio": {"stored": 1.4}},
        "CIR-3": {"points_lost": 3.1},
        "SPH-1": {"relus": {"a": 1}, "published": {"a": 2}},
        "NAD-1": {"adjusted": 167_552, "before": 188_416},
        "SEM-1": {"largest_difference": 1e-4},
        "SEM-2": {"times_faster": {"0.2": [1.0, 0.9, 1.0], "0.3": [1.5]}},
        "SEM-3": {"points_lost": {"0.1": 1.1, "0.3": 4.1}},
        "SEM-4": {"best_first": [[90.0, 91.0], [91.0, 90.0], [90.0, 90.0]]},
        "MES-1": {"mean_points_at_exits": 0.0},
        "MES-2": {"points_over_kd": 0.0, "points_over_none": -0.1},
        "MES-3": {"macs_ratio": {"shapes, seed 0": 1.49}},
        "MES-4": {"seconds": {"shapes, seed 0": 3600.0}},
        "MES-5": {"easy_that_end_early": {"a": 0.3}, "hard_that_end_early": {"a": 0.3}},
    }
    assert set(worst) == {claim.id for claim in papers.CLAIMS if claim.measure}
    assert {claims[name].judge(measured) for name, measured in worst.items()} == {"refuted"}


def test_judges_of_networks_can_say_yes_and_in_part(papers: ModuleType):
    claims = {claim.id: claim for claim in papers.CLAIMS}
    dead = {"plain": 10, "split": 6}
    cases = {
        "MES-1": [{"mean_points_at_exits": 2.0}, {"mean_points_at_exits": 0.1}],
        "MES-2": [{"points_over_kd": 0.1, "points_over_none": 0.1}, {"points_over_kd": 0.1, "points_over_none": -0.1}],
        "MES-3": [{"macs_ratio": {"a": 2.83}}, {"macs_ratio": {"a": 1.5}}],
        "MES-5": [
            {"easy_that_end_early": {"a": 0.8}, "hard_that_end_early": {"a": 0.9}},
            {"easy_that_end_early": {"a": 0.5}, "hard_that_end_early": {"a": 0.4}},
        ],
        "REA-1": [{"cases": 200_000, "different": 0}],
        "REA-2": [{"points_lost": [3.0, -1.0]}, {"points_lost": [3.1, 2.0]}],
        "REA-3": [{"points": [2.0, 2.0, 2.0]}, {"points": [2.0, 2.0, 1.9]}],
        "REA-4": [{"two_steps_one_step": [[2, 1], [3, 1]]}, {"two_steps_one_step": [[2, 1], [1, 1]]}],
        "PRX-2": [{"points": [0.1, 0.1, 0.1]}, {"points": [0.3, -0.1, 0.0]}],
        "PRX-3": [
            {"by_seed": [{"gain_percent": 10, "dead_units": dead}]},
            {"by_seed": [{"gain_percent": 10, "dead_units": dead | {"split": 7}}]},
        ],
        "CIR-3": [{"points_lost": 1.0}, {"points_lost": 1.1}],
        "SEM-2": [{"times_faster": {"0.2": [1.15, 1.2]}}, {"times_faster": {"0.2": [1.14, 1.2]}}],
        "SEM-3": [{"points_lost": {"0.1": 1, "0.3": 4}}, {"points_lost": {"0.1": 0, "0.3": 4.1}}],
        "SEM-4": [{"best_first": [[2, 1], [3, 2]]}, {"best_first": [[3, 1], [1, 1]]}],
    }
    for name, measured in cases.items():
        verdicts = [claims[name].judge(each) for each in measured]
        assert verdicts == ["re-made", "in part"][: len(measured)], name


def test_what_is_not_testable_says_why_and_the_rest_has_a_threshold(papers: ModuleType):
    for claim in papers.CLAIMS:
        assert bool(claim.why) != bool(claim.measure and claim.threshold)
        assert not claim.test or f"def {claim.test.split('::')[1]}(" in (ROOT / claim.test.split("::")[0]).read_text()


def test_the_list_has_its_fixed_shape(papers: ModuleType, capsys: pytest.CaptureFixture[str]):
    papers.main(["--list", "--json"])
    rows = json.loads(capsys.readouterr().out)
    wanted = {"id", "paper", "claim", "published", "kind", "command", "minutes", "needs", "verdict", "measured"}
    assert all(set(row) == wanted for row in rows)


def test_a_killed_run_goes_on_with_what_is_missing(
    papers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(papers, "ROWS", tmp_path / "papers.jsonl")
    monkeypatch.setattr(papers, "known", lambda: rows)
    monkeypatch.setattr(papers, "keep", lambda row: rows.update({row["id"]: row}))
    rows: dict = {"NTK-1": {"id": "NTK-1", "measured": {}}}
    for _ in range(2):
        papers.main(["--all", "--minutes", "0.4"])
    ran = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert {"PRX-1"} <= {*ran}
    assert sorted(ran) == sorted({*rows} - {"NTK-1"})  # none twice, and what had a row not at all
    assert max(claim.minutes for claim in papers.CLAIMS if claim.id in ran) <= 0.4  # what takes longer is left
