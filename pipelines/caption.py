"""Job `caption`: describes every clip. Writes `captions`, and the caption in use to `clips`.

A model is asked again only about clips whose caption is of another lineage. Captioners that only read facts
(attributes, sidecar files) are cheap, and their facts can change: they run over all clips, and what differs is written.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.captions.captioner import CaptionSetupError, CaptionStep
from curation.captions.choice import FACT_READERS, build_step, caption_lineage, clip_columns, prompt_hash
from curation.config import CaptionConfig
from curation.expression import any_of
from curation.schema import CAPTIONS, CLIPS
from curation.step import Lineage
from curation.store import Store
from pipelines.artifacts import Report
from pipelines.digests import digest_of
from pipelines.executor import Part, Workers, check_failed_share, run_steps
from pipelines.job import JobContext, UserError, main
from pipelines.score import track_run

log = logging.getLogger("flashvideo.caption")

COMMIT_CLIPS, COMMIT_S = 2000, 20.0
BATCH_CLIPS = 16
IDENTITY = ("clip_id", "source_id", "uri", "start_us", "end_us", "caption", "caption_run")


def run(context: JobContext) -> Report:
    """See the module's docstring."""
    config = context.recipe.curation.caption
    store = Store.open(context.workspace.store)
    try:
        lineage = caption_lineage(config, track_run(context.recipe.curation))
        clips = _present_clips(store, clip_columns(config))
        todo = _to_do(clips, config, lineage)
        changed = _caption_all(context, store, lineage, clips, todo)
    except CaptionSetupError as error:
        raise UserError(str(error)) from None
    return _report(context, store, clips, todo.num_rows, changed, lineage)


def _present_clips(store: Store, columns: tuple[str, ...]) -> pa.Table:
    """Clips of the files that were listed at the last ingest."""
    sources = store.read("sources", ["source_id"], "present = true")
    clips = store.read("clips", list(dict.fromkeys([*IDENTITY, *columns])))
    return clips.filter(pc.is_in(clips["source_id"], sources["source_id"].combine_chunks()))


def _to_do(clips: pa.Table, config: CaptionConfig, lineage: Lineage) -> pa.Table:
    if config.backend in FACT_READERS:
        return clips
    return clips.filter(pc.fill_null(pc.not_equal(clips["caption_run"], lineage.run_id), True))


def _caption_all(context: JobContext, store: Store, lineage: Lineage, clips: pa.Table, todo: pa.Table) -> int:
    """Captions and commits as it goes; returns the number of clips whose caption changed."""
    config, runtime = context.recipe.curation.caption, context.recipe.runtime
    skipped, total = clips.num_rows - todo.num_rows, clips.num_rows
    context.progress.update(skipped, total, "clips")
    if todo.num_rows == 0:
        return 0
    begin = last_commit = time.monotonic()
    build = partial(_steps, config, context.workspace.tracks, lineage)
    writer = _Writer(store, lineage, config, todo)
    for part in run_steps(build, todo, ("clip_id",), Workers.of(runtime), BATCH_CLIPS):
        writer.take(part)
        context.progress.update(skipped + writer.done, total, "clips", f"{writer.failed} failed" if writer.failed else "")
        if writer.waiting >= COMMIT_CLIPS or time.monotonic() - last_commit > COMMIT_S:
            writer.commit()
            last_commit = time.monotonic()
            check_failed_share(writer.failed, total, context.recipe.curation.max_failed_share, "clips")
    writer.commit()
    store.register_run(lineage, "cpu", time.monotonic() - begin, writer.done, writer.done - writer.failed, writer.failed)
    return writer.changed


def _steps(config: CaptionConfig, tracks: Path, lineage: Lineage) -> tuple[CaptionStep]:
    return (build_step(config, tracks, lineage),)


@dataclass
class _Writer:
    """Gathers what the step makes and commits it: captions first, then errors, then the clips' marks, so that a kill between
    repeats the clips and nothing is doubled."""

    store: Store
    lineage: Lineage
    config: CaptionConfig
    todo: pa.Table
    done: int = 0
    failed: int = 0
    changed: int = 0
    _rows: list[dict[str, Any]] = field(default_factory=list)
    """Clip rows with text, finish, words and flags; text null: failed."""
    _errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Clips that are not committed yet."""
        return len(self._rows)

    def take(self, part: Part) -> None:
        """Adds a part of the executor's."""
        clips = self.todo.select(list(IDENTITY)).take(pa.array(part.rows, pa.int64())).to_pylist()
        made = part.outputs[CaptionStep.name].to_pylist()
        rows = [{**clip, **{name: row[name] for name in CaptionStep.writes.names}} for clip, row in zip(clips, made, strict=True)]
        by_row = dict(zip(part.rows, rows, strict=True))
        errors = [
            self._error(by_row[failure.row], failure.code, failure.message, failure.node, failure.seconds) for failure in part.failures
        ]
        errors += [self._refusal(row) for row in rows if "refusal" in (row["flags"] or ())]
        self._rows += rows
        self._errors += errors
        self.done, self.failed = self.done + len(rows), self.failed + len(errors)

    def _error(
        self, clip: dict[str, Any], code: str, message: str, node: str | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        log.warning("%s: %s", code, message)
        return {
            "source_id": clip["source_id"], "uri": clip["uri"], "clip_id": clip["clip_id"], "job": "caption", "step": CaptionStep.name,
            "code": code, "message": message, "attempt": 1, "node": node, "seconds": seconds, "run_id": self.lineage.run_id,
        }  # fmt: skip

    def _refusal(self, row: dict[str, Any]) -> dict[str, Any]:
        message = f"clip {row['clip_id']}: {self.lineage.model} declined: {row['text'][:200]!r}; the clip has no caption in use"
        return self._error(row, "refusal", message)

    def commit(self) -> None:
        """Writes what waits."""
        rows = sorted(self._rows, key=lambda row: str(row["clip_id"]))
        errors, self._rows, self._errors = self._errors, [], []
        if not rows:
            return
        changed = [row for row in rows if (row["caption"], row["caption_run"]) != self._in_use(row)]
        self._write_captions(changed)
        self.store.resolve_errors("caption", clip_ids=[row["clip_id"] for row in rows])
        self.store.append_errors(errors)
        marks = [
            {"clip_id": row["clip_id"], "caption": text, "caption_run": run_id} for row in changed for text, run_id in [self._in_use(row)]
        ]
        if marks:
            schema = pa.schema([CLIPS.field(name) for name in ("clip_id", "caption", "caption_run")])
            self.store.merge_columns("clips", pa.Table.from_pylist(marks, schema=schema))
        self.changed += len(changed)

    def _in_use(self, row: dict[str, Any]) -> tuple[str | None, str | None]:
        """The clip's caption and caption_run: a refusal is kept in `captions` and never trained on; a failure is tried again."""
        if row["text"] is None:
            return None, None
        return (None if "refusal" in row["flags"] else row["text"]), self.lineage.run_id

    def _write_captions(self, rows: list[dict[str, Any]]) -> None:
        run_id = self.lineage.run_id
        gone = [row["clip_id"] for row in rows if row["text"] is None and row["caption_run"] == run_id]
        if gone:
            self.store.delete("captions", f"caption_run = '{run_id}' and {any_of('clip_id', gone)}")
        whole_file = self.config.backend == "sidecar"  # what part of the file it describes is not known
        written = [
            {
                "clip_id": row["clip_id"],
                "caption_run": run_id,
                "model": self.lineage.model,
                "prompt_hash": prompt_hash(self.config),
                "start_us": None if whole_file else row["start_us"],
                "end_us": None if whole_file else row["end_us"],
                **{name: row[name] for name in CaptionStep.writes.names},
            }
            for row in rows
            if row["text"] is not None
        ]
        self.store.upsert("captions", pa.Table.from_pylist(written, schema=CAPTIONS))


def _report(context: JobContext, store: Store, before: pa.Table, computed: int, changed: int, lineage: Lineage) -> Report:
    clips = _present_clips(store, ())
    captioned = clips.num_rows - clips["caption"].null_count
    failed = clips.num_rows - captioned
    check_failed_share(failed, clips.num_rows, context.recipe.curation.max_failed_share, "clips")
    captions = store.read("captions", ["clip_id", "words", "flags", "finish"], f"caption_run = '{lineage.run_id}'")
    captions = captions.filter(pc.is_in(captions["clip_id"], clips["clip_id"].combine_chunks()))
    flags = pc.value_counts(pc.list_flatten(captions["flags"])).to_pylist()
    flagged = {f"flag {row['values']}": row["counts"] for row in sorted(flags, key=lambda row: str(row["values"]))}
    cut_off = pc.sum(pc.equal(captions["finish"], "length")).as_py() or 0
    warnings = [f"{number} captions have the {name}; look at them: flashvideo query --table captions" for name, number in flagged.items()]
    if cut_off:
        warnings.append(f"{cut_off} captions were cut off at the model's token limit")
    return context.report(
        digest_of(clips, ("clip_id", "caption")),
        counts={
            "clips": clips.num_rows,
            "captioned": captioned,
            "computed_now": computed,
            "changed": changed,
            "skipped": before.num_rows - computed,
            "failed": failed,
            **flagged,
        },
        models={"caption": lineage.model},
        headline={"captioned": captioned, "mean_words": pc.mean(captions["words"]).as_py()},
        warnings=warnings,
    )


if __name__ == "__main__":
    main("caption", run)
