"""Job precompute_latents: encodes the kept clips and their captions once, for all of training.

A work unit is a group of clips and makes one shard: every profile, crop and degraded copy that the recipe's training
will read of them (pipelines/latent_plan.py). Shards are written beside and renamed, so a relaunch goes on with the
units that are missing; the store is written once, at the end.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curation.schema import LATENTS, TEXT_EMBEDDINGS
from curation.store import Store
from pipelines.artifacts import Report
from pipelines.clip_pictures import Clip, Pixels, cover, read_picture
from pipelines.job import JobContext, UserError, log, main
from pipelines.latent_plan import latent_profiles, variant_names, wants
from pipelines.latent_shards import READERS, ahead, cut_units, encode_texts, encode_units, latents_lineage, shown_name
from pipelines.recipe import Recipe, fingerprint

if TYPE_CHECKING:
    from flashvideo.models.vae import VideoAutoencoder

CLIP_COLUMNS = (
    "clip_id", "uri", "start_us", "end_us", "media_type", "split", "subsets", "caption", "width", "height", "motion_raft", "motion_proxy",
)  # fmt: skip
FIT_CLIPS = 96
"""Training clips that the stand-in autoencoder is fitted on, at most."""
PSNR_CLIPS = 4


def run(context: JobContext) -> Report:
    """Fits or loads the autoencoder, encodes what is missing, writes the tables. Raises UserError where nothing can be trained."""

    from flashvideo.models.vae import model_input_scale
    from pipelines.trained_models import model_device

    begin = time.monotonic()
    recipe, store = context.recipe, Store.open(context.workspace.store, create=False)
    tag = context.upstream["select"].outputs["tag"]
    clips = store.read("clips", CLIP_COLUMNS, "state = 'kept'", tag=tag).to_pylist()
    device = model_device(recipe)
    check_plan(recipe, clips, context.folder)
    cache: dict[str, tuple[Pixels, list[int]]] = {}
    vae = ready_autoencoder(recipe, clips, context.folder / "vae", device, cache)
    lineage = latents_lineage(recipe, vae)
    units = cut_units(recipe, [clip for clip in clips if any(wants(recipe, profile, clip) for profile in latent_profiles(recipe))])
    rows, failures = encode_units(context, units, vae, lineage, cache, device)
    if failures and len(failures) > recipe.curation.max_failed_share * len(clips):
        raise RuntimeError(f"{len(failures)} of {len(clips)} kept clips could not be read; the first: {failures[0]['message']}")
    texts, encoder = encode_texts(context, clips)
    psnr = codec_psnr(recipe, clips, vae, cache)
    store.upsert("latents", pa.Table.from_pylist(rows, schema=LATENTS))
    store.upsert("text_embeddings", pa.Table.from_pylist(texts, schema=TEXT_EMBEDDINGS))
    store.resolve_errors("precompute_latents")
    store.append_errors(failures)
    seconds, failed = time.monotonic() - begin, len(failures)
    store.register_run(lineage, str(device), seconds, len(clips), len(clips) - failed, failed, "latents")
    scales = {f"scale_stage{stage}": model_input_scale(recipe.vae, vae, stage) for stage in (1, 2)}
    stored = sum(path.stat().st_size for path in context.folder.glob("*.safetensors"))
    return context.report(
        content_digest(rows, texts, clips, vae.identity, scales),
        counts={"clips": len(clips) - len(failures), "failed": len(failures), "latents": len(rows), "texts": len(texts)},
        outputs={"vae": context.workspace.relative(context.folder / "vae"), "shards": context.workspace.relative(context.folder)},
        models={"vae": shown_name(vae.name, vae.is_stand_in), "text_encoder": encoder["name"]},
        headline={
            "bytes": stored,
            "latent_std": vae.latent_std,
            "codec_psnr_db": psnr,
            "latents_run": lineage.run_id,
            "encoder_run": encoder["run"],
            **scales,
        },
        warnings=[f"{len(failures)} kept clips could not be read (table errors)"] if failures else [],
    )


def check_plan(recipe: Recipe, clips: Sequence[Clip], folder: Path) -> None:
    """Logs what will be written, and raises UserError when it does not fit on the disk, no profile has a clip or an encoder is missing."""
    from flashvideo.objectives.degradation import DegradationError, check_encoders

    if recipe.stage2.pixel_degradation.enabled:
        try:
            check_encoders(recipe.stage2.pixel_degradation.video_codecs)
        except DegradationError as error:
            raise UserError(str(error)) from None
    sizes: dict[str, tuple[int, int]] = {}
    for profile in latent_profiles(recipe):
        tensors = sum(len(variant_names(recipe, profile)) for clip in clips if wants(recipe, profile, clip))
        sizes[profile.name] = (tensors, tensors * profile.bytes_per_tensor())
        if not any(wants(recipe, profile, clip) and clip["split"] == "train" for clip in clips):
            raise UserError(
                f"training reads {profile.name}, but none of the {len(clips)} kept clips is a training {profile.media}; add sources, relax "
                f"curation.policy, or take the {profile.media}s out of the phases"
                + ("; or set latents.video_frames_as_images=true" if profile.media == "image" else "")
            )
    total = sum(size for _, size in sizes.values())
    for name, (tensors, size) in sizes.items():
        log.info("plan: %s: %d tensors, %.1f MB", name, tensors, size / 1e6)
    log.info("plan: %d clips, %.1f MB of latents", len(clips), total / 1e6)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"the latents need {total / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; make room or choose another --root"
        )


def ready_autoencoder(recipe: Recipe, clips: Sequence[Clip], folder: Path, device: Any, cache: dict[str, Any]) -> VideoAutoencoder:
    """The VAE's weights, or the stand-in: fitted on the run's training clips once, then read back.

    The clips that were decoded for the fit stay in `cache`.
    """
    from flashvideo.models.vae import PatchPcaAutoencoder, load_autoencoder

    if (folder / "config.json").is_file() or (folder / "pointer.json").is_file():
        return load_autoencoder(folder, recipe.vae, device)
    if recipe.vae.kind == "patch_pca":
        fitted = PatchPcaAutoencoder.fit(_fit_clips(recipe, clips, cache))
        fitted.save(folder)
        return load_autoencoder(folder, recipe.vae, device)
    if recipe.vae.weights is None:
        raise UserError(
            "vae.weights is not set; it names the folder of AutoencoderKLCogVideoX (config.json and weights), or vae.kind=patch_pca"
        )
    vae = load_autoencoder(recipe.vae.weights, recipe.vae, device)
    vae.save(folder)
    return vae


def _fit_clips(recipe: Recipe, clips: Sequence[Clip], cache: dict[str, Any]) -> Iterator[Pixels]:
    """Training videos in an order that mixes the sources; clips that cannot be read are left to the encoding to report."""
    from curation.video import MediaError

    videos = [clip for clip in clips if clip["split"] == "train" and clip["media_type"] == "video"]
    videos.sort(key=lambda clip: hashlib.sha256(str(clip["clip_id"]).encode()).hexdigest())
    with ThreadPoolExecutor(READERS) as readers:
        for clip, reading in ahead(readers, partial(read_picture, recipe, cache={}), videos[:FIT_CLIPS]):
            try:
                cache[clip["clip_id"]] = reading.result()
            except MediaError:
                continue
            yield cache[clip["clip_id"]][0]


def codec_psnr(recipe: Recipe, clips: Sequence[Clip], vae: VideoAutoencoder, cache: Mapping[str, Any]) -> float | None:
    """dB of decode(encode(x)) against x on a few held-out videos (training ones where none is held out)."""
    import torch

    from curation.video import MediaError
    from flashvideo.models.vae import pixels_to_video

    videos = [clip for clip in clips if clip["media_type"] == "video"]
    chosen = ([clip for clip in videos if clip["split"] == "val"] or videos)[:PSNR_CLIPS]
    shape = recipe.stage2.phases[-1].shape if vae.is_stand_in else recipe.stage1.shape
    errors = []
    for clip in chosen:
        try:
            pixels, _ = read_picture(recipe, clip, cache)
        except MediaError:
            continue
        video = pixels_to_video(cover(pixels[: shape.frames], shape.height, shape.width))[None]
        decoded = vae.decode(vae.encode(video).mean).clamp(-1, 1).cpu()
        errors.append((decoded - video).square().mean() / 4)
    return round(-10 * math.log10(torch.stack(errors).mean().item()), 2) if errors else None


def content_digest(
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[Mapping[str, Any]],
    clips: Sequence[Clip],
    vae_identity: str,
    scales: Mapping[str, float],
) -> str:
    """Hash of what training reads: tensors, texts, and each clip's split, subsets and words."""
    return fingerprint(
        sorted((row["clip_id"], row["profile"], row["variant"], row["sha256"]) for row in rows),
        sorted((row["caption_hash"], row["encoder_run"]) for row in texts),
        sorted(
            (
                clip["clip_id"],
                clip["split"],
                sorted(clip["subsets"] or []),
                clip["caption"] or "",
                clip["motion_raft"],
                clip["motion_proxy"],
            )
            for clip in clips
        ),
        vae_identity,
        scales,
    )


if __name__ == "__main__":
    main("precompute_latents", run)
