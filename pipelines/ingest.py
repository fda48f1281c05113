"""Job `ingest`: list the sources, hash and probe what is new or changed, mark byte duplicates. Writes table `sources`.

A file that is listed with the same size and modification time, and was probed by this version, is not touched.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from functools import partial
from typing import Any

import pyarrow as pa

from curation.ingest import Ingester, IngestResult, ingest_lineage, mark_duplicates
from curation.schema import SOURCES
from curation.sources import Listing, SourceFile, list_sources
from curation.store import Store
from pipelines.artifacts import Report
from pipelines.digests import digest_of
from pipelines.executor import WorkerDied, Workers, check_failed_share, map_tasks
from pipelines.job import JobContext, main

log = logging.getLogger("flashvideo.ingest")

COMMIT_ROWS, COMMIT_S = 500, 20.0
"""Results are written after this many rows or seconds: so much is redone at most after a kill."""
FACTS = tuple(name for name in SOURCES.names if name not in ("decoded_frames", "corrupt_frames", "cuts_us", "shots_run", "modified_ns"))
"""Columns that this job answers for."""


def run(context: JobContext) -> Report:
    """See the module's docstring. Raises SourceError for sources that cannot be listed."""
    recipe = context.recipe
    listing = list_sources(context.workspace.sources(recipe))
    store = Store.open(context.workspace.store)
    known = {row["uri"]: row for row in store.read("sources").to_pylist()}
    run_id = ingest_lineage().run_id
    todo = [file for file in listing.files if not is_known(known.get(file.uri), file, run_id)]
    begin = time.monotonic()
    failed = _probe_all(context, store, todo, done_before=len(listing.files) - len(todo))
    rows = _settle(store, listing)
    if todo:
        store.register_run(ingest_lineage(), "cpu", time.monotonic() - begin, len(todo), len(todo) - failed, failed, "sources")
    present = store.read("sources", where="present = true")
    statuses = Counter(row["status"] for row in rows if row["present"])
    check_failed_share(statuses["failed"], len(listing.files), recipe.curation.max_failed_share, "files")
    media = Counter(row["media_type"] for row in rows if row["present"] and row["media_type"])
    return context.report(
        digest_of(present, [name for name in FACTS if name != "status"]),
        counts={
            "files": len(listing.files),
            "probed_now": len(todo),
            "skipped": len(listing.files) - len(todo),
            "videos": media["video"],
            "images": media["image"],
            "duplicates": statuses["duplicate"],
            "failed": statuses["failed"],
            "ignored": len(listing.ignored),
        },
        outputs={"store": context.workspace.relative(context.workspace.store)},
    )


def is_known(row: dict[str, Any] | None, file: SourceFile, run_id: str) -> bool:
    """Whether the row of `sources` is of this very file, read by this probe."""
    return (
        row is not None
        and row["source_id"] is not None  # it could not be read: a server may answer now
        and row["ingest_run"] == run_id
        and (row["bytes"], row["modified_ns"]) == (file.bytes, file.modified_ns)
    )  # fmt: skip


def _probe_all(context: JobContext, store: Store, todo: list[Any], done_before: int) -> int:
    """Hashes and probes; commits as it goes; returns how many failed."""
    workers = Workers.of(context.recipe.runtime)
    total, done, failed = done_before + len(todo), done_before, 0
    context.progress.update(done, total, "files")
    waiting: list[IngestResult] = []
    last_commit = time.monotonic()
    for index, result in map_tasks(partial(Ingester, context.recipe.curation.decode), todo, workers):
        if isinstance(result, WorkerDied):
            raise RuntimeError(f"{todo[index].uri}: {result.message}")  # the child dies, never its keeper
        waiting.append(result)
        done, failed = done + 1, failed + (result.failure is not None)
        context.progress.update(done, total, "files", f"{failed} failed" if failed else "")
        if len(waiting) >= COMMIT_ROWS or time.monotonic() - last_commit > COMMIT_S:
            _commit(store, waiting)
            waiting, last_commit = [], time.monotonic()
    _commit(store, waiting)
    return failed


def _commit(store: Store, results: list[IngestResult]) -> None:
    if not results:
        return
    run_id = ingest_lineage().run_id
    errors = [
        {
            "source_id": result.source_id,
            "uri": result.file.uri,
            "job": "ingest",
            "step": "probe",
            "code": result.failure.code,
            "message": result.failure.message,
            "attempt": result.failure.attempts,
            "node": socket.gethostname(),
            "seconds": result.failure.seconds,
            "run_id": run_id,
        }
        for result in results
        if result.failure is not None
    ]
    # Errors first: a kill between repeats the files. What fails again, perhaps with another code, is opened again.
    store.resolve_errors("ingest", uris=[result.file.uri for result in results])
    store.append_errors(errors)
    # Every column is written: a file whose bytes changed starts afresh.
    store.upsert("sources", pa.Table.from_pylist([result.row() for result in results], schema=SOURCES))
    for error in errors:
        log.warning("%s: %s", error["code"], error["message"])


def _settle(store: Store, listing: Listing) -> list[dict[str, Any]]:
    """Sets `present`, the dataset, duplicates and their status over all rows; writes only those that change. Returns all rows."""
    columns = ["uri", "source_id", "dataset", "present", "status", "duplicate_of", "media_type"]
    before = {row["uri"]: row for row in store.read("sources", columns).to_pylist()}
    listed = {file.uri: file.dataset for file in listing.files}
    here = mark_duplicates([{**row, "present": True, "dataset": listed[row["uri"]]} for row in before.values() if row["uri"] in listed])
    gone = [{**row, "present": False} for row in before.values() if row["uri"] not in listed]
    rows = here + gone
    changed = [row for row in rows if row != before[row["uri"]]]
    if changed:
        names = ["uri", "dataset", "present", "status", "duplicate_of"]
        schema = pa.schema([SOURCES.field(name) for name in names])
        store.merge_columns("sources", pa.Table.from_pylist([{name: row[name] for name in names} for row in changed], schema=schema))
    return rows


if __name__ == "__main__":
    main("ingest", run)
