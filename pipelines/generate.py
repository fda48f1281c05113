"""Job generate: prompts -> Stage I previews -> Stage II videos, with a side-by-side of both.

    <folder>/manifest.json     one row a finished prompt, rewritten after each
    <folder>/videos/<name>.stage1.mp4, .stage2.mp4, .beside.mp4, .beside.png

A relaunch skips finished prompts. A prompt's seed follows from (recipe seed, generate seed, prompt), so adding a
prompt changes no other video.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artifacts import Report
from pipelines.job import JobContext, UserError, log, main, write_json
from pipelines.recipe import fingerprint
from pipelines.trained_models import item_seed, load_cascade, model_device, model_names

if TYPE_CHECKING:
    from flashvideo.cascade import FlashVideoCascade

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Prompts:
    """What is generated."""

    texts: tuple[str, ...]
    origin: str
    """recipe | captions of held-out clips | captions of training clips."""


def run(context: JobContext) -> Report:
    """Generates every prompt that the manifest lacks. Raises UserError for shapes that do not fit or without prompts."""
    _check_shapes(context)
    prompts = choose_prompts(context)
    rows = _finished(context.folder, prompts, context)
    skipped = len(rows)
    todo = [text for text in prompts.texts if text not in rows]
    models = _known_models(context.folder)
    if todo:
        device = model_device(context.recipe)
        cascade = load_cascade(context.workspace, context.recipe, context.upstream, device)
        models = model_names(cascade, context.recipe, context.workspace, context.upstream)
        for text in todo:
            context.progress.update(len(rows), len(prompts.texts), "prompts", text[:60])
            rows[text] = generate_one(cascade, text, context)
            _write_manifest(context.folder, prompts, rows, models)
    ordered = [rows[text] for text in prompts.texts]
    context.progress.update(len(ordered), len(ordered), "prompts")
    warnings = ["no clip is held out, so the prompts are captions of training clips"] if "training" in prompts.origin else []
    return context.report(
        fingerprint(ordered),
        counts={"prompts": len(ordered), "generated": len(todo), "skipped": skipped},
        outputs={"manifest": context.workspace.relative(context.folder / MANIFEST)},
        models=models,
        headline={"videos_generated": len(ordered)},
        warnings=warnings,
    )


def choose_prompts(context: JobContext) -> Prompts:
    """The recipe's prompts, or captions of held-out clips (of training clips where none is held out), each once."""
    config = context.recipe.generate
    if config.prompts:
        return Prompts(tuple(dict.fromkeys(config.prompts))[: config.num_prompts], "recipe")
    from curation.store import Store

    store = Store.open(context.workspace.store, create=False)
    tag = context.upstream["select"].outputs.get("tag")
    for split, origin in (("val", "captions of held-out clips"), ("train", "captions of training clips")):
        clips = store.read("clips", ["clip_id", "caption"], f"state = 'kept' and split = '{split}' and caption is not null", tag=tag)
        texts = tuple(dict.fromkeys(clips["caption"].to_pylist()))[: config.num_prompts]
        if texts:
            return Prompts(texts, origin)
    raise UserError("generate has no prompt: no kept clip has a caption; give some with --set 'generate.prompts=[a red fox]'")


def generate_one(cascade: FlashVideoCascade, prompt: str, context: JobContext) -> dict[str, Any]:
    """Both stages of one prompt, written; returns its row of the manifest."""
    from flashvideo.cascade import enlarge, seeded
    from flashvideo.models.vae import video_to_pixels
    from flashvideo.video_files import beside, frames_digest, write_picture, write_video

    recipe = context.recipe
    shape = recipe.stage2.phases[-1].shape
    seed = prompt_seed(context, prompt)
    preview, video = cascade([prompt], recipe.stage1.shape, shape, seeded([seed]), recipe.generate.motion)
    upsampled = video_to_pixels(enlarge(preview.float(), shape.height, shape.width)[0])
    small, large = video_to_pixels(preview[0]), video_to_pixels(video[0])
    name = prompt_name(prompt, seed)
    rate, crf = recipe.latents.frame_rate_hz, recipe.generate.video_quality_crf
    both = beside([upsampled, large])
    files = {kind: f"videos/{name}.{kind}.mp4" for kind in ("stage1", "stage2", "beside")}
    for kind, frames in (("stage1", small), ("stage2", large), ("beside", both)):
        write_video(context.folder / files[kind], frames, rate, crf)
    picture = f"videos/{name}.beside.png"
    write_picture(context.folder / picture, both[len(both) // 2])
    return {
        "prompt": prompt,
        "seed": seed,
        **files,
        "picture": picture,
        "frames": len(large),
        "frame_rate_hz": rate,
        "stage1_size_px": [small.shape[2], small.shape[1]],
        "stage2_size_px": [large.shape[2], large.shape[1]],
        "stage1_pixels": frames_digest(small),
        "stage2_pixels": frames_digest(large),
    }


def prompt_seed(context: JobContext, prompt: str) -> int:
    """The seed of one prompt's video."""
    return item_seed("generate", context.recipe.seed, context.recipe.generate.seed, prompt)


def prompt_name(prompt: str, seed: int) -> str:
    """A file name for a prompt: its first words and a hash of prompt and seed."""
    words = "".join(letter if letter.isalnum() else " " for letter in prompt.lower()).split()
    return "-".join([*words[:5], hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()[:8]])[:80]


def read_manifest(folder: Path) -> dict[str, Any]:
    """prompts_from, models and rows of a generate folder; empty where nothing is finished."""
    path = folder / MANIFEST
    if not path.is_file():
        return {"prompts_from": "", "models": {}, "rows": []}
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def _write_manifest(folder: Path, prompts: Prompts, rows: dict[str, dict[str, Any]], models: dict[str, str]) -> None:
    done = [rows[text] for text in prompts.texts if text in rows]
    write_json(folder / MANIFEST, {"prompts_from": prompts.origin, "models": models, "rows": done})


def _finished(folder: Path, prompts: Prompts, context: JobContext) -> dict[str, dict[str, Any]]:
    """Rows of an interrupted run that still hold: wanted prompt, same seed, every file there."""
    rows: dict[str, dict[str, Any]] = {}
    for row in read_manifest(folder)["rows"]:
        files = [folder / row[kind] for kind in ("stage1", "stage2", "beside", "picture")]
        if row["prompt"] in prompts.texts and row["seed"] == prompt_seed(context, row["prompt"]) and all(file.is_file() for file in files):
            rows[row["prompt"]] = row
    if rows:
        log.info("generate: %d of %d prompts were finished before", len(rows), len(prompts.texts))
    return rows


def _known_models(folder: Path) -> dict[str, str]:
    models: dict[str, str] = read_manifest(folder)["models"]
    return models


def _check_shapes(context: JobContext) -> None:
    preview, full = context.recipe.stage1.shape, context.recipe.stage2.phases[-1].shape
    if preview.frames != full.frames:
        raise UserError(
            f"Stage I makes {preview.frames} frames (stage1.shape) and Stage II's last phase takes {full.frames} "
            f"(stage2.phases.{len(context.recipe.stage2.phases) - 1}.shape); generate needs them equal"
        )


if __name__ == "__main__":
    main("generate", run)
