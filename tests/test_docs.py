"""What the pages name is there: modules and what is imported from them, files, tests, links."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IMPORT = re.compile(r"from (deepreshape[\w.]*) import ([\w, ]+)")
RUN = re.compile(r"-m (deepreshape[\w.]*)")
FILE = re.compile(r"(?<![\w/.-])((?:tests|benchmarks|examples|src)/[\w/.-]+\.(?:py|jsonl?|md|svg))(?:::(\w+))?")
LINK = re.compile(r"\]\(([\w./-]+)(?:#([\w-]+))?\)")


def anchors(page: Path) -> list[str]:
    """What a link may point to within a page, as GitHub makes it of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = [line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")]
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


@pytest.mark.parametrize("pattern", [IMPORT, RUN, FILE, LINK], ids=lambda pattern: pattern.pattern[:8])
def test_what_is_looked_for_occurs(pattern: re.Pattern[str]):
    assert any(pattern.search(page.read_text()) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_imported_or_run_is_there(page: Path):
    text = page.read_text()
    for module, names in IMPORT.findall(text):
        there = importlib.import_module(module)
        for name in filter(None, names.replace(" ", "").split(",")):
            assert hasattr(there, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"
    for module in RUN.findall(text):
        spec = importlib.util.find_spec(module)
        assert spec, module
        assert spec.origin
        run = Path(spec.origin).with_name("__main__.py") if spec.submodule_search_locations else Path(spec.origin)
        assert run.is_file(), f"python -m {module} starts nothing"
        assert run.name == "__main__.py" or '__name__ == "__main__"' in run.read_text(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_are_there(page: Path):
    text = page.read_text()
    for path, test in FILE.findall(text):
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test}" in (ROOT / path).read_text(), f"{path}::{test}"
    for path, anchor in LINK.findall(text):
        target = page.parent / path
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_heading_comes_twice(page: Path):
    heads = anchors(page)
    assert sorted(set(heads)) == sorted(heads)
