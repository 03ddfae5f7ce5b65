"""The house rules of the package that a machine can hold."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepreshape
from deepreshape.cost import reference
from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.arith.square import Squaring
from deepreshape.private.crypto.he.packing import Convolution, lay_out
from deepreshape.private.crypto.he.parameters import known_parameters
from deepreshape.private.program.ops import OPS, Local, Op, Relu, Sign, Weighted
from deepreshape.private.program.relu_config import GC_FULL, SETTINGS, ReluConfig
from deepreshape.private.protocols.base import Protocol
from deepreshape.private.protocols.choose import PROTOCOLS, STEPS, relu_protocol
from deepreshape.private.protocols.garbled.sign_garbled import GarbledSign
from deepreshape.private.protocols.linear import EncryptedLayer, HeLinear
from deepreshape.private.protocols.square import Squares, SquaringLayer
from deepreshape.private.protocols.truncate import Truncation, TruncationLayer

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "deepreshape"
MODULES = sorted(SOURCE.rglob("*.py"))

LEVELS = {
    "nn": 0,
    "data": 0,
    "cost": 0,
    "counting": 0,
    "models": 1,
    "private": 1,
    "training": 1,
    "design": 2,
    "convex": 2,
    "engines": 2,
    "explain": 2,
    "pricing": 2,
    "removal": 3,
    "report": 3,
    "experiments": 4,
    "cli": 5,
    "__main__": 6,
}
"""Which room may import which: only those of a lower level, and ``cost``, which imports nobody."""

PRIVATE = {
    "errors": 0,
    "files": 0,
    "processes": 0,
    "arith": 1,
    "transport": 1,
    "program": 2,
    "crypto": 2,
    "protocols": 3,
    "parties": 4,
    "service": 5,
}
"""The same inside ``private``."""


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def breaches(path: Path) -> list[str]:
    parts, bad = path.relative_to(SOURCE).parts, []
    file, inner = "/".join(parts), parts[1] if parts[0] == "private" and len(parts) > 2 else ""
    for name in imports(path):
        if not name.startswith("deepreshape."):
            continue
        other, _, rest = name.removeprefix("deepreshape.").partition(".")
        if other == room(path) == "private":
            other = rest.partition(".")[0]
            allowed = not inner or other == inner or PRIVATE.get(other, 9) < PRIVATE[inner]
        elif file.startswith("private/program/lower") and other in ("nn", "counting", "models"):
            allowed = True
        else:
            allowed = other in (room(path), "cost") or LEVELS.get(other, 9) < LEVELS[room(path)]
        if not allowed:
            bad.append(f"{file} imports {name}")
    return bad


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) != "__init__"], ids=lambda path: str(path.name)
)
def test_imports_go_one_way(path: Path):
    assert breaches(path) == []


def test_the_one_way_rule_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models").mkdir()
    bad = tmp_path / "models" / "bad.py"
    bad.write_text("from deepreshape.design import equalize\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    assert breaches(bad)


@pytest.mark.parametrize("path", sorted((SOURCE / "private").rglob("*.py")), ids=lambda path: str(path.name))
def test_private_needs_no_torch(path: Path):
    heavy = {name for name in imports(path) if name.split(".")[0] == "torch"}
    assert path.name == "lower.py" or path.parent.name == "lowering" or not heavy


CODE_FROM_DATA = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
"""What can make code run out of data."""
BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"torch", "np", "numpy", "yaml"}
"""Libraries whose ``load`` may unpickle."""


def risky(tree: ast.AST) -> list[str]:
    """Where a source could run what somebody else has written."""
    risks: list[str] = []
    shared = "multiprocessing" in ast.unparse(tree)  # what it passes on in these ways, it pickles
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            risks += [f"imports {name}" for name in names if name.split(".")[0] in CODE_FROM_DATA]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        root, _, method = called.removeprefix("builtins.").rpartition(".")
        array = root == "np" and given.get("allow_pickle") == "False"
        loads = "load" in method and root.partition(".")[0] in LOADERS and not array
        pickles = shared and method in ("send", "recv", "Process", "Pool", "Queue", "Manager")
        if (not root and method in BUILTINS) or pickles or loads or called in ("os.system", "os.popen"):
            risks.append(f"calls {called}, line {node.lineno}")
        if given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False":
            risks.append(f"calls {called} with a shell or a pickle, line {node.lineno}")
    return risks


@pytest.mark.parametrize(
    "path",
    sorted([*(SOURCE / "private").rglob("*.py"), *(SOURCE / "cli" / "private").rglob("*.py")]),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_private_never_runs_what_came_as_data(path: Path):
    assert risky(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "multiprocessing.Queue()",
        "multiprocessing.connection.Connection(1).recv()",
        "eval(text)",
        "builtins.exec(text)",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.unsafe_load(text)",
        "os.system(text)",
        "numpy.lib.format.read_array(file, allow_pickle=flag)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_scan_sees_it(line: str):
    assert risky(ast.parse(line))


@pytest.mark.parametrize("path", sorted((SOURCE / "engines").rglob("*.py")), ids=lambda path: str(path.name))
def test_engines_are_imported_late(path: Path):
    assert {name for name in imports(path) if name.split(".")[0] in ("jax", "spu", "torch")} == set()


def test_importing_the_package_does_not_import_torch():
    code = "import sys, deepreshape, deepreshape.cli.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_sorted_and_there():
    assert deepreshape.__all__ == sorted(deepreshape.__all__)
    assert set(deepreshape.__all__) == set(deepreshape._HOME)
    for name in deepreshape.__all__:
        assert getattr(deepreshape, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        deepreshape.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "name", sorted(info.name for info in pkgutil.walk_packages(deepreshape.__path__, "deepreshape."))
)
def test_every_all_names_what_exists(name: str):
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        assert hasattr(module, public)


def test_no_machine_path_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".yaml", ".html", ".j2", ""):
            assert not re.search(
                r"/(work|root|home)/", path.read_text(errors="ignore").replace("/(work|root|home)/", "")
            ), name


def test_every_attack_in_the_security_page_names_a_test_that_is_there():
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 30
    for file, test in named:
        path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / "private" / file
        assert f"def {test}(" in path.read_text(), f"{file}::{test}"


def test_the_parts_that_the_security_page_names_are_there():
    parts = (ROOT / "SECURITY.md").read_text().partition("## What each part rests on")[2].partition("| parameter |")[0]
    named = re.findall(r"`((?:\w+/)+\w+(?:\.py)?)`", parts)
    assert len(named) > 12
    assert [
        name for name in named if not (SOURCE / "private" / name).exists() and name != "src/deepreshape/private"
    ] == []


FULL = 14
"""The most files that a room may have beside its ``__init__``."""
LONG, MANY = 80, 8
"""The most lines of a function outside ``cli``, and the most parameters."""
EMPTY = {"found", "made", "own", "mine"}
"""Names that would fit any value, and so say nothing of the one that they hold."""


def definitions(path: Path) -> list[str]:
    """Public classes and functions at the top level of a file."""
    kinds = ast.ClassDef | ast.FunctionDef
    return [node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds) and node.name[0] != "_"]


def oversized(path: Path) -> list[str]:
    """Functions that are too long, or take too much."""
    large: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        count = len([one for one in given if one.arg not in ("self", "cls")])
        if count > MANY or (node.end_lineno or 0) - node.lineno >= LONG:
            large.append(node.name)
    return large


def empty_names(path: Path) -> list[str]:
    """Variables, parameters, functions and imports that a file gives a name of no meaning, each with its line."""
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.alias):
            names.append((node.lineno, node.asname or node.name))
        elif isinstance(node, ast.FunctionDef | ast.ExceptHandler | ast.MatchAs):
            names.append((node.lineno, node.name or ""))
    return [f"{name}, line {line}" for line, name in sorted(names) if name in EMPTY]


def test_no_room_is_crowded():
    rooms = {path.parent for path in MODULES}
    crowded = {folder.name for folder in rooms if len({*folder.glob("*.py")} - {folder / "__init__.py"}) > FULL}
    assert crowded == set()


def test_no_public_name_is_defined_in_two_files():
    homes: dict[str, list[Path]] = {}
    for path in MODULES:
        if room(path) != "cli":
            for name in definitions(path):
                homes.setdefault(name, []).append(path)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_functions_are_short_and_take_little():
    assert [(path.name, name) for path in MODULES if room(path) != "cli" for name in oversized(path)] == []


def test_the_rules_of_size_can_fail(tmp_path: Path):
    bad = tmp_path / "bad.py"
    bad.write_text("def long():\n" + "    1\n" * LONG + "def wide(a, b, c, d, e, *, f, g, h, i): ...\n")
    assert oversized(bad) == ["long", "wide"]
    assert definitions(bad) == ["long", "wide"]


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_every_variable_says_what_it_holds(folder: str):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    assert {str(path.relative_to(ROOT)): names for path in paths if (names := empty_names(path))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "made = 1",
        "made: int = 1",
        "first, (made, *rest) = pair",
        "for made in range(3): pass",
        "sum(made for made in (1, 2))",
        "if made := 1: pass",
        "with open(path) as made: pass",
        "try: pass\nexcept OSError as made: pass",
        "import json as made",
        "from json import loads as made",
        "match pair:\n    case made: pass",
        "lambda made: made",
        "def run(*, made): pass",
        "def made(): pass",
    ],
)
def test_the_rule_of_names_can_fail(line: str, tmp_path: Path):
    bad = tmp_path / "bad.py"
    bad.write_text(f"{line}\n")
    assert [name.partition(",")[0] for name in empty_names(bad)] == ["made"]
    bad.write_text(f"{line.replace('made', 'profile')}\nmaker.made(own='mine').found\n")
    assert empty_names(bad) == []


def protocols() -> list[type[Protocol[Any, Any]]]:
    """Every final protocol of the private runtime."""
    for info in pkgutil.walk_packages([str(SOURCE / "private" / "protocols")], "deepreshape.private.protocols."):
        importlib.import_module(info.name)
    kinds, waiting = list[type[Protocol[Any, Any]]](), [Protocol[Any, Any].__origin__]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if not kind.__subclasses__() and kind.__module__.startswith("deepreshape."):
            kinds.append(kind)
    return kinds


RING = Ring(20)
LAYERS = {
    "GarbledSign": lambda: (GarbledSign(GC_FULL), GarbledSign(GC_FULL).layer(RING, Sign("x", ("input",), 6), 16)),
    "HeLinear": lambda: (
        HeLinear(),
        EncryptedLayer("x", lay_out(Convolution.matrix(8, 4), known_parameters(1 << 20)[0]), RING, 8),
    ),
    "Squares": lambda: (Squares(), SquaringLayer("x", Squaring(RING, 4, 4), 16, 8, slice(None), 16)),
    "Truncation": lambda: (Truncation(), TruncationLayer("x", RING, 4, 16)),
}
"""A protocol and a layer, for those that no word of a ReluConfig names."""


def test_every_word_for_relus_has_a_protocol():
    assert set(PROTOCOLS) == set(SETTINGS)


@pytest.mark.parametrize("kind", OPS, ids=lambda kind: kind.__name__)
def test_every_operation_is_local_or_linear_or_has_a_protocol(kind: type[Op]):
    assert [issubclass(kind, Local), issubclass(kind, Weighted), kind in STEPS].count(True) == 1


@pytest.mark.parametrize("kind", protocols(), ids=lambda kind: kind.__name__)
def test_every_protocol_declares_prices_and_replays(kind: type[Protocol[Any, Any]]):
    assert not inspect.isabstract(kind)
    assert getattr(kind, "__final__", False), f"{kind.__name__} is not final"
    words = [word for word, chosen in PROTOCOLS.items() if chosen is kind]
    cases = [LAYERS[kind.__name__]()] if not words else []
    for word in words:
        protocol = relu_protocol(ReluConfig(word))
        cases.append((protocol, protocol.layer(RING, Relu("x", ("input",), 4), 16)))
    assert cases
    for protocol, layer in cases:
        declared, work = protocol.declared(layer), protocol.work(layer)
        efforts = [*protocol.setup_work([layer]), *work["offline"], *work["online"]]
        assert len(protocol.setup_declared([layer])) == len(protocol.setup_work([layer]))
        for phase, segments in (("offline", declared.offline), ("online", declared.online)):
            assert len(work[phase]) == sum(map(len, segments)) > 0
        assert {unit for effort in efforts for part in (effort.make, effort.take, effort.aside) for unit in part} <= {
            *reference().units
        }
        assert protocol.max_input(layer) > 0
        x = np.arange(-8, 8)
        given = [RING.random(16, Randomness(bytes(32)))] * (1 + protocol.by_coins)
        assert protocol.replay(layer, x, *given).shape == x.shape
