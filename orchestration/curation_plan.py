"""What curating all of the sources will cost, from a sample of them that is curated here: CPU-h, GPU-h, storage, tokens, money.

The jobs themselves run, ingest to caption, on a few files in a folder that is deleted afterwards; the store's registry of runs
then says what each step took. The whole follows by bytes, the one thing that is known of every file without opening it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.table import Table

from curation.sources import SourceError, SourceFile, list_sources
from curation.store import Store
from orchestration.jobs import MISTAKE, job_command
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.recipe import Recipe, dump

JOBS = ("ingest", "detect_shots", "score", "caption")
SAMPLE_FILES, SAMPLE_BYTES = 8, 200_000_000
"""At most so much is curated for the plan (one file at least)."""
TOKENS_A_WORD = 4 / 3
"""Of English in sentencepiece and BPE vocabularies, roughly; what is counted is words."""


@dataclass(frozen=True)
class StepCost:
    """One step over the sample."""

    job: str
    step: str
    model: str
    device: str
    rows: int
    failed: int
    seconds: float
    """Of one worker."""

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class CurationPlan:
    """The sample, and what it says of the whole."""

    files: int
    bytes: int
    sample_files: int
    sample_bytes: int
    sample_s: float
    """Length of the sample's videos."""
    sample_clips: int
    sample_words: int
    """Of its captions."""
    track_bytes: int
    store_bytes: int
    steps: tuple[StepCost, ...]

    @property
    def factor(self) -> float:
        """The whole over the sample, by bytes."""
        return self.bytes / self.sample_bytes

    def hours(self, step: StepCost) -> float:
        """Of one worker, for the whole."""
        return step.seconds * self.factor / 3600


def sample_of(files: Sequence[SourceFile], most_files: int = SAMPLE_FILES, most_bytes: int = SAMPLE_BYTES) -> list[SourceFile]:
    """Files in the order of a hash of their addresses (the same ones every time), as many as fit; at least one."""
    chosen: list[SourceFile] = []
    for file in sorted(files, key=lambda file: hashlib.sha256(file.uri.encode()).hexdigest()):
        fits = sum(each.bytes for each in chosen) + file.bytes <= most_bytes
        if len(chosen) < most_files and (fits or not chosen) and file.bytes > 0:
            chosen.append(file)
    return chosen


def measure_plan(recipe: Recipe, workspace: Workspace) -> CurationPlan:
    """Curates a sample of the sources in one worker. Raises UserError when there are no sources or a job fails."""
    try:
        files = list_sources(workspace.sources(recipe)).files
    except SourceError as error:
        raise UserError(f"nothing to plan for: {error}") from None
    sample = sample_of(files)
    if not sample:
        raise UserError("nothing to plan for: every file of the sources is empty")
    with tempfile.TemporaryDirectory(prefix="flashvideo_plan_") as folder:
        root = Path(folder)
        listing = root / "sample.txt"
        listing.write_text("".join(f"{file.uri}\n" for file in sample))
        runtime = recipe.runtime.model_copy(update={"runner": "local", "backend": "local", "workers": 1})
        small = recipe.model_copy(update={"sources": (str(listing),), "runtime": runtime})
        (root / "recipe.json").write_text(dump(small))
        for job in JOBS:
            print(f"plan: {job} on {len(sample)} of {len(files)} files", file=sys.stderr, flush=True)
            _run(job, root)
        return plan_of(Store.open(root / "store"), root / "tracks", files, sample)


def _run(job: str, root: Path) -> None:
    log = root / f"{job}.log"
    with open(log, "wb") as output:
        code = subprocess.call(
            job_command(sys.executable, job, root, root / "recipe.json", "plan"), stdout=output, stderr=subprocess.STDOUT
        )
    if code:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no word why"])[-1]
        raise UserError(last if code == MISTAKE else f"the plan's sample failed in {job} (exit code {code}): {last}")


def plan_of(store: Store, tracks: Path, files: Sequence[SourceFile], sample: Sequence[SourceFile]) -> CurationPlan:
    """The plan that the sample's store gives."""
    clips = store.read("clips", ["caption"])
    words = pc.sum(pc.list_value_length(pc.utf8_split_whitespace(clips["caption"]))).as_py() or 0
    runs = sorted(
        store.read("runs").to_pylist(), key=lambda row: (JOBS.index(row["job"]) if row["job"] in JOBS else len(JOBS), row["step"])
    )
    return CurationPlan(
        files=len(files),
        bytes=sum(file.bytes for file in files),
        sample_files=len(sample),
        sample_bytes=sum(file.bytes for file in sample),
        sample_s=float(pc.sum(store.read("sources", ["duration_s"])["duration_s"]).as_py() or 0.0),
        sample_clips=clips.num_rows,
        sample_words=int(words),
        track_bytes=_size(tracks),
        store_bytes=_size(Path(store.path)),
        steps=tuple(_cost(row) for row in runs),
    )


def _cost(row: dict[str, Any]) -> StepCost:
    return StepCost(row["job"], row["step"], row["model"], row["device"], row["rows_in"], row["rows_failed"], row["seconds"] or 0.0)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def plan_table(plan: CurationPlan, workers: int, worker_price: float | None, gpu_price: float | None = None) -> Table:
    """A row per step, dearest marked. Prices are of an hour of one worker: without a GPU, and with one; a step without a price has none."""
    priced = worker_price is not None or gpu_price is not None
    table = Table(
        "job",
        "step",
        "device",
        "rows",
        "failed",
        "s in the sample",
        "s an hour of video",
        "worker-hours in all",
        *(["money"] if priced else []),
    )
    table.box, table.padding = None, (0, 2, 0, 0)
    dearest = max((plan.hours(step) for step in plan.steps), default=0.0)
    for step in plan.steps:
        hourly = f"{step.seconds / plan.sample_s * 3600:,.4g}" if plan.sample_s else "–"
        hours = plan.hours(step)
        cells = [step.job, step.step, step.device, str(step.rows), str(step.failed), f"{step.seconds:.3g}", hourly]
        cells.append(f"{hours:,.3g}{'  the dearest' if hours == dearest > 0 else ''}")
        table.add_row(*cells, *([_money(hours, gpu_price if step.on_gpu else worker_price)] if priced else []))
    cpu, gpu = (sum(plan.hours(step) for step in plan.steps if step.on_gpu == on_gpu) for on_gpu in (False, True))
    last = f"{cpu:,.3g} CPU-h" + (f" and {gpu:,.3g} GPU-h" if gpu else "") + f"; {(cpu + gpu) / workers:,.3g} h with {workers} workers"
    parts = [(hours, price) for hours, price in ((cpu, worker_price), (gpu, gpu_price)) if hours]
    whole = None if any(price is None for _, price in parts) else sum(hours * (price or 0) for hours, price in parts)
    table.add_row("all", "", "", "", "", "", "", last, *([_money(1, whole)] if priced else []))
    return table


def _money(hours: float, price: float | None) -> str:
    return "–" if price is None else f"{hours * price:,.2f}"


def plan_lines(plan: CurationPlan, root: Path) -> list[str]:
    """Sizes of the whole, and what does not fit."""
    tracks, tables, words = plan.track_bytes * plan.factor, plan.store_bytes * plan.factor, plan.sample_words * plan.factor
    lines = [
        f"sample: {plan.sample_files} of {plan.files:,} files, {plan.sample_bytes / 1e6:,.1f} of {plan.bytes / 1e6:,.1f} MB, "
        f"{plan.sample_s:,.1f} s of video; the whole by bytes: x {plan.factor:,.4g}",
        f"in all about {plan.sample_s * plan.factor / 3600:,.3g} h of video, {plan.sample_clips * plan.factor:,.0f} clips, "
        f"{words:,.0f} words of captions (about {words * TOKENS_A_WORD:,.0f} tokens); "
        f"tracks {tracks / 1e9:,.3g} GB, tables at most {tables / 1e9:,.3g} GB",
    ]
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if tracks + tables > free:
        lines.append(
            f"does not fit: tracks and tables want {(tracks + tables) / 1e9:,.3g} GB, {place} has {free / 1e9:,.3g} GB free; "
            "take another --root, or a lower curation.decode.sample_rate_hz"
        )
    return lines


def print_curation_plan(recipe: Recipe, workspace: Workspace, worker_price: float | None, gpu_price: float | None) -> None:
    """Measures and prints."""
    from orchestration.preview import console

    plan, out = measure_plan(recipe, workspace), console()
    for line in plan_lines(plan, workspace.root):
        out.print(line, soft_wrap=True)
    out.print(plan_table(plan, recipe.runtime.workers or os.cpu_count() or 1, worker_price, gpu_price))
