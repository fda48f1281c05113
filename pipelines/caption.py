"""Job `caption`: describes every clip. Writes table `captions`, and the text in use to `clips.caption`.

A clip that this backend, model and prompt described before is not described again: its caption is put back in use.
Backends that only read facts (attributes, sidecar) are cheap and their facts change: they run over every clip, and
what differs is written. A clip that fails, or that the model refuses to describe, has a null caption and an error row.
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
from curation.captions.backends import FACT_READERS, captioner_lineage, check_backend
from curation.captions.caption import CaptionSetupError
from curation.captions.step import IDENTITY, CaptionStep
from curation.config import CaptionConfig
from curation.expression import any_of
from curation.schema import CAPTIONS, CLIPS
from curation.step import Lineage, Step
from curation.store import Store
from pipelines.artifacts import Report
from pipelines.digests import digest_of
from pipelines.executor import Part, Workers, check_failed_share, run_steps
from pipelines.job import JobContext, UserError, main
from pipelines.score import present_clips, track_run

log = logging.getLogger("flashvideo.caption")

COMMIT_CLIPS, COMMIT_S = 2000, 10.0
BATCH_CLIPS = 16
BATCHES_IN_FLIGHT = 4
"""A server's batch is this many times what is in flight: its end, where places stand empty, is a small part of it."""
CACHE = "caption_cache"
"""Folder under the root: answers of servers."""


def build_step(config: CaptionConfig, lineage: Lineage, tracks: Path, cache: Path, device: str) -> list[Step]:
    """The step, in the process that will run it."""
    return [CaptionStep(config, lineage, tracks, cache, device)]


def run(context: JobContext) -> Report:
    """See the module's docstring. Raises UserError when the backend is not configured or its weights are missing."""
    config = context.recipe.curation
    store = Store.open(context.workspace.store)
    try:
        lineage = captioner_lineage(config.caption, track_run(config))
        rows = present_clips(store, list(dict.fromkeys([*IDENTITY, *NEEDED])))
        made = captions_of(store, lineage, rows)
        again = pa.nulls(0, pa.string()) if config.caption.backend in FACT_READERS else made["clip_id"].combine_chunks()
        todo = rows.filter(pc.invert(pc.is_in(rows["clip_id"], again)))
        if todo.num_rows:
            check_backend(config.caption)
            _describe(context, store, lineage, todo, made)
    except CaptionSetupError as error:
        raise UserError(str(error)) from None
    captions = captions_of(store, lineage, rows)
    changed = _put_in_use(store, rows, captions, lineage)
    return _report(context, lineage, rows.num_rows, todo.num_rows, changed, captions)


def captions_of(store: Store, lineage: Lineage, rows: pa.Table) -> pa.Table:
    """This lineage's captions of these clips."""
    captions = store.read("captions", where=any_of("caption_run", [lineage.run_id]))
    return captions.filter(pc.is_in(captions["clip_id"], rows["clip_id"].combine_chunks()))


def _describe(context: JobContext, store: Store, lineage: Lineage, todo: pa.Table, made: pa.Table) -> None:
    """Describes and commits as it goes. Raises FailedShareError as soon as too many failed."""
    config, limit = context.recipe.curation.caption, context.recipe.curation.max_failed_share
    workers, batch_clips, device = _work_plan(context)
    build = partial(build_step, config, lineage, context.workspace.tracks, context.workspace.root / CACHE, device)
    committer = _Committer(store, lineage, todo, made)
    begin = time.monotonic()
    context.progress.update(0, todo.num_rows, "clips")
    for part in run_steps(build, todo, ["clip_id"], workers, batch_clips, {CaptionStep.name: [True] * todo.num_rows}):
        committer.add(part)
        context.progress.update(committer.done, todo.num_rows, "clips", f"{committer.failed} failed" if committer.failed else "")
        if committer.failed > limit * todo.num_rows:  # a server that is gone: do not ask it about every clip
            break
    committer.flush()
    seconds, done, failed = time.monotonic() - begin, committer.done, committer.failed
    store.register_run(lineage, device, seconds, done, done - failed, failed, "captions")
    check_failed_share(committer.failed, todo.num_rows, limit, "clips")


def _work_plan(context: JobContext) -> tuple[Workers, int, str]:
    """Workers, clips per batch, device. A server is asked from this process, so that its limit of requests in flight is one."""
    config, runtime = context.recipe.curation.caption, context.recipe.runtime
    if config.backend == "http":
        return Workers("local", 1), config.max_in_flight * BATCHES_IN_FLIGHT, "server"
    if config.backend == "transformers":
        gpus = runtime.gpus_per_model_worker
        return Workers.of(runtime, gpus=gpus), 1, "cuda" if gpus else "cpu"
    return Workers.of(runtime), BATCH_CLIPS, "cpu"


class _Committer:
    """Gathers parts and commits captions, then errors. Committing a part twice changes nothing."""

    def __init__(self, store: Store, lineage: Lineage, todo: pa.Table, made: pa.Table) -> None:
        self._store, self._lineage = store, lineage
        self._identity = todo.select(["clip_id", "source_id", "uri"]).to_pylist()
        self._made = {row["clip_id"]: row for row in made.to_pylist()}
        self._rows: list[dict[str, Any]] = []
        self._errors: list[dict[str, Any]] = []
        self._last = time.monotonic()
        self.done = self.failed = 0

    def add(self, part: Part) -> None:
        """Takes a part; commits when enough has come together."""
        rows = part.outputs[CaptionStep.name].to_pylist()
        where = dict(zip(part.rows, rows, strict=True))
        errors = [self._error(f.row, f.code, f.message, f.node, f.seconds) for f in part.failures]
        errors += [self._refusal(place, row) for place, row in where.items() if is_refused(row)]
        self._rows, self._errors = self._rows + rows, self._errors + errors
        self.done, self.failed = self.done + len(rows), self.failed + len(errors)
        if len(self._rows) >= COMMIT_CLIPS or time.monotonic() - self._last > COMMIT_S:
            self.flush()

    def flush(self) -> None:
        """Commits everything that was taken."""
        rows = sorted(self._rows, key=lambda row: str(row["clip_id"]))
        written = [row for row in rows if row["text"] is not None and row != self._made.get(row["clip_id"])]
        self._store.upsert("captions", pa.Table.from_pylist(written, schema=CAPTIONS))
        gone = [row["clip_id"] for row in rows if row["text"] is None and row["clip_id"] in self._made]
        if gone:
            self._store.delete("captions", f"{any_of('clip_id', gone)} and {any_of('caption_run', [self._lineage.run_id])}")
        self._store.resolve_errors("caption", clip_ids=[row["clip_id"] for row in rows])
        self._store.append_errors(self._errors)
        self._rows, self._errors, self._last = [], [], time.monotonic()

    def _error(self, place: int, code: str, message: str, node: str | None = None, seconds: float | None = None) -> dict[str, Any]:
        identity = self._identity[place]
        log.warning("clip %s: %s: %s", identity["clip_id"], code, message)
        return {
            **identity, "job": "caption", "step": CaptionStep.name, "code": code, "message": message, "attempt": 1, "node": node,
            "seconds": seconds, "run_id": self._lineage.run_id,
        }  # fmt: skip

    def _refusal(self, place: int, row: dict[str, Any]) -> dict[str, Any]:
        return self._error(place, "caption_refusal", f"{row['model']} declined, so the clip has no caption in use: {row['text'][:200]!r}")


def is_refused(row: dict[str, Any]) -> bool:
    """True for a row of `captions` whose text is no description: kept to look at, never trained on."""
    return "refusal" in (row["flags"] or [])


def _put_in_use(store: Store, rows: pa.Table, captions: pa.Table, lineage: Lineage) -> int:
    """Sets clips.caption where it differs; a clip without a caption of this lineage has none in use. Returns clips changed."""
    texts = {row["clip_id"]: row["text"] for row in captions.to_pylist() if not is_refused(row)}
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
    return len(changed)


def _report(context: JobContext, lineage: Lineage, clips: int, asked: int, changed: int, captions: pa.Table) -> Report:
    in_use = captions.filter(pa.array([not is_refused(row) for row in captions.to_pylist()], pa.bool_()))
    failed = clips - in_use.num_rows
    check_failed_share(failed, clips, context.recipe.curation.max_failed_share, "clips")
    flags = Counter(flag for row in captions["flags"].to_pylist() for flag in row or [])
    cut_off = sum(finish == "length" for finish in captions["finish"].to_pylist())
    whole_file = in_use["start_us"].null_count
    warnings = [f"{count} captions are flagged {flag}" for flag, count in sorted(flags.items())]
    if cut_off:
        warnings.append(f"{cut_off} captions were cut off at the model's token limit")
    if whole_file:
        warnings.append(f"{whole_file} captions were written for a whole file and not for the clip's span")
    return context.report(
        digest_of(in_use, ["clip_id", "text"]),
        counts={
            "clips": clips,
            "described_now": asked,
            "skipped": clips - asked,
            "changed": changed,
            "flagged": sum(bool(row) for row in captions["flags"].to_pylist()),
            "failed": failed,
        },
        models={"caption": lineage.model},
        headline={"mean_caption_words": round(pc.mean(in_use["words"]).as_py() or 0.0, 1)},
        warnings=warnings,
    )


if __name__ == "__main__":
    main("caption", run)
