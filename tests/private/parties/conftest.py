"""What tests of parties are given."""

from pathlib import Path

import pytest

from deepreshape.private.parties.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
