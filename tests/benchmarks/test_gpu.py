import json
import subprocess
import sys
from pathlib import Path

import torch

from deepreshape.counting import count
from deepreshape.models.saved import load

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(out: Path, deadline: float) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPT), "--tiny", "--deadline", str(deadline), "--out", str(out)]
    return subprocess.run(words, capture_output=True, text=True)


def test_tiny_phases_run_to_their_end_and_are_not_done_twice(tmp_path: Path):
    assert run(tmp_path, 240).returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ids = [row["id"] for row in rows]
    assert ids[:3] == ["resnet18", "hrn", "resnet18-taylor-100000"]
    assert len(ids) == 12
    for row in rows:
        assert row["relus"] == (row["budget"] or row["relus"])
        assert {"gpu_minutes", "cpu_minutes", "outside_data", "top1", "epochs", "command"} <= set(row)
        network = load(tmp_path / "models" / row["id"])
        assert count(network, (3, 32, 32)).total.relus == row["relus"]
        assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    budgets = [row["budget"] for row in rows if row["id"].startswith("resnet18-taylor")]
    assert budgets == sorted(budgets, reverse=True)
    assert len(list((tmp_path / "teacher").glob("view-*"))) == 4
    before = (tmp_path / "results.jsonl").read_bytes()
    again = run(tmp_path, 240)
    assert (again.returncode, again.stdout) == (0, "")
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_no_phase_begins_without_time_for_it(tmp_path: Path):
    done = run(tmp_path, 0.01)
    assert done.returncode == 0
    assert "resnet18: left out" in done.stderr
    assert "hrn: left out, as there is no resnet18" in done.stderr
    assert not (tmp_path / "results.jsonl").exists()
