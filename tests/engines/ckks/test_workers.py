"""Work that is shared out over forked processes."""

import os
import signal

import pytest

from deepreshape.engines.ckks.workers import shared_out


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The children of a test, as they are forked."""
    children: list[int] = []
    fork = os.fork

    def noted() -> int:
        if child := fork():
            children.append(child)
        return child

    monkeypatch.setattr(os, "fork", noted)
    return children


@pytest.mark.parametrize(("count", "workers"), [(7, 1), (7, 3), (2, 5), (0, 4)])
def test_results_come_in_order_and_from_so_many_processes(count: int, workers: int):
    results = shared_out(count, workers, lambda number: (number, os.getpid()), _saved, _loaded)
    assert [number for number, _ in results] == list(range(count))
    assert len({who for _, who in results}) == min(count, workers)


def test_a_child_that_is_killed_is_an_error_and_leaves_none_behind(forked: list[int]):
    def work(number: int) -> tuple[int, int]:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number, os.getpid()

    with pytest.raises(RuntimeError, match="ended early"):
        shared_out(4, 2, work, _saved, _loaded)
    _see_gone(forked)


def test_children_end_when_their_parent_fails(forked: list[int]):
    def work(number: int) -> tuple[int, int]:
        if number:
            signal.pause()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        shared_out(2, 2, work, _saved, _loaded)
    _see_gone(forked)


def _see_gone(children: list[int]) -> None:
    assert children
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def _saved(result: tuple[int, int]) -> bytes:
    return repr(result).encode()


def _loaded(data: bytes) -> tuple[int, int]:
    number, who = data.decode().strip("()").split(",")
    return int(number), int(who)
