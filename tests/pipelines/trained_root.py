"""A small run root whose training is over, for tests of the jobs after it: real clips, store, codec and models.

The two transformers are seeded random ones, saved as the training jobs save theirs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from curation.schema import TABLES
from curation.store import Store
from flashvideo.config import EvaluationConfig, FrameShape, TransformerConfig
from flashvideo.models.lora import add_lora, save_adapter, save_base
from flashvideo.models.transformer import CogVideoXTransformer, save_transformer
from flashvideo.models.vae import PatchPcaAutoencoder
from flashvideo.video_files import write_video
from pipelines.artifacts import Report, Workspace
from pipelines.job import JobContext, Progress
from pipelines.plan import job_spec, jobs_for
from pipelines.recipe import Recipe, load

PREVIEW = FrameShape(frames=9, height=32, width=48)
FULL = FrameShape(frames=9, height=64, width=96)


def small_recipe(sources: Path, *overrides: str) -> Recipe:
    """The debug recipe at toy sizes, on the CPU, without pyiqa (8 s of import) unless an override asks for it."""
    recipe = load("debug", tuple(overrides), sources=(str(sources),))
    tiny = {"num_layers": 1, "num_attention_heads": 1, "time_embed_dim": 32}
    stage1 = recipe.stage1.model_copy(update={"shape": PREVIEW, "transformer": recipe.stage1.transformer.model_copy(update=tiny)})
    last = recipe.stage2.phases[-1].model_copy(update={"shape": FULL})
    stage2 = recipe.stage2.model_copy(update={"transformer": recipe.stage2.transformer.model_copy(update=tiny), "phases": (last,)})
    evaluation = EvaluationConfig(held_out_clips=2, downscale=8.0, frame_metrics=())
    return recipe.model_copy(update={"stage1": stage1, "stage2": stage2, "evaluation": evaluation})


def moving_texture(seed: int, frames: int = 30, height: int = 96, width: int = 144) -> np.ndarray:
    """A panning window on seeded blocks and noise, uint8 T H W C."""
    draws = np.random.default_rng(seed)
    field = np.kron(draws.integers(40, 216, (40, 60, 3)), np.ones((6, 6, 1))) + draws.normal(0, 12, (240, 360, 3))
    field = field.clip(0, 255).astype(np.uint8)
    return np.stack([field[t : t + height, 2 * t : 2 * t + width] for t in range(frames)])


def make_root(folder: Path, splits: tuple[str, ...] = ("train", "val", "val")) -> Workspace:
    """Sources, one clip each with the given split, and finished reports of every job up to training."""
    sources = folder / "sources"
    for index in range(len(splits)):
        write_video(sources / f"clip{index}.mp4", moving_texture(index), 24, 4)
    workspace = Workspace(folder / "root")
    store = Store.open(workspace.store)
    rows = [
        {
            "clip_id": f"{index:032x}",
            "source_id": f"{index:032x}",
            "uri": str(sources / f"clip{index}.mp4"),
            "media_type": "video",
            "start_us": 0,
            "end_us": 1_250_000,
            "duration_s": 1.25,
            "split": split,
            "state": "kept",
            "caption": f"coloured blocks number {index} move to the left",
        }
        for index, split in enumerate(splits)
    ]
    store.upsert("clips", pa.Table.from_pylist(rows, schema=pa.schema([TABLES["clips"].field(name) for name in rows[0]])))
    store.tag("sel-test", "test")
    return workspace


def finish_training(workspace: Workspace, recipe: Recipe, stage2_seed: int = 1) -> dict[str, Report]:
    """Reports of every job before generate, and what the last three leave behind."""
    reports: dict[str, Report] = {}
    for spec in jobs_for("train_stage1", "train_stage2"):
        name = workspace.job_fingerprint(recipe, spec, reports)
        workspace.begin(spec, name)
        outputs = {"tag": "sel-test"} if spec.name == "select" else {}
        report = Report(job=spec.name, fingerprint=name, digest=f"{spec.name}-digest", outputs=outputs)
        workspace.finish(spec, report)
        reports[spec.name] = report
    clips = [moving_texture(seed)[:9, :64, :96] for seed in range(4)]
    PatchPcaAutoencoder.fit(clips).save(workspace.folder("precompute_latents", reports["precompute_latents"].fingerprint) / "vae")
    stage1 = workspace.folder("train_stage1", reports["train_stage1"].fingerprint) / "stage1"
    save_adapter(add_lora(CogVideoXTransformer(recipe.stage1.transformer), recipe.stage1.lora), stage1, recipe.stage1.lora)
    save_base(stage1, recipe.stage1.transformer, None)
    stage2 = workspace.folder("train_stage2", reports["train_stage2"].fingerprint) / "stage2"
    seeded: TransformerConfig = recipe.stage2.transformer.model_copy(update={"seed": stage2_seed})
    save_transformer(CogVideoXTransformer(seeded), stage2)
    for folder, after in ((stage1, 0.5), (stage2, 1.5)):
        (folder.parent / "validation.json").write_text(json.dumps({"before": 2.0, "after": after}))
    return reports


def context_of(name: str, workspace: Workspace, recipe: Recipe, reports: dict[str, Report]) -> JobContext:
    """What `run` of a job is given."""
    spec = job_spec(name)
    fingerprint = workspace.job_fingerprint(recipe, spec, reports)
    folder = workspace.begin(spec, fingerprint)
    return JobContext(recipe, workspace, spec, fingerprint, folder, Progress(None, name), dict(reports))
