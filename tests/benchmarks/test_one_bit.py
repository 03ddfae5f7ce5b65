"""The table of one bit: the page has what the rows have, and rows are what a plan declares."""

import json
import sys
from pathlib import Path

from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.relu_config import ReluConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import one_bit

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_of_the_rows():
    rows = json.loads((ROOT / "benchmarks" / "results" / "one_bit.json").read_text())["rows"]
    assert "\n".join(one_bit.table(rows)) in (ROOT / "docs" / "removal.md").read_text()
    assert {row["network"] for row in rows} >= set(one_bit.SHOWN)


def test_rows_have_declared_bytes_predicted_seconds_and_the_bits_that_are_read():
    program, one = one_bit.lowered("react18-m2-phi1.1.1.1-noshortcuts")
    wide, narrow = one_bit.rows_of("tiny", program, ["gc-full", "ot:window"], None)
    assert one.shape[1:] == (3, 32, 32)
    for row in (wide, narrow):
        declared = Plan(program.public(), ReluConfig.parse(row["protocol"])).declared()
        assert abs(sum(row["megabytes"].values()) - declared.bytes / 1e6) < 0.06
        assert row["signs"]["count"] == program.signs
        assert all(seconds > 0 for link in row["predicted_seconds"].values() for seconds in link.values())
        assert "measured" not in row
    assert wide["signs"]["bits"][0] == narrow["signs"]["bits"][0] < 11
    assert narrow["signs"]["bits"][-1] <= wide["signs"]["bits"][-1]
    assert narrow["signs"]["bytes_online"] < wide["signs"]["bytes_online"]
