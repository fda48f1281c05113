"""Job `score`: motion, looks, quality, health and duplicates, as columns of `clips`. Reads the tracks, decodes nothing.

A score whose lineage (`<score>_run`) is the present one is not computed again; a failed row is null, with an error row.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.config import CurationConfig
from curation.decode_pass import PASS_VERSION
from curation.dedup import DEDUP_COLUMNS, SEMANTIC_COLUMNS, ClipToCompare, dedup_lineage, find_clusters, parse_hashes, semantic_lineage
from curation.schema import CLIPS
from curation.scores.aesthetic import aesthetic_lineage, aesthetic_proxy_lineage
from curation.scores.embedding import MEMORY_BYTES as CLIP_MEMORY_BYTES
from curation.scores.embedding import embedding_lineage
from curation.scores.health import health_lineage
from curation.scores.motion import RAFT_MEMORY_BYTES, motion_proxy_lineage, raft_lineage
from curation.scores.quality import MEMORY_BYTES as METRIC_MEMORY_BYTES
from curation.scores.quality import METRICS, WITHOUT_WEIGHTS, metric_weights, quality_fields, quality_lineage
from curation.scores.text_overlay import text_overlay_lineage
from curation.step import Lineage, Step, StepError
from curation.store import Store
from pipelines.artifacts import Report
from pipelines.committer import ColumnCommitter
from pipelines.digests import digest_of
from pipelines.executor import Workers, check_failed_share, run_steps
from pipelines.job import JobContext, UserError, main
from pipelines.recipe import fingerprint

log = logging.getLogger("flashvideo.score")

BATCH_ROWS, GPU_BATCH_ROWS = 1, 4
"""Clips handed to a worker at once. On the CPU a clip takes half a second, nothing is gained by more, and a kill loses what is in work."""
SCORES = (
    "corrupt_frames", "repeated_ratio", "black_ratio", "luma_mean", "blur", "letterbox_top_px", "letterbox_bottom_px",
    "letterbox_left_px", "letterbox_right_px", "perceptual_hash", "motion_proxy", "motion_top5", "motion_camera", "motion_object",
    "motion_pairs", "camera_move", "motion_raft", "aesthetic_proxy", "aesthetic", "aesthetic_min", *METRICS, "text_overlay",
    "duplicate_cluster", "is_duplicate", "semantic_cluster", "is_semantic_duplicate",
)  # fmt: skip
"""Columns that the job answers for (their lineage aside)."""


@dataclass(frozen=True)
class Plan:
    """One step as the job sees it: what is stale is known before anything heavy is imported."""

    lineage: Lineage
    run_column: str
    video_only: bool = False
    heavy: bool = False
    """Runs on the GPU where the recipe gives one, in workers of its own."""
    memory_bytes: int = 0
    """What such a worker takes."""

    @property
    def name(self) -> str:
        return self.lineage.step


def track_run(config: CurationConfig) -> str:
    """Identity of what the tracks hold; every score that reads them depends on it."""
    decode = config.decode
    return fingerprint(
        PASS_VERSION, decode.sample_rate_hz, decode.motion_short_side_px, decode.key_frame_short_side_px, decode.key_frame_positions
    )


def plan_steps(config: CurationConfig) -> tuple[list[Plan], list[Plan]]:
    """Steps over the tracks, and steps over what those wrote. Raises UserError that names missing weights or columns."""
    track = track_run(config)
    try:
        first = [
            Plan(health_lineage(track), "health_run"),
            Plan(motion_proxy_lineage(config.motion, track), "motion_proxy_run", video_only=True),
            Plan(aesthetic_proxy_lineage(track), "aesthetic_proxy_run"),
        ]
        for metric in config.quality.metrics:
            quality_fields(metric)
            quality = quality_lineage(metric, config.quality, track)
            first.append(Plan(quality, f"{metric}_run", heavy=metric not in WITHOUT_WEIGHTS, memory_bytes=METRIC_MEMORY_BYTES))
        if config.text_overlay.detector is not None:
            first.append(Plan(text_overlay_lineage(config.text_overlay, track), "text_overlay_run"))
        second = []
        if config.motion.raft:
            first.append(
                Plan(raft_lineage(config.motion, track), "motion_raft_run", video_only=True, heavy=True, memory_bytes=RAFT_MEMORY_BYTES)
            )
        if config.aesthetic.laion:
            embedding = embedding_lineage(config.aesthetic, track)
            first.append(Plan(embedding, "embedding_run", heavy=True, memory_bytes=CLIP_MEMORY_BYTES))
            second.append(Plan(aesthetic_lineage(config.aesthetic, embedding.run_id), "aesthetic_run"))
    except StepError as error:
        raise UserError(str(error)) from None
    return first, second


def build_steps(names: Sequence[str], config: CurationConfig, tracks: Path, device: str) -> list[Step]:
    """The steps themselves, in the process that will run them."""
    track = track_run(config)
    makers: dict[str, Callable[[], Any]] = {
        "health": lambda: _health(tracks, track),
        "motion_proxy": lambda: _motion_proxy(config, tracks, track),
        "aesthetic_proxy": lambda: _aesthetic_proxy(tracks, track),
        "motion_raft": lambda: _motion_raft(config, tracks, track, device),
        "embedding": lambda: _embedding(config, tracks, track, device),
        "aesthetic": lambda: _aesthetic(config, tracks, track),
        "text_overlay": lambda: _text_overlay(config, tracks, track),
    }
    return [makers[name]() if name in makers else _quality(name, config, tracks, track, device) for name in names]


def _health(tracks: Path, track: str) -> Step:
    from curation.scores.health import HealthStep

    return HealthStep(tracks, track)


def _motion_proxy(config: CurationConfig, tracks: Path, track: str) -> Step:
    from curation.scores.motion import MotionProxyStep

    return MotionProxyStep(config.motion, tracks, track)


def _motion_raft(config: CurationConfig, tracks: Path, track: str, device: str) -> Step:
    from curation.scores.motion import MotionRaftStep

    return MotionRaftStep(config.motion, tracks, track, device)


def _aesthetic_proxy(tracks: Path, track: str) -> Step:
    from curation.scores.aesthetic import AestheticProxyStep

    return AestheticProxyStep(tracks, track)


def _embedding(config: CurationConfig, tracks: Path, track: str, device: str) -> Step:
    from curation.scores.embedding import EmbeddingStep

    return EmbeddingStep(config.aesthetic, tracks, track, device)


def _aesthetic(config: CurationConfig, tracks: Path, track: str) -> Step:
    from curation.scores.aesthetic import AestheticStep

    return AestheticStep(config.aesthetic, tracks, embedding_lineage(config.aesthetic, track).run_id)


def _text_overlay(config: CurationConfig, tracks: Path, track: str) -> Step:
    from curation.scores.text_overlay import TextOverlayStep

    return TextOverlayStep(config.text_overlay, tracks, track)


def _quality(metric: str, config: CurationConfig, tracks: Path, track: str, device: str) -> Step:
    from curation.scores.quality import QualityStep

    make = None
    if metric_weights(metric, config.quality) is not None:
        from flashvideo.evaluation.networks.frame_metrics import build_metric

        make = partial(build_metric, folder=Path(str(config.quality.weights)).expanduser())
    return QualityStep(metric, config.quality, tracks, track, device, make)


def run(context: JobContext) -> Report:
    """See the module's docstring. Raises UserError for missing weights, FailedShareError for too many failed clips."""
    config = context.recipe.curation
    first, second = plan_steps(config)
    store = Store.open(context.workspace.store)
    total = store.read("clips", ["clip_id"]).num_rows
    failed_clips: set[str] = set()
    scored: dict[str, int] = {}
    gpus = context.recipe.runtime.gpus_per_model_worker
    # Steps on the CPU share a worker and what it reads; a network on the GPU has workers of its own, of the memory that it declares.
    groups = [([plan for plan in first if not (plan.heavy and gpus)], 0.0), *(([plan], gpus) for plan in first if plan.heavy and gpus)]
    for plans, group_gpus in [*groups, (second, 0.0)]:
        if plans:
            failed, done = _score(context, store, plans, group_gpus)
            failed_clips |= failed
            scored |= done
    _mark_duplicates(context, store)
    clips = present_clips(store, ["clip_id", "source_id", "media_type", *SCORES])
    check_failed_share(len(failed_clips), clips.num_rows, config.max_failed_share, "clips")
    log.info("scored %s", scored)
    return _report(context, clips, [*first, *second], scored, len(failed_clips), total)


def present_clips(store: Store, columns: Sequence[str]) -> pa.Table:
    """Clips of the sources that were listed at the last ingest, in order of source and time."""
    here = store.read("sources", ["source_id"], where="present = true and status = 'split'")["source_id"]
    rows = store.read("clips", list(dict.fromkeys([*columns, "source_id", "start_us"])))
    rows = rows.filter(pc.is_in(rows["source_id"], pa.array(here.to_pylist(), pa.string())))
    return rows.sort_by([("source_id", "ascending"), ("start_us", "ascending")]).select(list(columns))


def stale_rows(rows: pa.Table, plans: Sequence[Plan]) -> dict[str, list[bool]]:
    """Per step, which rows (media_type and the run columns) it has to compute: those of another lineage."""
    is_video = pc.equal(rows["media_type"], "video").to_pylist()
    return {
        plan.name: [
            run != plan.lineage.run_id and (video or not plan.video_only)
            for run, video in zip(rows[plan.run_column].to_pylist(), is_video, strict=True)
        ]
        for plan in plans
    }


def _score(context: JobContext, store: Store, plans: list[Plan], gpus: float) -> tuple[set[str], dict[str, int]]:
    """Runs the stale ones of these steps; returns the clips that failed, and clips done per step."""
    inputs = ["embedding"] if any(plan.name == "aesthetic" for plan in plans) else []
    columns = ["clip_id", "source_id", "uri", "media_type", "start_us", "end_us", *inputs, *(plan.run_column for plan in plans)]
    rows = present_clips(store, columns)
    wanted = {name: mask for name, mask in stale_rows(rows, plans).items() if any(mask)}
    if not wanted:
        return set(), {}
    todo = [any(mask[row] for mask in wanted.values()) for row in range(rows.num_rows)]
    places = [row for row, needed in enumerate(todo) if needed]
    rows, wanted = rows.take(places), {name: [mask[row] for row in places] for name, mask in wanted.items()}
    config, device = context.recipe.curation, "cuda" if gpus else "cpu"
    build = partial(build_steps, tuple(wanted), config, context.workspace.tracks, device)
    committer = ColumnCommitter(store, "score", rows)
    done = 0
    begin = time.monotonic()
    context.progress.update(0, rows.num_rows, "clips", "models are loaded")
    workers = Workers.of(context.recipe.runtime, gpus, max(plan.memory_bytes for plan in plans) if gpus else 0)
    for part in run_steps(build, rows, ["clip_id"], workers, GPU_BATCH_ROWS if gpus else BATCH_ROWS, wanted):
        committer.add(part)
        done += len(part.rows)
        failures = len(committer.failed_rows)
        context.progress.update(done, rows.num_rows, "clips", f"{failures} failed" if failures else "")
    committer.flush()
    for plan in plans:
        if plan.name in wanted:
            count, failed = committer.rows_in[plan.name], committer.rows_failed[plan.name]
            store.register_run(plan.lineage, device, committer.seconds[plan.name], count, count - failed, failed)
    log.info("steps took %s s of work in %.1f s", {k: round(v, 1) for k, v in committer.seconds.items()}, time.monotonic() - begin)
    names = rows["clip_id"].to_pylist()
    return {names[row] for row in committer.failed_rows}, dict(committer.rows_in)


def _mark_duplicates(context: JobContext, store: Store) -> None:
    """Clusters all present clips anew (cheap), by looks and where asked by meaning, and writes the rows that change."""
    config = context.recipe.curation
    looks, meaning = dedup_lineage(config.dedup), None
    if config.dedup.semantic_similarity is not None:
        if not config.aesthetic.laion:
            raise UserError(
                "curation.dedup.semantic_similarity compares CLIP embeddings, which curation.aesthetic.laion=true makes; set both"
            )
        meaning = semantic_lineage(config.dedup, embedding_lineage(config.aesthetic, track_run(config)).run_id)
    columns = ["clip_id", "source_id", "media_type", "start_us", "short_side_px", "perceptual_hash", *DEDUP_COLUMNS, *SEMANTIC_COLUMNS]
    rows = present_clips(store, columns)
    clips = [
        ClipToCompare(
            row["clip_id"], row["source_id"], row["media_type"], row["start_us"], row["short_side_px"], parse_hashes(row["perceptual_hash"])
        )
        for row in rows.to_pylist()
    ]
    begin = time.monotonic()
    _write_clusters(store, rows, DEDUP_COLUMNS, find_clusters(clips, config.dedup), looks, begin)
    if meaning is not None:
        from curation.semantic_dedup import find_semantic_clusters

        begin = time.monotonic()
        embeddings = present_clips(store, ["clip_id", "embedding"])["embedding"].combine_chunks()
        found = find_semantic_clusters(clips, embeddings, float(config.dedup.semantic_similarity or 0))
        _write_clusters(store, rows, SEMANTIC_COLUMNS, found, meaning, begin)


def _write_clusters(store: Store, rows: pa.Table, names: Sequence[str], clusters: dict[str, str], lineage: Lineage, begin: float) -> None:
    """`names`: the columns for the cluster, for whether the clip is a duplicate, and for the lineage."""
    changed = []
    for row in rows.select(["clip_id", *names]).to_pylist():
        cluster = clusters.get(row["clip_id"])
        values = (cluster, int(cluster is not None and cluster != row["clip_id"]), lineage.run_id)
        new = {"clip_id": row["clip_id"], **dict(zip(names, values, strict=True))}
        if new != row:
            changed.append(new)
    if changed:
        schema = pa.schema([CLIPS.field(name) for name in ("clip_id", *names)])
        store.merge_columns("clips", pa.Table.from_pylist(changed, schema=schema))
        store.register_run(lineage, "cpu", time.monotonic() - begin, rows.num_rows, rows.num_rows, 0)


def _report(
    context: JobContext, clips: pa.Table, plans: list[Plan], scored: dict[str, int], failed: int, stored: int
) -> Report:  # fmt: skip
    motion = [value for value in clips["motion_proxy"].to_pylist() if value is not None]
    looks = [value for value in clips["aesthetic_proxy"].to_pylist() if value is not None]
    headline: dict[str, Any] = {}
    if motion:
        headline["median_motion_proxy"] = statistics.median(motion)
    if looks:
        headline["median_aesthetic_proxy"] = statistics.median(looks)
    return context.report(
        digest_of(clips, ["clip_id", *SCORES]),
        counts={
            "clips": clips.num_rows,
            "scored_now": max(scored.values(), default=0),
            "skipped": clips.num_rows - max(scored.values(), default=0),
            "duplicates": sum(value or 0 for value in clips["is_duplicate"].to_pylist()),
            "failed": failed,
            "absent": stored - clips.num_rows,
        },
        models={plan.name: plan.lineage.model for plan in plans},
        headline=headline,
    )


if __name__ == "__main__":
    main("score", run)
