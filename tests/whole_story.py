"""The whole story at a small size, as tests run it: sources, recipe, child processes, what a root holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.samples import render_one
from curation.store import Store
from pipelines.artifacts import Workspace
from pipelines.plan import JOB_NAMES
from pipelines.recipe import Recipe, load

SOURCES = (
    "motorcycle_pan_left.mp4",
    "retina_pan_left.mp4",
    "rocket_pan_left.mp4",
    "brick_camera_cut.mp4",
    "coins_static.mp4",
    "retina_still.jpg",
)
"""Three that are kept, one with a cut, one that is rejected as static, one image."""

SMALL = (
    "stage1.iterations=10",
    "stage2.phases.image_patches.iterations=6",
    "stage2.phases.mixed_patches.iterations=6",
    "stage2.phases.full_resolution.iterations=4",
    "stage2.phases.full_resolution.noise_steps_after=null",
    "stage2.phases.preference.iterations=2",
    "stage2.engine.checkpoint_every=3",
    "generate.num_prompts=1",
    "generate.stage1.num_steps=4",
    "evaluation.held_out_clips=2",
)
LOCAL = ("runtime.runner=local", "runtime.backend=local")
TIME_COLUMNS = {"errors": ["time", "seconds", "node"], "runs": ["time", "seconds", "device", "rows_in", "rows_ok", "rows_failed"]}
"""What of a table tells when and where, or how much one execution did, rather than what was made."""


def render_sources(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        render_one(name, folder)
    return folder


def command(verb: str, root: Path, sources: Path, *overrides: str) -> list[str]:
    arguments = [sys.executable, "-m", "orchestration.cli", *verb.split(), "--recipe", "debug", "--root", str(root)]
    for override in (*SMALL, *overrides):
        arguments += ["--set", override]
    return [*arguments, "--sources", str(sources)]


def recipe_of(sources: Path, *overrides: str) -> Recipe:
    return load("debug", (*SMALL, *overrides), sources=(str(sources),))


def run(verb: str, root: Path, sources: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The command to its end; it must succeed."""
    done = subprocess.run(command(verb, root, sources, *overrides), capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def run_until(verb: str, root: Path, sources: Path, job: str, note: str = "") -> None:
    """Starts the command and kills its whole process group (kill -9) in the middle of the job's work.

    The middle: its progress file tells 0 < done < total, and `note` where one is given.
    """
    log = open(root.with_suffix(".log"), "ab")  # noqa: SIM115
    with log:
        process = subprocess.Popen(command(verb, root, sources), stdout=log, stderr=log, start_new_session=True)
    try:
        while not _in_the_middle(root, process.pid, job, note):
            assert process.poll() is None, f"{verb} ended before {job} was killed:\n{root.with_suffix('.log').read_text()[-3000:]}"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _in_the_middle(root: Path, pid: int, job: str, note: str) -> bool:
    for file in root.glob(f"logs/*-{pid}/{job}.progress.json"):
        try:
            facts = json.loads(file.read_text())
        except (OSError, ValueError):
            return False
        return 0 < facts["done"] < facts["total"] and note in facts["note"]
    return False


def reports(root: Path, recipe: Recipe) -> dict[str, Any]:
    """Every finished job's report."""
    return {state.spec.name: state.report for state in Workspace(root).states(recipe, JOB_NAMES) if state.report is not None}


def tables(root: Path) -> dict[str, pa.Table]:
    """What the store holds, without the columns that tell times."""
    store = Store.open(root / "store", create=False)
    found = {}
    for name in ("sources", "clips", "captions", "latents", "text_embeddings", "errors", "runs"):
        table = store.read(name)
        found[name] = table.drop_columns([column for column in TIME_COLUMNS.get(name, []) if column in table.column_names])
    return found


def last_run(root: Path) -> dict[str, Any]:
    """run.json of the newest run."""
    newest = max(root.glob("logs/*/run.json"), key=lambda path: path.stat().st_mtime)
    facts: dict[str, Any] = json.loads(newest.read_text())
    return facts
