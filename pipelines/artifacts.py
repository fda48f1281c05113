"""Where a run keeps everything, and what of it is already done. Light.

    ROOT/
      recipe.json                     the recipe of the last run
      samples/                        rendered default sources
      store/                          LanceDB
      tracks/                         per source: sampled frames of the one decode pass
      caption_cache/                  answers of caption servers
      artifacts/<job>/<fingerprint>/  a job's outputs, and report.json once it is finished
      artifacts/<job>/current.json    the fingerprint that the store's tables hold
      logs/<run_id>/<job>.log         and <job>.progress.json
      prefect/                        Prefect's own data, embedded server
      review/                         labels on their way into the store, clips cut for the page
      report.html

A job's fingerprint hashes its code version, its part of the recipe and the *digests of what its upstream
jobs made*. So an upstream job that runs again and makes the same thing causes nothing downstream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from curation.sources import list_sources
from flashvideo.whole_files import write_text
from pipelines.plan import JobSpec, jobs_for
from pipelines.recipe import Recipe, fingerprint

Item = TypeVar("Item")


class Report(BaseModel):
    """What a job leaves behind; `report.json` in its folder marks it as finished."""

    job: str
    fingerprint: str
    digest: str = ""
    """Hash of what the job made (not when or where); it enters the fingerprints of the jobs that need this one."""
    counts: dict[str, int] = {}
    """Rows or things in, done, skipped, failed; for people."""
    outputs: dict[str, str] = {}
    """Name -> path relative to the root."""
    models: dict[str, str] = {}
    """Role -> class or weights used; stand-ins say so."""
    headline: dict[str, Any] = {}
    """Numbers for the report's first page."""
    warnings: list[str] = []
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    log: str = ""
    """Path relative to the root."""
    started: str = ""
    versions: dict[str, str] = {}


State = Literal["done", "stale", "missing", "unknown"]


@dataclass(frozen=True)
class JobState:
    """A job against a recipe: done; stale (an older result exists); missing; unknown (upstream not done)."""

    spec: JobSpec
    state: State
    fingerprint: str | None
    """None while an upstream job is not done, since its digest enters the hash."""
    report: Report | None


class Workspace:
    """Paths and completion state under one run root."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def tracks(self) -> Path:
        return self.root / "tracks"

    @property
    def prefect_home(self) -> Path:
        return self.root / "prefect"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    def logs(self, run_id: str) -> Path:
        return self.root / "logs" / run_id

    def folder(self, job: str, job_fingerprint: str) -> Path:
        return self.root / "artifacts" / job / job_fingerprint

    def relative(self, path: Path) -> str:
        """Path as text relative to the root, as reports and tables keep it."""
        return str(path.resolve().relative_to(self.root))

    def sources(self, recipe: Recipe) -> tuple[str, ...]:
        """The recipe's sources, or the rendered samples where it names none."""
        return recipe.sources or (str(self.samples),)

    def report(self, spec: JobSpec, job_fingerprint: str) -> Report | None:
        """The finished job's report, or None. A job in the store is finished only while it is the current one."""
        path = self.folder(spec.name, job_fingerprint) / "report.json"
        if not path.is_file():
            return None
        if spec.in_store and self.current(spec.name) != job_fingerprint:
            return None
        return Report.model_validate_json(path.read_text())

    def finish(self, spec: JobSpec, report: Report) -> None:
        """Marks a job as finished: report.json last, each file written beside and renamed."""
        folder = self.folder(spec.name, report.fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.parent / "current.json", json.dumps({"fingerprint": report.fingerprint}))
        write_atomically(folder / "report.json", report.model_dump_json(indent=1))

    def begin(self, spec: JobSpec, job_fingerprint: str) -> Path:
        """The job's folder, made. For a job in the store the current mark is taken away until it finishes."""
        folder = self.folder(spec.name, job_fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        if spec.in_store:
            (folder.parent / "current.json").unlink(missing_ok=True)
        return folder

    def current(self, job: str) -> str | None:
        """Fingerprint of the job's last finished output; None: there is none."""
        path = self.root / "artifacts" / job / "current.json"
        if not path.is_file():
            return None
        value: str = json.loads(path.read_text())["fingerprint"]
        return value

    def job_fingerprint(self, recipe: Recipe, spec: JobSpec, upstream: dict[str, Report]) -> str:
        """Name of the job's output. `upstream` holds the reports of the jobs that it needs."""
        facts: list[Any] = [spec.name, spec.version, spec.settings(recipe), [upstream[name].digest for name in spec.needs]]
        if spec.name == "ingest":
            facts.append([(f.uri, f.bytes, f.modified_ns) for f in list_sources(self.sources(recipe)).files])
        if spec.name == "caption" and recipe.curation.caption.backend == "sidecar":
            from curation.captions.sidecar import sidecar_listing

            facts.append(sidecar_listing((f.uri for f in list_sources(self.sources(recipe)).files), recipe.curation.caption.table))
        if spec.name == "select":
            digest = self.labels(recipe) if recipe.labels is None else recipe.labels
            facts += [digest] if digest else []
        return fingerprint(*facts)

    def labels(self, recipe: Recipe) -> str:
        """Digest of the labels that select would read now; empty: there are none, or the recipe does not go by them."""
        if recipe.curation.policy.preference_subset != "labels":
            return ""
        from curation.review.labels import labels_digest

        return labels_digest(self.store) or ""

    def states(self, recipe: Recipe, targets: Sequence[str]) -> list[JobState]:
        """Every job that the targets need, in running order, with what is already done.

        Raises SourceError when the sources cannot be listed (for the samples: before they are rendered).
        """
        reports: dict[str, Report] = {}
        states: list[JobState] = []
        for spec in jobs_for(*targets):
            if any(name not in reports for name in spec.needs):
                states.append(JobState(spec, "unknown", None, None))
                continue
            name = self.job_fingerprint(recipe, spec, reports)
            report = self.report(spec, name)
            if report is not None:
                reports[spec.name] = report
                states.append(JobState(spec, "done", name, report))
            else:
                stale = any((self.root / "artifacts" / spec.name).glob("*/report.json"))
                states.append(JobState(spec, "stale" if stale else "missing", name, None))
        return states


def ends_and_middle(items: Sequence[Item]) -> list[Item]:
    """The first, the middle and the last; fewer where there are fewer."""
    return [items[place] for place in sorted({0, len(items) // 2, len(items) - 1})] if items else []


def write_atomically(path: Path, text: str) -> None:
    """Writes beside, flushes to disk, renames: a reader sees the old file or the new one."""
    write_text(path, text, flushed=True)
