"""Job evaluate: held-out clips degraded and enhanced against truth, generated videos of both stages, gates.

<folder>/results.json      flashvideo.evaluation.results.Results
<folder>/pictures/*.png    input / enhanced / untrained / truth; Stage I / Stage II
<folder>/items/*.json      one a clip or video, so that a relaunch goes on where it stopped
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flashvideo.evaluation.results import (
    RESULTS_FILE,
    ClipQuality,
    DimensionScore,
    Gate,
    Picture,
    Protocol,
    QualityRow,
    Results,
    dimension_totals,
    enhancement_gates,
    learning_gates,
    mean_row,
    published_rows,
    verdict,
)
from pipelines.artifacts import Report
from pipelines.generate import read_manifest
from pipelines.job import JobContext, UserError, log, main, write_json
from pipelines.recipe import fingerprint
from pipelines.trained_models import item_seed, load_cascade, model_device, model_names, stage1_folder, stage2_folder

if TYPE_CHECKING:
    import torch

    from flashvideo.cascade import FlashVideoCascade
    from flashvideo.evaluation.video_metrics import VideoMetrics

TRUTH, CODEC, INPUT, ENHANCED, UNTRAINED = "truth", "codec", "input", "enhanced", "untrained"
KINDS = (TRUTH, CODEC, INPUT, ENHANCED, UNTRAINED)
"""Rows of a held-out clip. codec: truth through the autoencoder, the ceiling of what Stage II can reach."""
PICTURED = (INPUT, ENHANCED, UNTRAINED, TRUTH)
MAX_PICTURES = 4
"""Clips and generated videos that are pictured, each."""
Truth = Literal["held-out clips", "training clips"]


@dataclass(frozen=True)
class Tools:
    """What the measuring needs, loaded once."""

    cascade: FlashVideoCascade
    untrained: FlashVideoCascade
    metrics: VideoMetrics
    device: torch.device


def run(context: JobContext) -> Report:
    """Measures, judges, writes results.json. A gate that fails is a row, not an error."""
    recipe = context.recipe
    manifest_folder = context.workspace.folder("generate", context.upstream["generate"].fingerprint)
    videos = read_manifest(manifest_folder)["rows"]
    clips, truth = choose_clips(context)
    device = model_device(recipe)
    cascade = load_cascade(context.workspace, recipe, context.upstream, device)
    tools = Tools(cascade, untrained_cascade(cascade, context), _metrics(context, device), device)
    held_out, failed = _held_out(context, tools, clips, len(clips) + len(videos))
    generated = [_generated(context, tools, manifest_folder, row) for row in _counted(context, videos, len(clips))]
    if not held_out:
        raise UserError(f"none of {len(clips)} {truth} could be read as {recipe.stage2.phases[-1].shape.frames} frames: {failed[0]}")
    results = assemble(context, tools, held_out, generated, truth, failed)
    write_json(context.folder / RESULTS_FILE, results.model_dump(mode="json"))
    return context.report(
        fingerprint(results.model_dump(mode="json")),
        counts={"clips": len(held_out), "generated_videos": len(generated), "failed": len(failed)},
        outputs={"results": context.workspace.relative(context.folder / RESULTS_FILE)},
        models=results.models,
        headline=headline(results),
        warnings=list(results.notes),
    )


def choose_clips(context: JobContext) -> tuple[list[dict[str, Any]], Truth]:
    """Held-out kept videos long enough for the full shape, at most `evaluation.held_out_clips`, in order of clip_id.

    Training clips where nothing is held out; the protocol and a note say so. Raises UserError when there is no video.
    """
    from curation.store import Store

    recipe = context.recipe
    seconds = (recipe.stage2.phases[-1].shape.frames - 1) / recipe.latents.frame_rate_hz
    store = Store.open(context.workspace.store, create=False)
    columns = ["clip_id", "uri", "start_us", "end_us", "caption"]
    splits: tuple[tuple[str, Truth], ...] = (("val", "held-out clips"), ("train", "training clips"))
    for split, truth in splits:
        where = f"state = 'kept' and split = '{split}' and media_type = 'video' and duration_s > {seconds:g}"
        clips = store.read("clips", columns, where, tag=context.upstream["select"].outputs.get("tag")).to_pylist()
        if clips:
            return clips[: recipe.evaluation.held_out_clips], truth
    raise UserError(f"evaluate found no kept video longer than {seconds:g} s (stage2's last phase at {recipe.latents.frame_rate_hz:g} Hz)")


def untrained_cascade(cascade: FlashVideoCascade, context: JobContext) -> FlashVideoCascade:
    """The same cascade with Stage II as it was before training: the recipe's start, seeded random in debug."""
    from flashvideo.cascade import FlashVideoCascade
    from flashvideo.models.transformer import build_transformer

    stage2, recipe = cascade.stage2, context.recipe
    if stage2 is None:
        raise ValueError("the cascade has no Stage II")
    weight = next(stage2.parameters())
    fresh = build_transformer(recipe.stage2.transformer, recipe.stage2.init_weights, weight.device, weight.dtype)
    return FlashVideoCascade(
        None,
        fresh.eval().requires_grad_(False),
        cascade.vae,
        cascade.text_encoder,
        vae_config=recipe.vae,
        stage2_sampling=cascade.stage2_sampling,
        latent_degradation=cascade.latent_degradation,
    )


def _metrics(context: JobContext, device: torch.device) -> VideoMetrics:
    from flashvideo.evaluation.video_metrics import VideoMetrics

    try:
        return VideoMetrics(context.recipe.evaluation, context.recipe.latents.frame_rate_hz, device)
    except ValueError as error:
        raise UserError(f"evaluation.frame_metrics: {error}") from None


# ---- held-out clips --------------------------------------------------------------------------------------------------


def _held_out(context: JobContext, tools: Tools, clips: list[dict[str, Any]], total: int) -> tuple[list[ClipQuality], list[str]]:
    """Rows of every clip that can be read, and what went wrong with the others."""
    from curation.video import MediaError

    done: list[ClipQuality] = []
    failed: list[str] = []
    for index, clip in enumerate(clips):
        context.progress.update(index, total, "videos")
        try:
            done.append(_clip(context, tools, clip, pictured=len(done) < MAX_PICTURES))
        except MediaError as error:
            log.warning("clip %s cannot be evaluated: %s", clip["clip_id"], error)
            failed.append(f"{clip['clip_id']}: {error}")
    return done, failed


def _clip(context: JobContext, tools: Tools, clip: dict[str, Any], pictured: bool) -> ClipQuality:
    """One held-out clip: measured now, or read from an interrupted run."""
    from curation.video import read_clip

    kept = _kept_item(context.folder, clip["clip_id"])
    if kept is not None:
        return kept
    recipe = context.recipe
    shape = recipe.stage2.phases[-1].shape
    truth, _ = read_clip(
        clip["uri"], clip["start_us"], clip["end_us"], recipe.latents.frame_rate_hz, shape.frames, shape.height, shape.width
    )
    frames = enhance_truth(context, tools, clip, truth)
    reference = measure(TRUTH, truth, tools.metrics)
    rows = [reference if kind == TRUTH else measure(kind, frames[kind], tools.metrics, truth, reference.gradient) for kind in KINDS]
    if pictured:
        shown = sorted({0, shape.frames // 2, shape.frames - 1})
        _picture(context.folder, clip["clip_id"], [[frames[kind][index] for kind in PICTURED] for index in shown])
    quality = ClipQuality(item=clip["clip_id"], about=clip["caption"] or Path(clip["uri"]).name, rows=tuple(rows))
    write_json(_item_path(context.folder, clip["clip_id"]), quality.model_dump(mode="json"))
    return quality


def enhance_truth(context: JobContext, tools: Tools, clip: dict[str, Any], truth: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 T H W C of every kind. The input is truth shrunk and enlarged again, at full size already."""
    import torch

    from flashvideo.cascade import seeded
    from flashvideo.models.vae import pixels_to_video, video_to_pixels
    from flashvideo.objectives.degradation import blur_by

    recipe = context.recipe
    shape = recipe.stage2.phases[-1].shape
    seed = item_seed("evaluate", recipe.seed, recipe.evaluation.seed, clip["clip_id"])
    light = torch.from_numpy(truth).permute(0, 3, 1, 2).float() / 255
    blurred = (blur_by(light, recipe.evaluation.downscale) * 2 - 1).transpose(0, 1)[None].to(tools.device)
    prompt, motion = [clip["caption"] or ""], recipe.generate.motion
    frames = {TRUTH: truth, INPUT: video_to_pixels(blurred[0])}
    for kind, cascade in ((ENHANCED, tools.cascade), (UNTRAINED, tools.untrained)):  # one float video at a time
        frames[kind] = video_to_pixels(cascade.enhance(blurred, prompt, shape, seeded([seed]), motion)[0])
    del blurred
    posterior = tools.cascade.vae.encode(pixels_to_video(truth)[None].to(tools.device))
    frames[CODEC] = video_to_pixels(tools.cascade.vae.decode(posterior.sample(seeded([seed])))[0])
    return frames


def measure(
    name: str,
    frames: np.ndarray,
    metrics: Callable[[np.ndarray], dict[str, float]],
    truth: np.ndarray | None = None,
    truth_gradient: float | None = None,
) -> QualityRow:
    """The row of one video, uint8 T H W C. `metrics`: VideoMetrics, or others of the same shape."""
    from flashvideo.evaluation.dimensions.temporal_flickering import temporal_flickering
    from flashvideo.evaluation.frame_quality import mean_gradient_magnitude, psnr_db

    gradient = mean_gradient_magnitude(frames)
    fidelity_db = None if truth is None else psnr_db(frames, truth)
    return QualityRow(
        name=name,
        clips=1,
        metrics=metrics(frames),
        gradient=gradient,
        gradient_ratio=gradient / truth_gradient if truth_gradient else None,
        psnr_db=fidelity_db if fidelity_db is not None and math.isfinite(fidelity_db) else None,
        temporal_flickering=temporal_flickering(frames[..., ::-1]) if len(frames) > 1 else None,
    )


# ---- generated videos ------------------------------------------------------------------------------------------------


def _counted(context: JobContext, videos: list[dict[str, Any]], before: int) -> Any:
    """The videos, progress told before each and at the end."""
    for index, row in enumerate(videos):
        context.progress.update(before + index, before + len(videos), "videos")
        yield row
    context.progress.update(before + len(videos), before + len(videos), "videos")


def _generated(context: JobContext, tools: Tools, folder: Path, row: dict[str, Any]) -> ClipQuality:
    """One generated video, read back from its files: Stage I enlarged to Stage II's size, and Stage II."""
    from flashvideo.cascade import enlarge
    from flashvideo.models.vae import pixels_to_video, video_to_pixels
    from flashvideo.video_files import read_video

    name = Path(row["stage2"]).name.removesuffix(".stage2.mp4")
    kept = _kept_item(context.folder, name)
    if kept is not None:
        return kept
    large, _ = read_video(folder / row["stage2"])
    small, _ = read_video(folder / row["stage1"])
    upsampled = video_to_pixels(enlarge(pixels_to_video(small)[None], *large.shape[1:3])[0])
    rows = (measure("stage1", upsampled, tools.metrics), _stage2_row(large, folder / row["stage2"], tools))
    shown = sorted({0, len(large) // 2, len(large) - 1})
    _picture(context.folder, name, [[clip[index] for index in shown] for clip in (upsampled, large)])
    quality = ClipQuality(item=row["prompt"], about=name, rows=rows)
    write_json(_item_path(context.folder, name), quality.model_dump(mode="json"))
    return quality


def _stage2_row(frames: np.ndarray, path: Path, tools: Tools) -> QualityRow:
    """As `measure`, with the flickering of the file as VBench reads it."""
    from flashvideo.evaluation.dimensions.temporal_flickering import temporal_flickering_of_file

    score = temporal_flickering_of_file(path) if len(frames) > 1 else None
    return measure("stage2", frames, tools.metrics).model_copy(update={"temporal_flickering": score})


# ---- the result ------------------------------------------------------------------------------------------------------


def assemble(
    context: JobContext, tools: Tools, held_out: list[ClipQuality], generated: list[ClipQuality], truth: Truth, failed: list[str]
) -> Results:
    """Means, gates, totals, pictures and the protocol in one object."""
    means = _means(held_out, KINDS, TRUTH)
    stages = _means(generated, ("stage1", "stage2"), None) if generated else {}
    gates = (*enhancement_gates(means, context.recipe.evaluation), *_learning(context))
    dimensions = _dimensions(stages)
    notes = [f"{len(failed)} clips could not be evaluated, the first: {failed[0]}"] if failed else []
    if truth == "training clips":
        notes.append("nothing is held out: the clips measured against truth are training clips")
    if context.recipe.evaluation.vbench_data is None:
        notes.append("evaluation.vbench_data is not set: VBench's own prompts and the dimensions that need them are left out")
    return Results(
        protocol=protocol(context, tools, truth),
        held_out=tuple(means.values()),
        held_out_clips=tuple(held_out),
        generated=tuple(stages.values()),
        generated_videos=tuple(generated),
        dimensions=dimensions,
        totals=dict(dimension_totals(dimensions).__dict__),
        gates=gates,
        verdict=verdict(gates),
        pictures=_pictures(context, held_out, generated),
        models=model_names(tools.cascade, context.recipe, context.workspace, context.upstream) | tools.metrics.versions,
        published=published_rows(),
        notes=tuple(notes),
    )


def _means(clips: list[ClipQuality], names: tuple[str, ...], truth: str | None) -> dict[str, QualityRow]:
    by_name = {name: [row for clip in clips for row in clip.rows if row.name == name] for name in names}
    reference = mean_row(truth, by_name[truth]).gradient if truth is not None else None
    return {name: mean_row(name, rows, None if name == truth else reference) for name, rows in by_name.items()}


def _dimensions(stages: dict[str, QualityRow]) -> tuple[DimensionScore, ...]:
    stage2 = stages.get("stage2")
    if stage2 is None or stage2.temporal_flickering is None:
        return ()
    note = "all videos; the protocol scores static ones only"
    return (DimensionScore(dimension="temporal_flickering", score=stage2.temporal_flickering, videos=stage2.clips, note=note),)


def _learning(context: JobContext) -> list[Gate]:
    """Gates of the two validation losses, from the training jobs' validation.json."""
    workspace, reports = context.workspace, context.upstream
    files = [folder.parent / "validation.json" for folder in (stage1_folder(workspace, reports), stage2_folder(workspace, reports))]
    return learning_gates(*(json.loads(file.read_text()) if file.is_file() else None for file in files))


def protocol(context: JobContext, tools: Tools, truth: Truth) -> Protocol:
    """How the numbers were made."""
    from flashvideo.evaluation import frame_quality
    from flashvideo.evaluation.dimensions import temporal_flickering

    recipe = context.recipe
    shape, sampling = recipe.stage2.phases[-1].shape, recipe.generate.stage2
    return Protocol(
        metrics=tools.metrics.versions
        | {
            "gradient": f"mean luma gradient magnitude, definition {frame_quality.GRADIENT_VERSION}",
            "psnr_db": "one mean squared error over the clip's frames, peak 255",
            "temporal_flickering": temporal_flickering.VERSION,
        },
        frame_stride=recipe.evaluation.frame_stride,
        upsampling="Stage I's frames are enlarged to Stage II's size (bilinear, antialiased) before they are scored",
        degradation=(
            f"Truth is shrunk by {recipe.evaluation.downscale:g} and enlarged again (bilinear, antialiased), then enhanced in "
            f"{sampling.num_steps} steps"
        ),
        truth=truth,
        shape=(shape.frames, shape.height, shape.width),
        frame_rate_hz=recipe.latents.frame_rate_hz,
        sampling=sampling.model_dump(),
        seeds={"recipe": recipe.seed, "generate": recipe.generate.seed, "evaluate": recipe.evaluation.seed},
    ).sealed()


def headline(results: Results) -> dict[str, Any]:
    """What the run ends with."""
    rows = {row.name: row for row in results.held_out}
    lines: dict[str, Any] = {
        "sharpness over truth's": _across(rows, (INPUT, ENHANCED, UNTRAINED), "gradient_ratio", "{:.2f}"),
        "PSNR to truth, dB": _across(rows, (INPUT, ENHANCED, UNTRAINED), "psnr_db", "{:.1f}"),
    }
    for metric in rows[TRUTH].metrics:
        lines[metric] = ", ".join(f"{name} {rows[name].metrics[metric]:.1f}" for name in (INPUT, ENHANCED, UNTRAINED, TRUTH))
    for gate in results.gates:
        if gate.name.startswith("fall of"):
            lines[f"{gate.subject}: {gate.name}"] = "not recorded" if gate.value is None else f"{100 * gate.value:.0f} % ({gate.limits})"
    for dimension in results.dimensions:
        lines[f"VBench {dimension.dimension}"] = f"{100 * dimension.score:.2f} % ({dimension.note})"
    lines["gates"] = results.verdict
    return lines


def _across(rows: dict[str, QualityRow], names: tuple[str, ...], field: str, style: str) -> str:
    return ", ".join(f"{name} {style.format(getattr(rows[name], field))}" for name in names)


# ---- files -----------------------------------------------------------------------------------------------------------


def _picture(folder: Path, name: str, rows: list[list[np.ndarray]]) -> None:
    from flashvideo.video_files import grid, write_picture

    write_picture(folder / "pictures" / f"{name}.png", grid(rows))


def _pictures(context: JobContext, held_out: list[ClipQuality], generated: list[ClipQuality]) -> tuple[Picture, ...]:
    """Entries for the pictures that were drawn."""
    frames = context.recipe.stage2.phases[-1].shape.frames
    shown = tuple(f"frame {index}" for index in sorted({0, frames // 2, frames - 1}))
    entries = [
        Picture(file=f"pictures/{clip.item}.png", title=f"Held out: {clip.about}", columns=PICTURED, rows=shown) for clip in held_out
    ]
    entries += [
        Picture(file=f"pictures/{clip.about}.png", title=f"Generated: {clip.item}", columns=shown, rows=("Stage I, enlarged", "Stage II"))
        for clip in generated[:MAX_PICTURES]
    ]
    return tuple(entry for entry in entries if (context.folder / entry.file).is_file())


def _item_path(folder: Path, name: str) -> Path:
    path = folder / "items" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    return path


def _kept_item(folder: Path, name: str) -> ClipQuality | None:
    path = _item_path(folder, name)
    return ClipQuality.model_validate_json(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    main("evaluate", run)
