"""The explorable report and the live page: their data, their server, and both in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread

import pytest

from deepreshape.cost import CostReport, Link, Quote
from deepreshape.counting import count
from deepreshape.experiments import live
from deepreshape.experiments.live import explore, live_quote, page_server
from deepreshape.models import architecture, build
from deepreshape.models.saved import Manifest, save
from deepreshape.private.crypto.he.packing import _cheapest
from deepreshape.removal import plan
from deepreshape.report import render, summarize
from deepreshape.report.explore import Priced, described, embedded
from deepreshape.training.runs import finished

WORDS = {
    "phi": "2,2,2,2", "base": "4", "alpha": "5", "beta": "5", "gamma": "3", "budget": "30", "input": "3x16x16",
    "wire": "20mbit/100mbit/40ms", "kind": "gc-full",
}  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with two points, untrained."""
    folder = tmp_path_factory.mktemp("job")
    whole = architecture("resnet18-m4", (1, 8, 8), 10)
    rows = []
    for budget in (None, 600):
        network = plan(whole, budget).architecture if budget else whole
        model = build(network, seed=0)
        relus = count(model, network.input).total.relus
        manifest = Manifest(network, "digits", tuple("0123456789"), (0.0,), (1.0,), ({"recipe": {"lr": 0.1}},))
        save(model, folder / "models" / str(budget), manifest)
        rows.append(
            {"id": str(budget), "network": "resnet18-m4", "plan": str(budget), "budget": budget, "relus": relus}
            | {"macs": 10, "params": 5, "top1": 50.0 + relus / 100, "seed": 0, "data": "digits", "n": 360}
            | {"command": "deepreshape train", "priced_seconds": {"server-garbler": 1.0}, "epochs": 3}
        )
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_points_carry_prices_layers_sites_and_settings(job: Path):
    data = explore(summarize(finished(job)), [job])
    whole, reduced = data["points"]
    assert set(whole["priced"]) == set(data["terms"])
    assert {"gc-full, lan", "server-garbler, wireless"} <= set(data["terms"])
    assert whole["settings"]["lr"] == 0.1
    for point in (whole, reduced):
        assert sum(kept for _, kept, _ in point["sites"]) == point["relus"]
        price = point["priced"]["gc-full, wan"]
        seconds = sum(offline + online for _, offline, online in price["layers"])
        assert seconds == pytest.approx(price["seconds"]["total"], abs=1e-3)
    assert [kept for name, kept, _ in reduced["sites"] if name.startswith("stage1")] == [0, 0, 0, 0]
    assert explore(summarize(finished(job)), [])["points"] == []


def test_nothing_in_the_data_can_leave_its_script_element():
    quote = Quote("</script><b>", "server", Link(1, 1), "<!--", CostReport(()))
    data = described(Priced({"</script>": quote}, (), {"x": "<!--"}))
    assert "<" not in embedded(data)
    assert json.loads(embedded(data)) == json.loads(json.dumps(data))


def test_the_sliders_are_answered_by_arithmetic_as_a_trace_would():
    quote = live_quote(WORDS)
    whole = architecture("hrn-5x5x3x-m4", (3, 16, 16))
    chosen = plan(whole, 30 * count(build(whole, "meta"), whole.input).total.relus // 100)
    traced = count(build(chosen.architecture, "meta"), whole.input).total
    assert (quote["network"], quote["plan"]) == ("hrn-5x5x3x-m4", str(chosen))
    assert (quote["relus"], quote["macs"]) == (traced.relus, traced.macs)
    assert list(quote["priced"]) == ["gc-full, 20mbit/100mbit/40ms"]
    assert live_quote(WORDS | {"phi": "1,1", "budget": "100"})["network"] == "stch-5x-m4-phi1.1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phi": "2,x"}, "cannot read the settings: invalid literal"),
        ({"wire": "dsl"}, "unknown link 'dsl'"),
        ({"kind": "magic"}, "unknown protocol 'magic'"),
        ({"budget": "1", "base": "1"}, "no coarse plan reaches"),
        ({"phi": "2,2,2,2,2"}, "5 stages need 4 multipliers, not 3"),
    ],
)
def test_wrong_settings_say_so(changes: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        live_quote(WORDS | changes)


@pytest.fixture
def port(job: Path) -> Iterator[int]:
    with page_server(0, summarize(finished(job)), [job]) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    line = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        line.request("GET", path, headers={"Host": f"{host}:{port}"})
        answer = line.getresponse()
        return answer.status, answer.read().decode()
    finally:
        line.close()


def test_the_server_answers_loopback_names_only(port: int):
    status, body = get(port, "/")
    assert status == 200
    assert not re.search(r"(src|href)=\"(?!#)", body)
    assert get(port, "/", "somewhere.example") == (403, "loopback only")
    assert get(port, "/passwd")[0] == 404
    words = "&".join(f"{key}={value}" for key, value in WORDS.items())
    assert json.loads(get(port, f"/quote?{words}")[1])["network"] == "hrn-5x5x3x-m4"
    assert json.loads(get(port, "/quote?phi=2")[1])["error"].startswith("cannot read the settings")


def browse(address: str, folder: Path) -> str:
    """The page's elements after its scripts have run."""
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed")
    flags = (
        "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update "
        "disable-sync virtual-time-budget=9000 dump-dom"
    ).split()
    command = [chromium, *(f"--{flag}" for flag in flags), f"--user-data-dir={folder / 'profile'}", address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_report_works_in_a_browser(job: Path, tmp_path: Path):
    rows = finished(job)
    data = embedded(explore(summarize(rows), [job]))
    path = tmp_path / "report.html"
    path.write_text(render(rows, baseline="resnet18-m4", settings="", command="", data=data))
    page = browse(f"file://{path}#resnet18-m4: 600", tmp_path)
    marks = re.findall(r'<path class="mark[^>]*>', page)
    assert len(marks) == 2
    assert all('tabindex="0"' in mark and 'role="button"' in mark and "aria-label" in mark for mark in marks)
    assert "<h3>resnet18-m4: 600</h3>" in page
    assert page.count("removed") > 4
    assert '<section class="explore" id="explore">' in page  # no longer hidden


def test_the_live_page_works_in_a_browser(port: int, tmp_path: Path):
    page = browse(f"http://127.0.0.1:{port}/", tmp_path)
    assert "<h3>hrn-5x5x3x: all ReLUs</h3>" in page
    assert "343,040 ReLUs, 1,053 M MACs" in page


def test_another_link_lays_nothing_out_again():
    live_quote(WORDS)
    before = _cheapest.cache_info().misses
    far = live_quote({**WORDS, "wire": "wan"})
    assert _cheapest.cache_info().misses == before
    assert far["priced"] != live_quote(WORDS)["priced"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phi": "100000,1,1,1"}, "a stage's blocks: 100000 is above 32"),
        ({"phi": ",".join("1" * 60)}, "the number of stages: 60 is above 5"),
        ({"base": "1000000"}, "base channels: 1000000 is above 512"),
        ({"alpha": "99"}, "a multiplier: 99 is above 32"),
        ({"input": "3x1x100000"}, "a side of the input: 100000 is above 512"),
        ({"input": "99x8x8"}, "input channels: 99 is above 16"),
    ],
)
def test_every_setting_of_the_page_has_a_bound(changes: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        live_quote(WORDS | changes)


@pytest.mark.parametrize(
    "header", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_requests_of_other_pages_are_refused(header: dict[str, str], port: int):
    line = HTTPConnection("127.0.0.1", port, timeout=20)
    line.request("GET", "/quote?phi=2", headers=header)
    assert line.getresponse().status == 403
    line.close()
    line = HTTPConnection("127.0.0.1", port, timeout=20)
    line.request("GET", "/", headers={"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"})
    assert line.getresponse().status == 200
    line.close()


def test_nothing_is_priced_for_a_reader_who_has_left(port: int, monkeypatch: pytest.MonkeyPatch):
    priced: list[str] = []
    begun, go_on = Event(), Event()

    def slow(words: dict[str, str]) -> dict[str, str]:
        priced.append(words["phi"])
        begun.set()
        go_on.wait(30)
        return {}

    monkeypatch.setattr(live, "live_quote", slow)
    first = HTTPConnection("127.0.0.1", port, timeout=20)
    first.request("GET", "/quote?phi=first")
    assert begun.wait(30)
    for _ in range(5):
        left = HTTPConnection("127.0.0.1", port, timeout=20)
        left.request("GET", "/quote?phi=left")
        left.close()
    go_on.set()
    assert first.getresponse().status == 200
    first.close()
    assert get(port, "/quote?phi=last")[0] == 200
    assert priced == ["first", "last"]
