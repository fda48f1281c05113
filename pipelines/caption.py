"""Job `caption`: describes every clip. Writes table `captions`, and the text in use to `clips.caption`.

A clip that this backend, model and prompt described before is not described again: its caption is put back in use.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.captions.attributes import NEEDED
from curation.captions.backends import captioner_lineage
from curation.captions.step import IDENTITY, CaptionStep
from curation.config import CaptionConfig
from curation.expression import any_of
from curation.schema import CAPTIONS, CLIPS
from curation.step import Lineage, Step, StepError
from curation.store import Store
from pipelines.artifacts import Report
from pipelines.digests import digest_of
from pipelines.executor import Part, Workers, check_failed_share, run_steps
from pipelines.job import JobContext, UserError, main
from pipelines.score import present_clips

log = logging.getLogger("flashvideo.caption")

COMMIT_S = 10.0
CACHE = "caption_cache"
"""Folder under the root: answers of servers."""


def build_step(config: CaptionConfig, tracks: Path, cache: Path, device: str) -> list[Step]:
    """The step, in the process that will run it."""
    return [CaptionStep(config, tracks, cache, device)]


def run(context: JobContext) -> Report:
    """See the module's docstring. Raises UserError when the backend is not configured or its weights are missing."""
    config = context.recipe.curation
    try:
        lineage = captioner_lineage(config.caption)
    except StepError as error:
        raise UserError(str(error)) from None
    store = Store.open(context.workspace.store)
    rows = present_clips(store, list(dict.fromkeys([*IDENTITY, *NEEDED])))
    made = set(store.read("captions", ["clip_id"], where=any_of("caption_run", [lineage.run_id]))["clip_id"].to_pylist())
    todo = rows.filter(pa.array([clip_id not in made for clip_id in rows["clip_id"].to_pylist()], pa.bool_()))
    failed = _describe(context, store, lineage, todo) if todo.num_rows else 0
    captions = store.read("captions", where=any_of("caption_run", [lineage.run_id]))
    captions = captions.filter(pc.is_in(captions["clip_id"], rows["clip_id"].combine_chunks()))
    _put_in_use(store, rows, captions, lineage)
    check_failed_share(failed, rows.num_rows, config.max_failed_share, "clips")
    flags = Counter(flag for row in captions["flags"].to_pylist() for flag in row or [])
    return context.report(
        digest_of(captions, ["clip_id", "text"]),
        counts={
            "clips": rows.num_rows,
            "captioned_now": todo.num_rows - failed,
            "skipped": rows.num_rows - todo.num_rows,
            "flagged": sum(bool(row) for row in captions["flags"].to_pylist()),
            "failed": failed,
        },
        models={"caption": lineage.model},
        headline={"mean_caption_words": round(pc.mean(captions["words"]).as_py() or 0.0, 1)},
        warnings=[f"{count} captions are flagged {flag}" for flag, count in sorted(flags.items())],
    )


def _describe(context: JobContext, store: Store, lineage: Lineage, todo: pa.Table) -> int:
    """Describes and commits as it goes; returns how many clips failed."""
    config = context.recipe.curation.caption
    gpus = context.recipe.runtime.gpus_per_model_worker if config.backend == "transformers" else 0.0
    device = "cuda" if gpus else "cpu"
    build = partial(build_step, config, context.workspace.tracks, context.workspace.root / CACHE, device)
    begin = last_commit = time.monotonic()
    waiting: list[Part] = []
    failed = done = 0
    context.progress.update(0, todo.num_rows, "clips")
    batch_rows = config.max_in_flight if config.backend == "http" else 4
    for part in run_steps(build, todo, ["clip_id"], Workers.of(context.recipe.runtime, gpus=gpus), batch_rows):
        waiting.append(part)
        done, failed = done + len(part.rows), failed + len(part.failures)
        context.progress.update(done, todo.num_rows, "clips", f"{failed} failed" if failed else "")
        if time.monotonic() - last_commit > COMMIT_S:
            _commit(store, todo, waiting)
            waiting, last_commit = [], time.monotonic()
    _commit(store, todo, waiting)
    store.register_run(lineage, device, time.monotonic() - begin, todo.num_rows, todo.num_rows - failed, failed)
    return failed


def _commit(store: Store, todo: pa.Table, parts: list[Part]) -> None:
    if not parts:
        return
    table = pa.Table.from_batches([output for part in parts for output in part.outputs.values()])
    table = table.filter(pc.is_valid(table["text"])).sort_by("clip_id")
    store.upsert("captions", table.select(CAPTIONS.names))
    identity = todo.select(["clip_id", "source_id", "uri"]).to_pylist()
    errors: list[dict[str, Any]] = [
        {
            **identity[failure.row], "job": "caption", "step": failure.step, "code": failure.code, "message": failure.message,
            "attempt": 1, "node": failure.node, "seconds": failure.seconds, "run_id": failure.run_id,
        }
        for part in parts
        for failure in part.failures
    ]  # fmt: skip
    store.append_errors(errors)
    store.resolve_errors("caption", clip_ids=table["clip_id"].to_pylist())


def _put_in_use(store: Store, rows: pa.Table, captions: pa.Table, lineage: Lineage) -> None:
    """Sets clips.caption where it differs; a clip without a caption of this lineage has none in use."""
    texts = dict(zip(captions["clip_id"].to_pylist(), captions["text"].to_pylist(), strict=True))
    present = set(rows["clip_id"].to_pylist())
    changed = []
    for row in store.read("clips", ["clip_id", "caption", "caption_run"]).to_pylist():
        if row["clip_id"] not in present:
            continue
        text = texts.get(row["clip_id"])
        new = {"clip_id": row["clip_id"], "caption": text, "caption_run": None if text is None else lineage.run_id}
        if new != row:
            changed.append(new)
    if changed:
        schema = pa.schema([CLIPS.field(name) for name in ("clip_id", "caption", "caption_run")])
        store.merge_columns("clips", pa.Table.from_pylist(changed, schema=schema))


if __name__ == "__main__":
    main("caption", run)
