"""Job generate: prompts -> Stage I previews -> Stage II videos, with a side-by-side of both.

    <folder>/manifest.json     one row a finished prompt, rewritten after each
    <folder>/videos/<name>.stage1.mp4, .stage2.mp4, .beside.mp4, .beside.png; .smooth.mp4 where frames are interpolated
    <folder>/../previews/      Stage I's videos in fp32: a changed Stage II enhances them, and does not sample them again

A relaunch skips finished prompts. A prompt's seed follows from (recipe seed, generate seed, prompt), so adding a
prompt changes no other video. With several workers, prompts are spread over Ray (`spread_workers`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipelines.artifacts import Report, Workspace
from pipelines.executor import WorkerDied, Workers, map_tasks
from pipelines.job import JobContext, UserError, log, main, write_json
from pipelines.recipe import Recipe, fingerprint
from pipelines.trained_models import item_seed, load_cascade, model_device, model_names

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prompts:
    """What is generated."""

    texts: tuple[str, ...]
    origin: str
    """recipe | captions of held-out clips | captions of training clips."""


def run(context: JobContext) -> Report:
    """Generates every prompt that the manifest lacks. Raises UserError for shapes that do not fit or without prompts."""
    _check_shapes(context)
    _check_interpolation(context.recipe)
    prompts = choose_prompts(context)
    rows = _finished(context.folder, prompts, context)
    skipped = len(rows)
    todo = [text for text in prompts.texts if text not in rows]
    models = _known_models(context.folder)
    if todo:
        long = rewritten_prompts(todo, context)
        build = partial(PromptWorker, context.recipe, context.workspace.root, context.folder, context.upstream)
        workers = spread_workers(context.recipe, len(todo))
        context.progress.update(len(rows), len(prompts.texts), "prompts", f"{workers.count} workers ({workers.backend})")
        for index, result in spread(build, [(text, long[text]) for text in todo], workers):
            if isinstance(result, WorkerDied):
                raise RuntimeError(f"prompt {todo[index]!r}: {result.message}")
            rows[todo[index]], models = result
            _write_manifest(context.folder, prompts, rows, models)
            context.progress.update(len(rows), len(prompts.texts), "prompts", todo[index][:60])
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


def rewritten_prompts(texts: Sequence[str], context: JobContext) -> dict[str, str]:
    """Prompt -> what is sampled: the language model's caption where the recipe asks for one, else the prompt.

    Answers are kept in the folder, so a relaunch samples the same captions. Raises UserError when the server fails.
    """
    config = context.recipe.generate.rewriting
    if config is None:
        return {text: text for text in texts}
    from flashvideo.prompt_rewriting import PromptRewriteError, PromptRewriter

    path = context.folder / "rewritten.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    try:
        rewriter = PromptRewriter(config)
        for text in texts:
            if text not in known:
                [known[text]] = rewriter([text])
                write_json(path, known)
    except PromptRewriteError as error:
        raise UserError(f"generate.rewriting: {error}") from None
    return {text: known[text] for text in texts}


MANY_PROMPTS = 8
"""On CPUs, so many prompts and more are spread over workers: fewer are done before the workers have imported torch."""


def spread_workers(recipe: Recipe, items: int) -> Workers:
    """Where sampling runs: Ray workers where there are several and they help (own GPUs, or many items), else this process."""
    gpus = recipe.runtime.gpus_per_model_worker
    helps = min(recipe.runtime.workers, items) > 1 and (gpus > 0 or items >= MANY_PROMPTS)
    if recipe.runtime.backend == "ray" and helps:
        return Workers.of(recipe.runtime, gpus, recipe.runtime.worker_memory_bytes)
    return Workers("local", 1)


def spread(
    build: Callable[[], Callable[[Item], Result]], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[int, Result | WorkerDied]]:
    """(index, result) of every item as they finish; one worker is this process itself, with its threads and errors."""
    if workers.count > 1:
        yield from map_tasks(build, items, workers)
    elif items:
        worker = build()
        for index, item in enumerate(items):
            yield index, worker(item)


class PromptWorker:
    """Holds the cascade in one worker and makes one prompt's files at a time."""

    def __init__(self, recipe: Recipe, root: Path, folder: Path, reports: dict[str, Report]) -> None:
        from flashvideo.sampling.interpolation import build_interpolator

        self._recipe, self._folder, self._reports = recipe, folder, reports
        self._workspace = Workspace(root)
        device = model_device(recipe)
        config = recipe.generate
        self._interpolator = build_interpolator(config.interpolation, config.interpolation_weights, device)
        self._cascade = load_cascade(self._workspace, recipe, reports, device)
        self._models = model_names(self._cascade, recipe, self._workspace, reports)
        self._models["interpolation"] = self._interpolator.name if self._interpolator is not None else "none"

    def __call__(self, item: tuple[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
        """(prompt, what is sampled) -> its row of the manifest, and the names of the models."""
        from flashvideo.cascade import enlarge, seeded
        from flashvideo.models.vae import video_to_pixels
        from flashvideo.video_files import beside, frames_digest, write_picture, write_video

        prompt, text = item
        recipe, shape = self._recipe, self._recipe.stage2.phases[-1].shape
        seed = prompt_seed(recipe, prompt)
        preview = self._preview(text, seed)
        enhance_seed = item_seed("generate enhance", seed)
        video = self._cascade.enhance(preview, [text], shape, seeded([enhance_seed]), recipe.generate.motion)
        upsampled = video_to_pixels(enlarge(preview.float(), shape.height, shape.width)[0])
        small, large = video_to_pixels(preview[0]), video_to_pixels(video[0])
        name = prompt_name(prompt, seed)
        rate, crf = recipe.latents.frame_rate_hz, recipe.generate.video_quality_crf
        both = beside([upsampled, large])
        files = {kind: f"videos/{name}.{kind}.mp4" for kind in ("stage1", "stage2", "beside")}
        for kind, frames in (("stage1", small), ("stage2", large), ("beside", both)):
            write_video(self._folder / files[kind], frames, rate, crf)
        files["picture"] = f"videos/{name}.beside.png"
        write_picture(self._folder / files["picture"], both[len(both) // 2])
        row = {
            "prompt": prompt,
            "sampled_prompt": text,
            "seed": seed,
            "enhance_seed": enhance_seed,
            "video_quality_crf": crf,
            **files,
            "frames": len(large),
            "frame_rate_hz": rate,
            "stage1_size_px": [small.shape[2], small.shape[1]],
            "stage2_size_px": [large.shape[2], large.shape[1]],
            "stage1_pixels": frames_digest(small),
            "stage2_pixels": frames_digest(large),
        }
        return row | self._smooth(name, large), self._models

    def _preview(self, text: str, seed: int) -> Tensor:
        """Stage I's video, B C T H W: a kept one where everything that makes it is the same."""
        from flashvideo.cascade import load_previews, save_previews, seeded

        recipe, shape = self._recipe, self._recipe.stage1.shape
        path = preview_path(recipe, self._folder, self._reports, text, seed)
        if not path.is_file():
            save_previews(path, self._cascade.preview([text], shape, seeded([seed])), [text], [seed])
        return load_previews(path).video

    def _smooth(self, name: str, frames: np.ndarray) -> dict[str, Any]:
        """The interpolated file's part of the row; says "none" where frames are as sampled."""
        from flashvideo.sampling.interpolation import interpolate
        from flashvideo.video_files import write_video

        if self._interpolator is None:
            return {"interpolation": "none"}
        config, rate = self._recipe.generate, self._recipe.latents.frame_rate_hz
        smooth = interpolate(frames, self._interpolator, config.interpolation_factor)
        file = f"videos/{name}.smooth.mp4"
        write_video(self._folder / file, smooth, rate * config.interpolation_factor, config.video_quality_crf)
        return {"interpolation": self._interpolator.name, "smooth": file, "smooth_frames": len(smooth)}


def preview_path(recipe: Recipe, folder: Path, reports: Mapping[str, Report], text: str, seed: int) -> Path:
    """Where Stage I's fp32 video of a prompt is kept; its name holds everything that makes it."""
    facts = (recipe.generate.stage1, recipe.stage1.objective, recipe.text_encoder, recipe.vae, recipe.stage1.shape)
    digests = [reports[job].digest for job in ("train_stage1", "precompute_latents")]
    key = fingerprint(*facts, *digests, text, seed, recipe.runtime.gpus_per_model_worker > 0)
    return folder.parent / "previews" / f"{key}.safetensors"


def prompt_seed(recipe: Recipe, prompt: str) -> int:
    """The seed of one prompt's preview; its enhancement's follows from it."""
    return item_seed("generate", recipe.seed, recipe.generate.seed, prompt)


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
        files = [folder / row[kind] for kind in ("stage1", "stage2", "beside", "picture", "smooth") if kind in row]
        if (
            row["prompt"] in prompts.texts
            and row["seed"] == prompt_seed(context.recipe, row["prompt"])
            and all(file.is_file() for file in files)
        ):
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


def _check_interpolation(recipe: Recipe) -> None:
    """A user's mistake is said here, before workers start."""
    config = recipe.generate
    if config.interpolation == "rife" and (config.interpolation_weights is None or not Path(config.interpolation_weights).is_file()):
        raise UserError(
            f"generate.interpolation is rife, but generate.interpolation_weights is {config.interpolation_weights}; name RIFE 4.6's "
            "flownet.pkl, or choose dis"
        )


if __name__ == "__main__":
    main("generate", run)
