"""The commands for exits, from training to two parties, and what they refuse."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from support.command_line import answer, call
from support.few_digits import digits

from deepreshape.cli.exits import _ended
from deepreshape.cli.private.exits import print_exits, print_exits_asked
from deepreshape.design.exits import Configuration, gather
from deepreshape.models.exits import MultiExitNetwork
from deepreshape.models.saved import load
from deepreshape.private.program import interpret
from deepreshape.private.service.bundle import Bundle
from deepreshape.private.service.exit_bundle import ExitFacts, read_exits
from deepreshape.private.service.exits_in_turn import InTurn
from deepreshape.private.service.predict import Prediction
from deepreshape.report.exits import page_of_exits

QUICK = ("--data", "digits", "--set", "epochs=1", "--set", "heads.epochs=1")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exits")
    report = answer("exits", "train", "resnet20-m2-phi1.1.1", *QUICK, "--at", "1,2", "--out", "m", cwd=folder)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_training_says_what_every_exit_is_worth(there: Path):
    report = json.loads((there / "report.json").read_text())
    assert [each["at"] for each in report["exits"]] == [1, 2]
    assert report["end"]["at"] == 3
    assert not (there / "m" / "run").exists()
    for each in (*report["exits"], report["end"]):
        counted = answer("count", "m", "--exit", str(each["at"]), cwd=there)
        assert (counted["relus"], counted["macs"]) == (each["relus"], each["macs"])
        assert 0 <= each["quality"] <= 100
    assert answer("count", "m", cwd=there)["relus"] == report["end"]["relus"]
    assert answer("eval", "m", "--exit", "1", cwd=there)["relus"] == report["exits"][0]["relus"]


def test_a_search_lists_configurations_and_changes_nothing(there: Path):
    before = (there / "m" / "model.safetensors").read_bytes(), (there / "m" / "manifest.json").read_bytes()
    for cost in ("macs", "relus", "seconds", "bytes"):
        link = ("--link", "wan") if cost in ("seconds", "bytes") else ()
        report = answer("exits", "search", "m", "--cost", cost, *link, cwd=there)
        static = {tuple(each["exits"]): each for each in report["configurations"] if each["policy"] == "static"}
        assert list(static) == sorted(static, key=lambda exits: static[exits]["expected_cost"])
        assert set(static) == {(1,), (2,), (3,)}
        assert {"quality", "expected_cost", "shares", "leaked_bits", "threshold"} <= set(report["chosen"])
        if cost in ("macs", "relus"):
            assert static[1,]["expected_cost"] == answer("count", "m", "--exit", "1", cwd=there)[cost]
    assert before == ((there / "m" / "model.safetensors").read_bytes(), (there / "m" / "manifest.json").read_bytes())


def test_a_page_shows_every_configuration_and_images_by_the_exit_they_end_at(there: Path, tmp_path: Path):
    page = tmp_path / "exits.html"
    report = answer("exits", "search", str(there / "m"), "--out", str(page), cwd=tmp_path)
    text = page.read_text()
    assert text.count("<tr>") == 1 + len(report["configurations"])
    assert page.stat().st_size < 1e6
    data, network = digits(), load(there / "m")
    assert isinstance(network, MultiExitNetwork)
    evidence = gather(network, [(data.normalize(data.validation.images), data.validation.labels)])
    policy = Configuration((1, 3), "dynamic", float(np.median(evidence.confidence[0])), 50.0, 9.0, (0.5, 0.5), 1)
    images = _ended(network, evidence, data, policy)
    assert [each.at for each in images] == [1] * 8 + [3] * 8
    assert all((each.confidence >= policy.threshold) for each in images[:8])
    text = page_of_exits("m", report, "top-1", policy.word, images, "again")
    assert text.count("<figure>") == text.count("data:image/png;base64,") == 16
    assert f"--exit {policy.word}</h2>" in text


def test_a_search_compares_kinds_of_heads(there: Path):
    answer("exits", "save", "m", "--out", "trunk", cwd=there)
    words = ("--trunk", "kept", "--heads", "conv", "--data", "digits", "--set", "heads.epochs=1")
    trained = answer("exits", "train", "trunk", *words, "--at", "1,2", "--out", "conv", cwd=there)
    assert trained["exits"][0]["relus"] == answer("count", "m", "--exit", "1", cwd=there)["relus"] + 2 * 64
    both = answer("exits", "search", "m", "conv", "--cost", "relus", cwd=there)
    alone = [answer("exits", "search", model, "--cost", "relus", cwd=there) for model in ("m", "conv")]
    listed = [{**each, "model": None} for one in alone for each in one["configurations"]]
    assert all({**each, "model": None} in listed for each in both["configurations"])
    assert {each["model"] for each in both["configurations"]} == {"m", "conv"}
    assert both["chosen"]["expected_cost"] == min(one["chosen"]["expected_cost"] for one in alone)
    assert " of " in call("exits", "search", "m", "conv", cwd=there).out.splitlines()[-1]


def test_an_exit_is_saved_as_a_network_of_its_own(there: Path):
    answer("exits", "save", "m", "--exit", "1", "--out", "one", cwd=there)
    assert answer("eval", "one", cwd=there) == answer("eval", "m", "--exit", "1", cwd=there)
    done = call("linearize", "m", "--budget", "10", "--out", "less", cwd=there)
    assert done.code == 2
    assert "`deepreshape exits save` writes one" in done.err


def test_a_price_says_what_is_told(there: Path):
    quote = answer("cost", "m", "--exit", "1", "--link", "lan", cwd=there)
    assert quote["relus"] == answer("count", "m", "--exit", "1", cwd=there)["relus"]
    priced = answer("cost", "m", "--exit", "dynamic:0.3", "--link", "lan", cwd=there)
    assert priced["leaked_bits"] == 2
    assert [each["at"] for each in priced["exits"]] == [1, 2, 3]
    totals = [each["seconds"]["total"] for each in priced["exits"]]
    assert totals[0] == pytest.approx(quote["seconds"]["total"], rel=0.01)
    first, second, _ = (each["share"] for each in priced["exits"])
    expected = totals[0] + (1 - first) * totals[1] + (1 - first - second) * totals[2]
    assert priced["expected"]["seconds"]["total"] == pytest.approx(expected)
    both = answer("cost", "m", "--exit", "dynamic:0.3", "--protocol", "gc-full,ot", "--link", "lan", cwd=there)[
        "quotes"
    ]
    assert both[0] == priced
    assert [each["protocol"] for each in both] == ["gc-full", "ot"]
    assert "the server learns of each input" in call("cost", "m", "--exit", "dynamic:0.3", cwd=there).out.replace(
        "\n", " "
    )


def test_a_static_exit_runs_between_two_parties(there: Path):
    ran = answer("private", "local", "--model", "m", "--exit", "1", cwd=there)
    assert ran["agree"]
    assert ran["declared_bytes_match"]
    assert ran["relus"] == answer("count", "m", "--exit", "1", cwd=there)["relus"]
    assert ran["exit_shares"] == {"1": 1.0}
    assert ran["leaked_bits"] == 0
    lowered = answer("private", "lower", "m", "--exit", "1", "--out", "bundle", cwd=there)
    assert lowered["relus"] == ran["relus"]


def test_the_client_asks_on_until_it_is_sure(there: Path):
    ran = answer("private", "local", "--model", "m", "--exit", "dynamic:1:1", cwd=there)
    assert ran["agree"]
    assert ran["declared_bytes_match"]
    assert ran["exit_shares"] == {"1": 0.0, "3": 1.0}  # nothing reaches a confidence of 1
    assert ran["leaked_bits"] == 1
    first, end = (each["report"] for each in ran["exits"])
    assert ran["relus"] == first["relus"] + end["relus"]
    for phase in ("offline", "online"):
        assert ran["bytes"][phase] == first["bytes"][phase] + end["bytes"][phase]
    assert ran["beside_float"]["inputs"] == 1
    stdout = StringIO()
    with redirect_stdout(stdout):
        print_exits(ran)
    said = " ".join(stdout.getvalue().split())
    assert "the server learns of each input at which exit it ended, at most 1 bit; the client the logits" in said


def test_a_client_asks_the_exits_that_a_server_offers(there: Path, tmp_path: Path):
    lowered = answer("private", "lower", str(there / "m"), "--exit", "all", "--out", "bundle", cwd=tmp_path)
    assert [each["at"] for each in lowered["exits"]] == [1, 2, 3]
    assert read_exits(tmp_path / "bundle") == ExitFacts((1, 2, 3), lowered["threshold"])
    answer("private", "keygen", "--out", "keys", cwd=tmp_path)
    np.save(tmp_path / "x.npy", digits().validation.images[0].numpy())
    serve = "--program bundle --keys keys --store server --port 0 --sessions 8 --relu ot"
    command = [sys.executable, "-m", "deepreshape", "private", "serve", *serve.split(), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stderr is not None
            port = server.stderr.readline().rsplit(":", 1)[1].strip()
            words = f"--program bundle --keys keys --store client --port {port} --relu ot".split()
            assert len(answer("private", "prepare", *words, "--exit", "dynamic:1:2", cwd=tmp_path)["batches"]) == 2
            # the two batches are used, and one is made for exit 1
            on = answer("private", "query", "x.npy", *words, "--exit", "dynamic:1:2", cwd=tmp_path)
            early = answer("private", "query", "x.npy", *words, "--exit", "dynamic:0", cwd=tmp_path)
            static = call("private", "query", "x.npy", *words, "--exit", "2", cwd=tmp_path)
            assert json.loads(server.communicate(timeout=60)[0])["served"] == 8
        finally:
            server.kill()
    assert [each["at"] for each in on["asked"]] == [2, 3]  # nothing reaches a confidence of 1
    assert (on["exit"], on["exits"], on["leaked_bits"]) == (3, [2, 3], 1)
    assert on["bytes"]["online"] == sum(each["bytes"] for each in on["asked"])
    assert ([each["at"] for each in early["asked"]], early["exits"], early["leaked_bits"]) == ([1], [1, 2, 3], 2)
    assert "exit 2 answers everything: the server learns nothing of the input" in static.out
    for said, point in ((on, 3), (early, 1)):
        bundle = Bundle.read(tmp_path / "bundle" / f"exit{point}", "server")
        x, _ = bundle.facts.input_of(tmp_path / "x.npy", bundle.program.input_shape)
        logits = bundle.program.decode(interpret.run(bundle.program, bundle.program.encode(x[None])))[0][0]
        wanted = dict(Prediction.of(logits.reshape(-1), bundle.facts, seconds={}, bytes={}, agree=None).ranked)
        seen = {each["class"]: each["probability"] for each in said["classes"]}
        assert seen == pytest.approx(wanted, abs=1e-3)  # truncation of shares may be off by the lowest bit
        assert said["asked"][-1]["confidence"] == max(seen.values())


def test_a_folder_holds_one_program_or_those_of_exits(there: Path, tmp_path: Path):
    words = ("private", "lower", str(there / "m"), "--out", "bundle")
    answer(*words, cwd=tmp_path)
    done = call(*words, "--exit", "all", cwd=tmp_path)
    assert "bundle held one program, which those of exits replaced" in done.err
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"exits.json", "exit1", "exit2", "exit3"}
    answer(*words, "--exit", "2", cwd=tmp_path)
    assert not (tmp_path / "bundle" / "exits.json").exists()


def test_what_a_client_asks_and_who_learns_it_is_said():
    told = {"exit": 3, "threshold": 0.8, "asked": [{"at": 1, "confidence": 0.42}, {"at": 3, "confidence": 0.7}]}
    stdout = StringIO()
    with redirect_stdout(stdout):
        print_exits_asked(told | {"exits": [1, 3]})
    said = " ".join(stdout.getvalue().split())
    assert "asked exit 1 with confidence 0.42, exit 3 with confidence 0.7, where 0.8 ends" in said
    assert "the server learns of each input at which exit it ended, at most 1 bit; the client the logits" in said


@pytest.mark.parametrize(
    ("program", "exit", "says"),
    [
        ("bundle", "9", "--exit 9: bundle holds exits 1, 4"),
        ("bundle", "soon", "--exit soon: give the stage of an exit"),
        ("bundle", "dynamic:0.5:2", "the network has exits 1; name some"),
        ("bundle", "dynamic", "names no confidence that ends; give one, as dynamic:0.8"),
        ("file", "1", "--exit 1: file is one program"),
        ("empty", "1", "empty holds no exits.json; `deepreshape private lower M --exit all --out empty` makes it"),
        ("broken", "1", "exits.json is to hold points, stages that rise, and threshold"),
    ],
)
def test_exits_that_a_folder_does_not_hold_are_refused(tmp_path: Path, program: str, exit: str, says: str):
    for name, points in (("bundle", [1, 4]), ("broken", [4, 1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "exits.json").write_text(json.dumps({"points": points, "threshold": None}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    words = ("--program", program, "--keys", "keys", "--store", "store", "--exit", exit)
    done = call("private", "query", "x.npy", *words, cwd=tmp_path)
    assert done.code == 2
    assert says in " ".join(done.err.split())


def test_a_mean_of_inputs_that_ended_at_different_exits():
    def report(n: int) -> dict:
        pair = {"offline": 10.0 * n, "online": 1.0 * n}
        flags = dict.fromkeys(("agree", "same_class", "declared_bytes_match"), True)
        counts = dict.fromkeys(
            ("relus", "squares", "signs", "rounds", "max_lsb_difference", "same_places", "places"), n
        )
        roles = {"client": 5.0 * n, "server": 3.0}
        sizes = {"bytes": pair, "seconds": pair, "peak_rss_mib": roles, "stored_mib": roles}
        return {**flags, **counts, **sizes, "layers": [{"layer": f"l{n}"}]}

    done = InTurn((np.zeros(2),) * 4, np.array([0, 1, 0, 0]), (report(1), report(5), None), (4, 1, 0))
    of_all = done.report({0: "1", 1: "2", 2: "3"})
    assert of_all["relus"] == 1 + 5 / 4
    assert of_all["bytes"] == {"offline": 10 + 50 / 4, "online": 1 + 5 / 4}
    assert (of_all["same_places"], of_all["places"]) == (6, 6)
    assert of_all["peak_rss_mib"] == {"client": 25.0, "server": 3.0}
    assert of_all["layers"] == [{"exit": "1", "layer": "l1"}, {"exit": "2", "layer": "l5"}]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("exits", "train", "resnet20", *QUICK, "--at", "2,1"), "exits at 2,1: give stages that rise, from 1 to 2"),
        (("exits", "train", "resnet20", *QUICK, "--at", "1,3"), "3 is no stage before the last of 3"),
        (("exits", "train", "resnet20", *QUICK, "--at", "x"), "--at takes integers with commas between, not 'x'"),
        (
            ("exits", "train", "resnet20", *QUICK, "--at", "1", "--heads", "big"),
            "unknown kind of heads 'big'; known are light, conv",
        ),
        (("exits", "train", "resnet20", *QUICK, "--at", "1", "--distill", "all"), "--distill is one of pfd, kd, none"),
        (("exits", "train", "resnet20", *QUICK, "--at", "1", "--trunk", "new"), "--trunk is aware or kept, not 'new'"),
        (
            ("exits", "train", "resnet20", "--data", "digits", "--at", "1", "--trunk", "kept"),
            "resnet20 is a name and no trained network",
        ),
        (("exits", "train", "m", *QUICK, "--at", "1"), "m has exits already"),
        (("exits", "train", "sphynx-c2-l4-r0.2", *QUICK, "--at", "1"), "is not one stage after the other"),
        (("exits", "train", "resnet20", "--data", "digits", "--at", "1", "--set", "holdout=false"), "holdout=false"),
        (("exits", "search", "zoo:digits"), "zoo:digits has no exits to choose from"),
        (("exits", "search", "m", "--cost", "joules"), "--cost is macs, relus, seconds or bytes, not 'joules'"),
        (("exits", "search", "m", "--link", "wan"), "--link wan is of seconds and bytes; --cost relus is the same"),
        (("exits", "search", "m", "--cost", "macs", "--protocol", "ot"), "--protocol ot is of seconds and bytes"),
        (("count", "sphynx-c2-l4-r0.2-exits1"), "a network of kind cells is not one stage after the other"),
        (("exits", "save", "zoo:digits"), "zoo:digits is no saved model with exits"),
        (("count", "m", "--exit", "4"), "there is no exit 4: exits are at 1, 2, and 3 is the whole"),
        (("count", "zoo:digits", "--exit", "1"), "--exit 1: the network has no exits"),
        (("count", "resnet18-exits2.1"), "exits at 2,1: give stages that rise"),
        (("cost", "m", "--exit", "4"), "there is no exit 4"),
        (("cost", "m", "--exit", "dynamic", "--protocol", "server-garbler"), "has a price as it was published"),
        (("cost", "m", "--exit", "dynamic", "--protocol", "fhe"), "which --protocol fhe does not price"),
        (("cost", "resnet20-exits1", "--exit", "dynamic:0.5"), "is priced by how many labelled images stop where"),
        (("private", "local", "--model", "m", "--exit", "4"), "there is no exit 4"),
        (("private", "lower", "m", "--exit", "4"), "there is no exit 4"),
        (("private", "lower", "m", "--exit", "some"), "--exit some: give the stage of an exit, such as 1, or all"),
        (("private", "lower", "zoo:digits", "--exit", "all"), "--exit all: zoo:digits has no exits"),
        (("private", "lower", "m", "--exit", "all", "--max-loss", "1"), "--max-loss 1 is for one program"),
        (("private", "local", "--model", "m", "--exit", "soon"), "--exit soon: give the stage of an exit"),
        (("private", "local", "--model", "m", "--exit", "dynamic:0.5:3"), "the network has exits 1.2"),
        (("private", "local", "--model", "zoo:digits", "--exit", "dynamic"), "zoo:digits has no exits"),
        *(
            (("private", "local", "--model", "m", "--exit", "dynamic", "--relu", relu), f"{relu} is for one program")
            for relu in ("gc-stochastic:window", "auto", "ot:auto")
        ),
        (("private", "local", "--model", "m", "--exit", "dynamic", "--picture", "p.png"), "p.png is of one program"),
    ],
)
def test_wrong_input_is_one_line(there: Path, words: tuple[str, ...], says: str):
    out = ("--out", "new") if words[:2] in (("exits", "train"), ("exits", "save"), ("private", "lower")) else ()
    done = call(*words, *out, cwd=there)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not (there / "new").exists()
