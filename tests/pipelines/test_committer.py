"""The committer of columns: when it commits, and that a part merged twice changes nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curation.schema import CLIPS
from curation.store import Store
from pipelines import committer
from pipelines.committer import ColumnCommitter
from pipelines.executor import Part, RowFailure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store")
    store.upsert("clips", pa.table({"clip_id": list("abcd"), "source_id": list("stuv"), "uri": list("wxyz")}))
    return store


def part(row: int, clip: str, luma: float | None) -> Part:
    schema = pa.schema([CLIPS.field("clip_id"), CLIPS.field("luma_mean")])
    failures = () if luma is not None else (RowFailure(row, "health", "run", "no_frames", "none", "here", 0.1),)
    return Part((row,), {"health": pa.RecordBatch.from_pylist([{"clip_id": clip, "luma_mean": luma}], schema=schema)}, failures, {})


class Clock:
    """Seconds that pass when told, and `spent` of them in every commit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spent: float) -> None:
        self.now, merge = 0.0, Store.merge_columns

        def merged(store: Store, table: str, columns: pa.Table) -> int:
            self.now += spent
            return merge(store, table, columns)

        monkeypatch.setattr(committer.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(Store, "merge_columns", merged)


def test_a_slow_commit_makes_the_next_one_wait_twenty_times_as_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, spent=0.5)
    columns = ColumnCommitter(store, "score", store.read("clips", ["clip_id", "source_id", "uri"]))

    def known() -> int:
        return store.count("clips", "luma_mean is not null")

    columns.add(part(0, "a", 1.0))
    assert known() == 0
    clock.now = 1.1
    columns.add(part(1, "b", 2.0))
    assert known() == 2, "the first one is due after a second"
    clock.now += 9.0
    columns.add(part(2, "c", 3.0))
    assert known() == 2, "half a second is a twentieth of ten"
    clock.now += 1.5
    columns.add(part(3, "d", 4.0))
    assert known() == 4


def test_a_part_that_comes_again_changes_nothing_and_a_success_resolves(store: Store) -> None:
    identity = store.read("clips", ["clip_id", "source_id", "uri"])
    for _ in range(2):
        columns = ColumnCommitter(store, "score", identity)
        columns.add(part(0, "a", 1.0))
        columns.add(part(1, "b", None))
        columns.flush()
    assert store.read("clips", ["luma_mean"], "clip_id in ('a', 'b')")["luma_mean"].to_pylist() == [1.0, None]
    assert store.read("errors", ["clip_id", "code", "resolved"]).to_pylist() == [{"clip_id": "b", "code": "no_frames", "resolved": False}]
    columns.add(part(1, "b", 2.0))
    columns.flush()
    assert store.count("errors", "resolved") == 1
