"""Writers at the same time, one killed in the middle of a commit (ten rounds: benchmarks/store_crash.py)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from crashing_writers import ROWS, SHARED, Writer, faults_of, run_round

from curation.store import Store


def test_a_kill_inside_a_commit_loses_and_doubles_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    found = run_round(store, 0, turns=3, writers=3, seed=1, least_share=0.0)
    assert found.faults == ()
    assert found.rows == 3 * 3 * ROWS + SHARED
    assert found.moment.endswith("no manifest")
    assert found.readings > 0


def test_what_the_round_would_call_a_fault(tmp_path: Path) -> None:
    """The checks see a lost append, half of one, and a lost merge."""
    store = Store.open(tmp_path / "store")
    ids = [f"w-0-{i}" for i in range(ROWS)] + [f"w-1-{i}" for i in range(ROWS - 1)] + [f"shared-{i}" for i in range(SHARED)]
    store.upsert("clips", pa.table({"clip_id": ids}))
    writer = Writer("w", None, appended={0, 1, 2}, merged={0})  # type: ignore[arg-type]
    assert faults_of(store, [writer], turns=3, whole=[]) == [
        f"w, turn 1: {ROWS - 1} of {ROWS} rows",
        "w: append 2 was lost",
        "w: merge 0 was lost ({(None, None)})",
    ]
