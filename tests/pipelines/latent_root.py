"""A small run root that is ready for precompute_latents: real clips in the store, reports of the jobs before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from trained_root import moving_texture

from curation.schema import TABLES
from curation.store import Store
from flashvideo.config import FrameShape, PhaseConfig, WatchConfig
from flashvideo.video_files import write_video
from pipelines.artifacts import Report, Workspace
from pipelines.job import JobContext, Progress
from pipelines.plan import job_spec, jobs_for
from pipelines.recipe import Recipe, load

PATCH, FULL = FrameShape(frames=9, height=32, width=48), FrameShape(frames=9, height=64, width=96)
TAG = "sel-test"
NUM_CLIPS = 6
"""Four training videos, one held-out video, one training image."""


def latent_recipe(**fields: Any) -> Recipe:
    """The debug recipe's jobs at toy sizes: a phase of image crops, one of crops, one of whole pictures."""
    recipe = load("debug", sources=("unused",))
    tiny = {"num_layers": 1, "num_attention_heads": 1, "time_embed_dim": 32, "text_embed_dim": 64}
    engine = recipe.stage1.engine.model_copy(update={"num_ranks": 1, "micro_batch_size": 4, "checkpoint_every": 3, "log_every": 1})
    noise = (8, 24)
    image = FrameShape(frames=1, height=32, width=48)
    phases = (
        PhaseConfig(name="images", iterations=3, shape=image, images=1, videos=0, batch_size=4, noise_steps=noise),
        PhaseConfig(name="patches", iterations=3, shape=PATCH, images=1, videos=2, batch_size=4, noise_steps=noise),
        PhaseConfig(name="preference", iterations=4, shape=FULL, batch_size=2, noise_steps=noise, subset="preference"),
    )
    stage1 = recipe.stage1.model_copy(
        update={
            "shape": PATCH,
            "transformer": recipe.stage1.transformer.model_copy(update=tiny),
            "engine": engine,
            "iterations": 4,
            "batch_size": 4,
        }
    )
    stage2 = recipe.stage2.model_copy(
        update={
            "phases": phases,
            "transformer": recipe.stage2.transformer.model_copy(update=tiny),
            "engine": engine.model_copy(update={"watch": WatchConfig(sample_every=100, samples=1)}),
        }
    )
    latents = recipe.latents.model_copy(update={"patches_per_clip": 2, "video_frames_as_images": True, "shard_bytes": 200_000})
    text_encoder = recipe.text_encoder.model_copy(update={"max_length": 16})
    runtime = recipe.runtime.model_copy(update={"backend": "local"})
    changed = {"stage1": stage1, "stage2": stage2, "latents": latents, "text_encoder": text_encoder, "runtime": runtime}
    return Recipe.model_validate(recipe.model_copy(update=changed | fields).model_dump())


def make_latent_root(folder: Path, **columns: Any) -> Workspace:
    """Sources and their rows. `columns` replaces columns of every row."""
    sources = folder / "sources"
    rows = []
    for index in range(NUM_CLIPS):
        is_image = index == NUM_CLIPS - 1
        path = sources / (f"still{index}.png" if is_image else f"clip{index}.mp4")
        if is_image:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(moving_texture(index)[0]).save(path)
        else:
            write_video(path, moving_texture(index), 24, 4)
        rows.append(_row(index, path, is_image) | columns)
    workspace = Workspace(folder / "root")
    store = Store.open(workspace.store)
    store.upsert("clips", pa.Table.from_pylist(rows, schema=pa.schema([TABLES["clips"].field(name) for name in rows[0]])))
    store.tag(TAG, "test")
    return workspace


def _row(index: int, path: Path, is_image: bool) -> dict[str, Any]:
    return {
        "clip_id": f"{index:032x}",
        "source_id": f"{index:032x}",
        "uri": str(path),
        "media_type": "image" if is_image else "video",
        "start_us": 0,
        "end_us": 1 if is_image else 1_250_000,
        "duration_s": 0.0 if is_image else 1.25,
        "width": 144,
        "height": 96,
        "split": "val" if index == 4 else "train",
        "subsets": ["preference"] if index == 0 else [],
        "state": "kept",
        "caption": f"coloured blocks number {index}",
        "motion_proxy": None if is_image else 1.5 + index,
    }


def context_of(name: str, workspace: Workspace, recipe: Recipe) -> JobContext:
    """What `run` of a job is given; the jobs before select are made up, the later ones must have run."""
    recipe = recipe.model_copy(update={"sources": (str(workspace.root.parent / "sources"),)})
    reports: dict[str, Report] = {}
    for spec in jobs_for(name)[:-1]:
        fingerprint = workspace.job_fingerprint(recipe, spec, reports)
        report = workspace.report(spec, fingerprint)
        if report is None:
            assert spec.in_store, f"{spec.name} has not run"
            workspace.begin(spec, fingerprint)
            report = Report(job=spec.name, fingerprint=fingerprint, digest=f"{spec.name}-digest", outputs={"tag": TAG})
            workspace.finish(spec, report)
        reports[spec.name] = report
    spec = job_spec(name)
    fingerprint = workspace.job_fingerprint(recipe, spec, reports)
    return JobContext(recipe, workspace, spec, fingerprint, workspace.begin(spec, fingerprint), Progress(None, name), reports)


def finish(context: JobContext, report: Report) -> Report:
    """Marks the job as done, as pipelines.job does."""
    context.workspace.finish(context.spec, report)
    return report


def pixels_psnr_db(decoded: np.ndarray, truth: np.ndarray) -> float:
    error = float(((decoded.astype(np.float64) - truth) ** 2).mean())
    return float(10 * np.log10(255**2 / error))
