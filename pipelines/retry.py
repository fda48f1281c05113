"""Marks what failed with one code as not done, so that the jobs try exactly that again. Light."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import errors_by_code
from curation.expression import any_of
from curation.schema import TABLES
from curation.store import Store
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.plan import CURATION_JOBS

DECODES = {"ingest": "ingest_run", "detect_shots": "shots_run"}
"""Job of whole files -> the column of `sources` that says a file was done."""


@dataclass(frozen=True)
class Marked:
    """What will be tried again."""

    code: str
    error_ids: tuple[str, ...]
    of_job: Counter[str]
    """Job -> items."""

    def __str__(self) -> str:
        return f"{self.code}: {', '.join(f'{count} of {job}' for job, count in self.of_job.items())} to be tried again"


def mark_for_retry(workspace: Workspace, store: Store, code: str) -> Marked:
    """Marks every open error's item of that code as not done, and its job as not finished. Marking twice is marking once.

    The rows stay open until the job has done their items. The caller holds the root. Raises QueryError for a code that no row
    has, UserError where none is open or the job is none of a curation.
    """
    errors_by_code(store, code, examples=0)
    rows = store.read("errors", ["error_id", "job", "step", "uri", "clip_id", "run_id"], f"resolved = false and {any_of('code', [code])}")
    if not rows.num_rows:
        raise UserError(f"no error with the code {code!r} is open; every one was resolved by a later attempt")
    jobs = Counter({job: rows.filter(pc.equal(rows["job"], job)).num_rows for job in sorted(set(rows["job"].to_pylist()))})
    others = [job for job in jobs if job not in CURATION_JOBS]
    if others:
        raise UserError(f"{code} is of the job {others[0]}, which tries again whenever it runs: flashvideo run {others[0]}")
    for job in jobs:  # unfinished first: killed in between, the next curation does what was marked
        (workspace.root / "artifacts" / job / "current.json").unlink(missing_ok=True)
        _mark(store, job, rows.filter(pc.equal(rows["job"], job)))
    return Marked(code, tuple(rows["error_id"].to_pylist()), jobs)


def still_open(store: Store, marked: Marked) -> int:
    """How many of the marked errors no later attempt has resolved."""
    return store.count("errors", f"resolved = false and {any_of('error_id', marked.error_ids)}")


def _mark(store: Store, job: str, rows: pa.Table) -> None:
    if job in DECODES:
        _forget(store, "sources", "uri", rows["uri"], DECODES[job])
    elif job == "score":
        for step in sorted(set(rows["step"].to_pylist())):
            if f"{step}_run" in TABLES["clips"].names:
                _forget(store, "clips", "clip_id", rows.filter(pc.equal(rows["step"], step))["clip_id"], f"{step}_run")
    elif job == "caption":  # a refusal is a row of captions too, and would be taken for an answer
        for run_id in sorted(set(rows["run_id"].drop_null().to_pylist())):
            clip_ids = rows.filter(pc.equal(rows["run_id"], run_id))["clip_id"].drop_null().to_pylist()
            store.delete("captions", f"{any_of('clip_id', clip_ids)} and {any_of('caption_run', [run_id])}")


def _forget(store: Store, table: str, key: str, items: pa.ChunkedArray, column: str) -> None:
    """Nulls the run column of these items: whatever reads it takes them for not done."""
    ids = items.drop_null().unique()
    if len(ids):
        store.merge_columns(table, pa.table({key: ids, column: pa.nulls(len(ids), pa.string())}))
