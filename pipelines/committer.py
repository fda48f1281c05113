"""The one committer of a job that writes columns: gathers what the steps made, merges it into a table now and then."""

from __future__ import annotations

import socket
import time
from collections import Counter

import pyarrow as pa

from curation.store import Store
from pipelines.executor import Part, RowFailure

COMMIT_ROWS = 50_000
"""At most so many rows wait in memory."""
COMMIT_SHARE, COMMIT_S = 0.05, 1.0
"""A commit is due when the last one was this share of the time since, but not sooner than COMMIT_S: what a kill loses is
20 commits' worth of time, whatever the table's size, and committing costs a twentieth of the job."""


class ColumnCommitter:
    """Merges parts into `clips` and failures into `errors`. Merging a part twice changes nothing."""

    def __init__(self, store: Store, job: str, rows: pa.Table) -> None:
        """`rows`: the table that was given to the steps; holds clip_id, source_id and uri."""
        self._store, self._job = store, job
        self._identity = rows.select(["clip_id", "source_id", "uri"]).to_pylist()
        self._outputs: dict[str, list[pa.RecordBatch]] = {}
        self._failures: list[RowFailure] = []
        self._waiting, self._last, self._due_s = 0, time.monotonic(), COMMIT_S
        self.seconds: Counter[str] = Counter()
        self.rows_in: Counter[str] = Counter()
        self.rows_failed: Counter[str] = Counter()
        self.failed_rows: set[int] = set()

    def add(self, part: Part) -> None:
        """Takes a part; commits when enough has come together."""
        for step, output in part.outputs.items():
            self._outputs.setdefault(step, []).append(output)
            self.rows_in[step] += output.num_rows
        self.seconds.update(part.seconds)
        self.rows_failed.update(failure.step for failure in part.failures)
        self.failed_rows.update(failure.row for failure in part.failures)
        self._failures += part.failures
        self._waiting += len(part.rows)
        if self._waiting >= COMMIT_ROWS or time.monotonic() - self._last > self._due_s:
            self.flush()

    def flush(self) -> None:
        """Commits everything that was taken: columns, then errors. What fails again, perhaps with another code, is opened again."""
        begin = time.monotonic()
        tables = {step: pa.Table.from_batches(batches).sort_by("clip_id") for step, batches in self._outputs.items()}
        for together in _same_rows(tables):
            self._store.merge_columns("clips", together)
        for step, table in tables.items():
            self._store.resolve_errors(self._job, step, clip_ids=table["clip_id"].to_pylist())
        self._store.append_errors([self._error(failure) for failure in self._failures])
        self._outputs, self._failures, self._waiting, self._last = {}, [], 0, time.monotonic()
        self._due_s = max(COMMIT_S, (self._last - begin) / COMMIT_SHARE)

    def _error(self, failure: RowFailure) -> dict[str, object]:
        return {
            **self._identity[failure.row],
            "job": self._job,
            "step": failure.step,
            "code": failure.code,
            "message": failure.message,
            "attempt": 1,
            "node": failure.node or socket.gethostname(),
            "seconds": failure.seconds,
            "run_id": failure.run_id,
        }


def _same_rows(tables: dict[str, pa.Table]) -> list[pa.Table]:
    """The steps' columns side by side, where they are of the same clips: one commit instead of several."""
    groups: dict[tuple[str, ...], pa.Table] = {}
    for table in tables.values():
        key = tuple(table["clip_id"].to_pylist())
        if key not in groups:
            groups[key] = table
            continue
        for field in table.schema:
            if field.name != "clip_id":
                groups[key] = groups[key].append_column(field, table[field.name])
    return list(groups.values())
