"""Runs curation jobs on small generated films, for the tests of ingest, detect_shots and score."""

from __future__ import annotations

from pathlib import Path

import cv2
from generated_films import moving, texture, write_film

from curation.store import Store
from pipelines import detect_shots, ingest, score
from pipelines.artifacts import Report, Workspace
from pipelines.job import run_job
from pipelines.recipe import Recipe, load

RUNS = {"ingest": ingest.run, "detect_shots": detect_shots.run, "score": score.run}


def make_sources(folder: Path) -> Path:
    """A pan, a two-shot film, a byte copy of the pan, its re-encoding at another size, a still image, a text that is no film."""
    write_film(folder / "pan.mp4", moving(180, 320, 60, (2, 0), seed=1))
    write_film(folder / "two.mp4", [*moving(180, 320, 36, (0, 3), seed=2), *moving(180, 320, 36, (-1, 0), seed=3)])
    (folder / "pan_copy.mp4").write_bytes((folder / "pan.mp4").read_bytes())
    small = [cv2.resize(frame, (160, 90), interpolation=cv2.INTER_AREA) for frame in moving(180, 320, 60, (2, 0), seed=1)]
    write_film(folder / "pan_small.mp4", small)
    cv2.imwrite(str(folder / "still.png"), texture(200, 300, 4))
    (folder / "no_film.mp4").write_text("not a film\n")
    return folder


def recipe_for(sources: Path, *overrides: str, backend: str = "local") -> Recipe:
    """The debug recipe over these sources, without pyiqa (its import takes seconds)."""
    settings = (f"runtime.backend={backend}", "runtime.workers=1", "curation.quality.metrics=[]", *overrides)
    return load("debug", settings, sources=(str(sources),))


def run_jobs(workspace: Workspace, recipe: Recipe, *names: str) -> dict[str, Report]:
    """Runs the jobs in order and returns their reports."""
    return {name: run_job(name, RUNS[name], recipe, workspace, "test") for name in names}


def rows_by_name(workspace: Workspace, table: str) -> dict[str, dict[str, object]]:
    """Rows of `sources` by file name, of `clips` by `file name@start in ms`."""
    rows = Store.open(workspace.store).read(table).to_pylist()
    if table == "sources":
        return {Path(row["uri"]).name: row for row in rows}
    return {f"{Path(row['uri']).name}@{row['start_us'] // 1000}": row for row in rows}
