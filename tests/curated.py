"""Runs the curation jobs in this process and says how every file ended, for tests and benchmarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.store import Store
from pipelines import detect_shots, ingest, score
from pipelines.artifacts import Report, Workspace
from pipelines.job import run_job
from pipelines.recipe import Recipe, load

JOBS = {"ingest": ingest.run, "detect_shots": detect_shots.run, "score": score.run}
SPLIT, FAILED, DUPLICATE = "split", "failed", "duplicate"
NAMED_CODES = frozenset(
    (
        "not_media", "invalid_container", "truncated", "empty_file", "no_video_stream", "no_decoder", "no_frames", "encrypted",
        "unreadable", "deadline", "out_of_memory", "crashed",
    )
)  # fmt: skip
"""Why a file may fail. `exception` is not among them: that is our mistake, not the file's."""


@dataclass(frozen=True)
class Outcome:
    """How one file ended."""

    status: str
    codes: tuple[str, ...]
    """Of its open errors, sorted: why it failed, is damaged or gives no clip."""
    decoded: int | None
    corrupt: int | None
    clips: int
    alike: str
    """bytes: NAME; looks: NAME; or empty."""

    @property
    def is_named(self) -> bool:
        """split or a duplicate; or failed with a code that says why."""
        return self.status in (SPLIT, DUPLICATE) or (self.status == FAILED and len(self.codes) == 1 and self.codes[0] in NAMED_CODES)


def recipe_of(sources: tuple[str, ...], *overrides: str, workers: int = 1) -> Recipe:
    """The debug recipe with the paper's shots, every failure share allowed, without pyiqa (its import takes seconds)."""
    settings = (
        "curation.shots.min_duration_s=2.0",
        "curation.shots.clip_duration_s=6.125",
        "curation.quality.metrics=[]",
        "curation.max_failed_share=1.0",
        "runtime.backend=local",
        f"runtime.workers={workers}",
    )
    return load("debug", (*settings, *overrides), sources=sources)


def curate(workspace: Workspace, recipe: Recipe, *jobs: str) -> dict[str, Report]:
    """Runs the jobs (all three where none is named) and returns their reports."""
    return {name: run_job(name, JOBS[name], recipe, workspace, "curated") for name in jobs or JOBS}


def outcomes(workspace: Workspace) -> dict[str, Outcome]:
    """By file name, how every listed file ended."""
    store = Store.open(workspace.store)
    clips = store.read("clips").to_pylist()
    names = {clip["clip_id"]: Path(clip["uri"]).name for clip in clips}
    numbers = Counter(clip["source_id"] for clip in clips)
    looks = {
        clip["source_id"]: f"looks: {names[clip['duplicate_cluster']]}"
        for clip in clips
        if clip["duplicate_cluster"] and clip["is_duplicate"]
    }
    codes: dict[str, set[str]] = {}
    for error in store.read("errors", where="resolved = false").to_pylist():
        codes.setdefault(error["uri"], set()).add(error["code"])
    return {
        Path(row["uri"]).name: _outcome(row, codes.get(row["uri"], set()), numbers, looks)
        for row in store.read("sources", where="present = true").to_pylist()
    }


def _outcome(row: dict[str, Any], codes: set[str], clips: Counter[str], looks: dict[str, str]) -> Outcome:
    copy = row["status"] == DUPLICATE
    alike = f"bytes: {Path(row['duplicate_of']).name}" if copy else looks.get(row["source_id"], "")
    number = 0 if copy else clips[row["source_id"]]
    return Outcome(row["status"], tuple(sorted(codes)), row["decoded_frames"], row["corrupt_frames"], number, alike)
