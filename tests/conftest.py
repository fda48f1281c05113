"""Shared by all tests; its presence makes this folder's modules importable (`generated_films`, `command_lines`)."""

import os
import secrets
from pathlib import Path

import pytest

# Ray's client reads these once a process, and a test process holds several Rays: all of them share one token.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

LONGEST_FIRST = ("tests/test_retrain_debug.py", "tests/orchestration/test_deployments.py")
"""Files of a minute and more, in the order in which they start: one that starts last is a tail on one core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Takes effect with `--no-loadscope-reorder`: by itself xdist starts the files with the fewest tests last."""
    gone = [name for name in LONGEST_FIRST if not Path(__file__).resolve().parents[1].joinpath(name).is_file()]
    if gone:
        raise pytest.UsageError(f"tests/conftest.py names files that do not exist: {', '.join(gone)}; correct LONGEST_FIRST")
    place = {name: index for index, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))
