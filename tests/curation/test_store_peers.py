"""A peer of the store's benchmark that meets its limit: what it answered stays, and where it stopped is said."""

from __future__ import annotations

import importlib.util
import time
from types import ModuleType

import pytest
from crashing_writers import ROOT


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("store_peers", ROOT / "benchmarks" / "store_peers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_limit_keeps_the_answers_until_then(peers: ModuleType) -> None:
    def load() -> None:
        asked.at = "load, row 300"
        bytearray(1 << 62)  # more than any machine gives

    def questions(asked: object) -> None:
        asked.ask("count", lambda: None, 1)  # type: ignore[attr-defined]
        asked.ask("load", load, 1)  # type: ignore[attr-defined]
        asked.ask("never", lambda: None, 1)  # type: ignore[attr-defined]

    asked = peers.Asked(limit_gib=5, limit_s=100)
    found = asked.answers(questions)
    assert set(found) == {"count", "stopped"}
    assert found["stopped"] == "does not fit in 5 GiB: stopped at load, row 300, 0 s after the start"


def test_time_runs_out(peers: ModuleType) -> None:
    asked = peers.Asked(limit_gib=5, limit_s=0.05)
    found = asked.answers(lambda asked: asked.ask("wait", lambda: time.sleep(5), 1))
    assert found == {"stopped": "not done in 0.05 s: stopped at wait, 0 s after the start"}


def test_a_mistake_is_no_limit(peers: ModuleType) -> None:
    with pytest.raises(ZeroDivisionError):
        peers.Asked(5, 100).answers(lambda asked: asked.ask("divide", lambda: 1 // 0, 1))
