"""Job `detect_shots`: the one decode pass over every source; shots cut into clips. Writes `clips`, tracks/ and thumbnails.

A source whose pass was made with these settings, and whose track is there, is not decoded again.
"""

from __future__ import annotations

import logging
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.config import CurationConfig
from curation.expression import any_of
from curation.passes import CHANGED, UNREACHABLE, DecodePass, PassResult, PassTask
from curation.schema import CLIPS, SOURCES
from curation.step import Lineage
from curation.store import Store
from curation.supervised import Failure
from curation.tracks import track_exists
from curation.versions import PASS_VERSION
from pipelines.artifacts import Report
from pipelines.digests import digest_of
from pipelines.executor import WorkerDied, Workers, check_failed_share, map_tasks
from pipelines.job import JobContext, main

log = logging.getLogger("flashvideo.detect_shots")

COMMIT_SOURCES, COMMIT_S = 200, 20.0
LOST_FRAMES = 2
"""Declared frames that may be absent without a word: containers count frames that edit lists hide."""
SPLIT = ("uri", "status", "decoded_frames", "corrupt_frames", "cuts_us", "shots_run")
IDENTITY = (
    "clip_id", "source_id", "uri", "dataset", "media_type", "start_us", "end_us", "duration_s", "num_frames", "frame_rate_hz", "shot",
    "width", "height", "short_side_px",
)  # fmt: skip


def shots_lineage(config: CurationConfig) -> Lineage:
    """What made the tracks, the cuts and the clips."""
    decode = config.decode.model_dump(mode="json", exclude={"deadline_s", "memory_bytes", "attempts"})
    parameters = {"decode": decode, "shots": config.shots.model_dump(mode="json")}
    model = "fixed stride" if config.shots.detector == "stride" else f"PySceneDetect {config.shots.detector}"
    return Lineage("detect_shots", "decode_pass", PASS_VERSION, model, parameters=parameters)


def run(context: JobContext) -> Report:
    """See the module's docstring."""
    config = context.recipe.curation
    store = Store.open(context.workspace.store)
    lineage = shots_lineage(config)
    present = store.read("sources", where="present = true").to_pylist()
    originals = [row for row in present if row["media_type"] is not None and row["status"] != "duplicate"]
    todo = [row for row in originals if not is_done(row, context.workspace.tracks, lineage)]
    begin = time.monotonic()
    failed = _decode_all(context, store, lineage, todo, done_before=len(originals) - len(todo))
    if todo:
        store.register_run(lineage, "cpu", time.monotonic() - begin, len(todo), len(todo) - failed, failed)
    return _report(context, store, originals, len(todo), lineage)


def is_done(row: dict[str, Any], tracks: Path, lineage: Lineage) -> bool:
    """Whether the source was decoded with these settings, and its track is there."""
    if row["shots_run"] != lineage.run_id:
        return False
    return row["status"] == "failed" or track_exists(tracks, row["source_id"])


def _decode_all(context: JobContext, store: Store, lineage: Lineage, todo: list[dict[str, Any]], done_before: int) -> int:
    """Decodes and commits as it goes; returns how many sources failed."""
    config = context.recipe.curation
    tasks = [
        PassTask(
            uri=row["uri"],
            source_id=row["source_id"],
            media_type=row["media_type"],
            frame_rate_hz=row["frame_rate_hz"] or 25.0,
            decode=config.decode,
            shots=config.shots,
            tracks=context.workspace.tracks,
        )
        for row in todo
    ]
    build = partial(DecodePass, config.decode)
    total, done, failed = done_before + len(todo), done_before, 0
    context.progress.update(done, total, "files")
    waiting: list[tuple[dict[str, Any], PassResult | Failure]] = []
    last_commit = time.monotonic()
    for index, result in map_tasks(build, tasks, Workers.of(context.recipe.runtime)):
        if isinstance(result, WorkerDied):
            raise RuntimeError(f"{todo[index]['uri']}: {result.message}")  # the child dies, never its keeper
        waiting.append((todo[index], result))
        done, failed = done + 1, failed + isinstance(result, Failure)
        context.progress.update(done, total, "files", f"{failed} failed" if failed else "")
        if len(waiting) >= COMMIT_SOURCES or time.monotonic() - last_commit > COMMIT_S:
            _commit(store, lineage, waiting)
            waiting, last_commit = [], time.monotonic()
    _commit(store, lineage, waiting)
    return failed


def _commit(store: Store, lineage: Lineage, results: list[tuple[dict[str, Any], PassResult | Failure]]) -> None:
    """Clips first, then errors, then the sources' marks: a kill between repeats the sources and nothing is doubled."""
    if not results:
        return
    results = sorted(results, key=lambda result: str(result[0]["uri"]))
    clips = [row for source, result in results if isinstance(result, PassResult) for row in _clip_rows(source, result)]
    schema = pa.schema([CLIPS.field(name) for name in IDENTITY])
    store.upsert("clips", pa.Table.from_pylist(clips, schema=schema), replace_within="source_id")
    with_clips = {row["source_id"] for row in clips}
    empty = [source["source_id"] for source, _ in results if source["source_id"] not in with_clips]
    if empty:
        store.delete("clips", any_of("source_id", empty))
    errors = [error for source, result in results for error in _errors(source, result, lineage)]
    store.resolve_errors("detect_shots", uris=[source["uri"] for source, _ in results])  # what fails again is opened again
    store.append_errors(errors)
    rows = [_source_row(source, result, lineage) for source, result in results]
    store.merge_columns("sources", pa.Table.from_pylist(rows, schema=pa.schema([SOURCES.field(name) for name in SPLIT])))
    for error in errors:
        log.warning("%s: %s", error["code"], error["message"])


def _source_row(source: dict[str, Any], result: PassResult | Failure, lineage: Lineage) -> dict[str, Any]:
    if isinstance(result, Failure):
        facts: dict[str, Any] = dict.fromkeys(("decoded_frames", "corrupt_frames", "cuts_us"))
        tried = None if result.code in (UNREACHABLE, CHANGED) else lineage.run_id  # the file was not decoded: try again
        return {"uri": source["uri"], "status": "failed", **facts, "shots_run": tried}
    return {
        "uri": source["uri"],
        "status": "split",
        "decoded_frames": result.decoded_frames,
        "corrupt_frames": max(result.corrupt_frames, _lost(source, result)),
        "cuts_us": result.cuts_us,
        "shots_run": lineage.run_id,
    }


def _lost(source: dict[str, Any], result: PassResult) -> int:
    """Frames that the container declares and that never came."""
    lost = (source["declared_frames"] or 0) - result.decoded_frames
    return lost if lost > LOST_FRAMES else 0


def _clip_rows(source: dict[str, Any], result: PassResult) -> list[dict[str, Any]]:
    width, height = source["width"], source["height"]
    return [
        {
            "clip_id": clip.clip_id,
            "source_id": source["source_id"],
            "uri": source["uri"],
            "dataset": source["dataset"],
            "media_type": source["media_type"],
            "start_us": clip.start_us,
            "end_us": clip.end_us,
            "duration_s": (clip.end_us - clip.start_us) / 1e6,
            "num_frames": clip.num_frames,
            "frame_rate_hz": source["frame_rate_hz"],
            "shot": clip.shot,
            "width": width,
            "height": height,
            "short_side_px": min(width, height),
        }
        for clip in result.clips
    ]


def _errors(source: dict[str, Any], result: PassResult | Failure, lineage: Lineage) -> list[dict[str, Any]]:
    """The source's error rows: it failed, it is damaged, or it gives no clip."""
    uri = source["uri"]
    found: list[tuple[str, str, int, float]] = []
    if isinstance(result, Failure):
        found.append((result.code, f"{uri}: {result.message}", result.attempts, result.seconds))
    else:
        lost = _lost(source, result)
        if result.corrupt_frames:
            message = f"{uri}: {result.corrupt_frames} packets refused or frames flagged, {result.decoded_frames} frames decoded"
            found.append(("damaged", message, 1, 0.0))
        if lost and lost > result.corrupt_frames:
            message = (
                f"{uri}: {result.decoded_frames} of {source['declared_frames']} declared frames could be decoded; the file was cut short"
            )
            found.append(("truncated", message, 1, 0.0))
        if not result.clips:
            message = (
                f"{uri}: {source['duration_s']:.3g} s in {len(result.cuts_us) + 1} shots hold no clip of "
                f"{lineage.parameters['shots']['min_duration_s']:g} s; lower shots.min_duration_s to keep shorter ones"
            )
            found.append(("no_clip", message, 1, 0.0))
    return [
        {
            "source_id": source["source_id"], "uri": uri, "job": "detect_shots", "step": "decode_pass", "code": code,
            "message": message, "attempt": attempt, "node": socket.gethostname(), "seconds": seconds, "run_id": lineage.run_id,
        }
        for code, message, attempt, seconds in found
    ]  # fmt: skip


def _report(context: JobContext, store: Store, originals: list[dict[str, Any]], decoded_now: int, lineage: Lineage) -> Report:
    uris = pa.array([row["uri"] for row in originals], pa.string())
    sources = store.read("sources", where="present = true")
    sources = sources.filter(pc.is_in(sources["uri"], uris))
    clips = store.read("clips", list(IDENTITY))
    clips = _follow_moves(store, clips.filter(pc.is_in(clips["source_id"], sources["source_id"].combine_chunks())), sources)
    failed = sources.filter(pc.equal(sources["status"], "failed")).num_rows
    check_failed_share(failed, sources.num_rows, context.recipe.curation.max_failed_share, "files")
    made = digest_of(clips, [name for name in IDENTITY if name != "uri"])
    health = digest_of(sources, ("source_id", "status", "decoded_frames", "corrupt_frames", "cuts_us"))
    return context.report(
        f"{made}{health}",
        counts={
            "sources": sources.num_rows,
            "decoded_now": decoded_now,
            "skipped": sources.num_rows - decoded_now,
            "cuts": sum(len(cuts or []) for cuts in sources["cuts_us"].to_pylist()),
            "clips": clips.num_rows,
            "corrupt_frames": pc.sum(sources["corrupt_frames"]).as_py() or 0,
            "failed": failed,
        },
        outputs={"tracks": context.workspace.relative(context.workspace.tracks)},
        models={"cuts": lineage.model},
        headline={"clips": clips.num_rows, "hours": (pc.sum(clips["duration_s"]).as_py() or 0.0) / 3600},
    )


def _follow_moves(store: Store, clips: pa.Table, sources: pa.Table) -> pa.Table:
    """Clips of a file that was moved or renamed since, or is listed by another folder or list, get its present uri and dataset."""
    places = pc.index_in(clips["source_id"].combine_chunks(), sources["source_id"].combine_chunks())
    moved = pa.array([False] * clips.num_rows)
    for name in ("uri", "dataset"):
        wanted, old = sources[name].combine_chunks().take(places), clips[name].combine_chunks()
        differs = pc.fill_null(pc.not_equal(wanted, old), pc.xor(wanted.is_null(), old.is_null()))
        moved = pc.or_(moved, differs)
        clips = clips.set_column(clips.schema.get_field_index(name), clips.schema.field(name), wanted)
    if pc.any(moved).as_py():
        store.merge_columns("clips", clips.filter(moved).select(["clip_id", "uri", "dataset"]))
    return clips


if __name__ == "__main__":
    main("detect_shots", run)
