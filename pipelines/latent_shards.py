"""Work units of precompute_latents: clips, or texts, that share one safetensors shard.

A shard is written beside and renamed, then its rows are kept as JSON beside it: the mark of a finished unit, which a
relaunch reads instead of encoding again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.revisions import revision_of
from curation.step import Lineage
from flashvideo.whole_files import writing
from pipelines.artifacts import write_atomically
from pipelines.clip_pictures import Clip, ClipPictures, Picture, PixelCache, Pixels, crop_corner, make_pictures, source_box
from pipelines.job import JobContext
from pipelines.latent_plan import (
    LatentProfile,
    Media,
    copies,
    latent_profiles,
    prefixes,
    stage1_text,
    stage2_text,
    stored_degradation,
    stored_profile,
    text_hash,
    variant_names,
    wants,
)
from pipelines.recipe import Recipe, fingerprint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flashvideo.models.text_encoder import TextEncoder
    from flashvideo.models.vae import VideoAutoencoder
    from pipelines.degraded_reads import SharedAutoencoder

VERSION = "2"
"""Bumped when equal settings make other latents or texts."""
TEXTS_PER_UNIT = 512
READERS = 2
"""Clips decoded and degraded ahead of the encoder, in threads."""


@dataclass(frozen=True)
class Unit:
    """Clips that share a shard."""

    number: int
    clips: tuple[Clip, ...]

    @property
    def shard(self) -> str:
        return f"shard-{self.number:05d}.safetensors"


def cut_units(recipe: Recipe, clips: Sequence[Clip]) -> list[Unit]:
    """Clips in order of their ids, as many to a unit as fit latents.shard_bytes."""
    units: list[Unit] = []
    group: list[Clip] = []
    filled = 0
    for clip in sorted(clips, key=lambda clip: str(clip["clip_id"])):
        size = sum(
            len(variant_names(recipe, profile)) * profile.bytes_per_tensor()
            for profile in latent_profiles(recipe)
            if wants(recipe, profile, clip)
        )
        if group and filled + size > recipe.latents.shard_bytes:
            units.append(Unit(len(units), tuple(group)))
            group, filled = [], 0
        group.append(clip)
        filled += size
    return units + ([Unit(len(units), tuple(group))] if group else [])


def latents_lineage(recipe: Recipe, vae: VideoAutoencoder) -> Lineage:
    """What makes the latents; its id is in the profile's name, so latents of other settings are other rows."""
    parameters = {
        "chunk_mode": recipe.vae.chunk_mode,
        "frame_rate_hz": recipe.latents.frame_rate_hz,
        "patches_per_clip": recipe.latents.patches_per_clip,
        "degradation": stored_degradation(recipe),
        "pictures": sorted(f"{profile.name} of {profile.picture}" for profile in latent_profiles(recipe)),
        "seed": recipe.seed,
    }
    revision = None if vae.is_stand_in or recipe.vae.weights is None else revision_of(Path(recipe.vae.weights))
    return Lineage("precompute_latents", "encode", VERSION, shown_name(vae.name, vae.is_stand_in), vae.identity, parameters, revision)


def shown_name(name: str, is_stand_in: bool) -> str:
    return f"{name} (stand-in)" if is_stand_in else name


def ahead(readers: ThreadPoolExecutor, work: Callable[[Clip], Any], clips: Sequence[Clip]) -> Iterator[tuple[Clip, Future[Any]]]:
    """(clip, its future) in order, a few clips ahead of the consumer."""
    waiting: list[tuple[Clip, Future[Any]]] = []
    for clip in clips:
        waiting.append((clip, readers.submit(work, clip)))
        if len(waiting) > READERS:
            yield waiting.pop(0)
    yield from waiting


def encode_units(
    context: JobContext, units: Sequence[Unit], vae: VideoAutoencoder, lineage: Lineage, cache: PixelCache, device: torch.device
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `latents` and of `errors`, of every unit; encodes those that have no shard yet."""
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    total = sum(len(unit.clips) for unit in units)
    done = 0
    for unit in units:
        plan = fingerprint(lineage.run_id, [(clip["clip_id"], clip["split"]) for clip in unit.clips])
        kept = finished_unit(context.folder / unit.shard, plan)
        if kept is None:
            begun = done

            def say(clips_done: int, begun: int = begun) -> None:
                context.progress.update(begun + clips_done, total, "clips", "encoding")

            read = partial(make_pictures, context.recipe, cache=cache, device=device)
            kept = encode_unit(context, unit, vae, lineage, read, say)
            write_atomically(_rows_path(context.folder / unit.shard), json.dumps({"plan": plan, **kept}))
        rows += kept["rows"]
        failures += kept["failures"]
        done += len(unit.clips)
        context.progress.update(done, total, "clips", "encoding")
    return rows, failures


def _rows_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def finished_unit(shard: Path, plan: str) -> dict[str, Any] | None:
    """What an earlier attempt kept beside a finished shard of the same plan; the rows are written last."""
    path = _rows_path(shard)
    if not path.is_file() or not shard.is_file():
        return None
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept if kept["plan"] == plan else None


def encode_unit(
    context: JobContext,
    unit: Unit,
    vae: VideoAutoencoder,
    lineage: Lineage,
    read: Callable[[Clip], ClipPictures],
    say: Callable[[int], None],
) -> dict[str, Any]:
    """Writes a unit's shard; returns its rows and failures. `read` raises MediaError."""
    from curation.video import MediaError

    shard = context.folder / unit.shard
    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    with ThreadPoolExecutor(READERS) as readers:
        for number, (clip, making) in enumerate(ahead(readers, read, unit.clips)):
            try:
                made = making.result()
            except MediaError as error:
                failures.append(_failure(clip, error.code, str(error), lineage))
                continue
            for profile, pictures in made.by_profile.items():
                rows += encode_profile(context, made, profile, pictures, vae, lineage, shard, tensors)
            say(number + 1)
    save_shard(shard, tensors)
    return {"rows": rows, "failures": failures}


def _failure(clip: Clip, code: str, message: str, lineage: Lineage) -> dict[str, Any]:
    place = {"clip_id": clip["clip_id"], "uri": clip["uri"], "job": "precompute_latents", "step": "read"}
    return place | {"code": code, "message": message, "run_id": lineage.run_id}


def encode_profile(
    context: JobContext,
    made: ClipPictures,
    profile: LatentProfile,
    pictures: Sequence[Picture],
    vae: VideoAutoencoder,
    lineage: Lineage,
    shard: Path,
    tensors: dict[str, Tensor],
) -> list[dict[str, Any]]:
    """Encodes every crop and copy of one clip for one profile into `tensors`; returns the rows."""
    recipe, clip, shape = context.recipe, made.clip, profile.shape
    stored = stored_profile(recipe, profile, lineage.run_id)
    rows = []
    for number, prefix in enumerate(prefixes(recipe, profile)):
        top, left = crop_corner(recipe, clip, profile, number) if profile.is_crop else (0, 0)
        for name, picture in zip(copies(recipe, profile), pictures, strict=True):
            latents = encode_pixels(vae, picture.pixels[:, top : top + shape.height, left : left + shape.width])
            key = f"{clip['clip_id']}/{profile.name}/{prefix}{name}"
            tensors[key] = latents
            rows.append(
                {
                    "clip_id": clip["clip_id"],
                    "profile": stored,
                    "variant": prefix + name,
                    "shard": context.workspace.relative(shard),
                    "tensor": key,
                    "shape": list(latents.shape[1:]),
                    "dtype": "bf16",
                    "frame_times_us": _times(made.times_us, profile.media, len(picture.pixels)),
                    "crop_px": source_box(clip, profile, top, left),
                    "degradation": picture.degradation,
                    "sha256": tensor_digest(latents),
                    "latents_run": lineage.run_id,
                }
            )
    return rows


def _times(times_us: Sequence[int], media: Media, num_frames: int) -> list[int]:
    """Times of the frames of a profile: the middle one for an image."""
    return [times_us[len(times_us) // 2]] if media == "image" else list(times_us[:num_frames])


def encode_pixels(vae: VideoAutoencoder | SharedAutoencoder, pixels: Pixels) -> Tensor:
    """uint8 T H W C to mean and log variance, bf16 2 T C H W on the CPU."""
    import torch

    from flashvideo.models.vae import pixels_to_video

    posterior = vae.encode(pixels_to_video(np.ascontiguousarray(pixels))[None])
    return torch.stack([posterior.mean[0], posterior.logvar[0]]).to(torch.bfloat16).cpu().contiguous()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    import torch

    return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()


def save_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, written beside and renamed."""
    from safetensors.torch import save_file

    with writing(path, flushed=True) as beside:
        save_file(dict(tensors), beside)


def training_texts(recipe: Recipe, clips: Iterable[Clip]) -> list[str]:
    """Every text that training will read, sorted."""
    texts: set[str | None] = set()
    for clip in clips:
        for profile in latent_profiles(recipe):
            if wants(recipe, profile, clip):
                texts.add(stage1_text(clip) if profile.stage == 1 else stage2_text(clip, recipe.latents, profile.media))
    return sorted(text for text in texts if text is not None)


def encode_texts(context: JobContext, clips: Sequence[Clip]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of `text_embeddings`, and the encoder's name and lineage. The encoder is loaded only when a shard is missing."""
    texts = training_texts(context.recipe, clips)
    encoder: TextEncoder | None = None
    rows: list[dict[str, Any]] = []
    facts = {"name": "none (no captions)", "run": ""}
    for number, first in enumerate(range(0, len(texts), TEXTS_PER_UNIT)):
        part = texts[first : first + TEXTS_PER_UNIT]
        shard = context.folder / f"texts-{number:05d}.safetensors"
        plan = fingerprint(VERSION, context.recipe.text_encoder, part)
        kept = finished_unit(shard, plan)
        if kept is None:
            encoder = encoder or _build_encoder(context.recipe)
            kept = {
                "plan": plan,
                "encoder": {"name": shown_name(encoder.name, encoder.is_stand_in), "run": fingerprint(encoder.name, encoder.identity)},
                "rows": encode_text_unit(context, encoder, part, shard),
            }
            write_atomically(_rows_path(shard), json.dumps(kept))
        facts = kept["encoder"]
        rows += kept["rows"]
        context.progress.update(min(first + TEXTS_PER_UNIT, len(texts)), len(texts), "texts")
    return rows, facts


def _build_encoder(recipe: Recipe) -> TextEncoder:
    from flashvideo.models.text_encoder import build_text_encoder
    from pipelines.trained_models import model_device

    return build_text_encoder(recipe.text_encoder, model_device(recipe))


def encode_text_unit(context: JobContext, encoder: TextEncoder, texts: Sequence[str], shard: Path) -> list[dict[str, Any]]:
    """Writes the embeddings of some texts; returns their rows."""
    import torch

    dtype = torch.bfloat16 if not encoder.is_stand_in else torch.float32
    run_id = fingerprint(encoder.name, encoder.identity)
    tensors: dict[str, Tensor] = {}
    rows = []
    for first in range(0, len(texts), 16):
        part = texts[first : first + 16]
        encoded = encoder.encode(part)
        for text, embedding, tokens, truncated in zip(part, encoded.embeddings, encoded.tokens, encoded.truncated, strict=True):
            key = text_hash(text)
            tensors[key] = embedding.to(dtype).cpu().contiguous().clone()
            place = {"caption_hash": key, "encoder_run": run_id, "shard": context.workspace.relative(shard), "tensor": key}
            rows.append(place | {"tokens": int(tokens), "truncated": bool(truncated)})
    save_shard(shard, tensors)
    return rows
