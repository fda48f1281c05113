"""What training will read of the latents and texts: a pure function of the recipe. Light."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flashvideo.config import FrameShape, LatentsConfig
from pipelines.recipe import Recipe

Media = Literal["image", "video"]

MOTION_WORDS = ("very low", "low", "medium", "high", "very high")
"""code: Stage II's captions begin with one of these."""


@dataclass(frozen=True)
class LatentProfile:
    """Latents of one kind: which picture, at which size, degraded or not."""

    stage: int
    media: Media
    shape: FrameShape
    picture: FrameShape
    """Size at which the clip is read; larger than `shape` where that is a crop at native scale."""
    strength: float | None
    """Of DEG_pixel; None: clean only."""
    held_out: bool
    """Also made of the held-out clips: validation reads it."""

    @property
    def name(self) -> str:
        """E.g. stage2/video/9x64x112."""
        size = f"{self.shape.frames}x{self.shape.height}x{self.shape.width}"
        return f"stage{self.stage}/{self.media}/{size}" + ("" if self.strength in (None, 1.0) else f"/strength{self.strength:g}")

    @property
    def is_crop(self) -> bool:
        return (self.shape.height, self.shape.width) != (self.picture.height, self.picture.width)

    def bytes_per_tensor(self) -> int:
        """Mean and log variance, 16 channels, bf16."""
        frames, height, width = self.shape.latent_shape
        return 2 * 16 * frames * height * width * 2


def stage1_profile(recipe: Recipe) -> LatentProfile:
    """Stage I's clean videos at 270p, the whole picture."""
    return LatentProfile(1, "video", recipe.stage1.shape, recipe.stage1.shape, None, held_out=True)


def phase_profile(recipe: Recipe, index: int, media: Media) -> LatentProfile:
    """What a phase of Stage II reads of one kind: the picture of the largest phase, or crops of it."""
    phase = recipe.stage2.phases[index]
    largest = max((entry.shape for entry in recipe.stage2.phases), key=lambda shape: shape.height * shape.width)
    frames = phase.shape.frames if media == "video" else 1
    shape = phase.shape.model_copy(update={"frames": frames})
    picture = largest.model_copy(update={"frames": frames})
    strength = recipe.stage2.pixel_degradation.strength * phase.degradation_strength
    return LatentProfile(2, media, shape, picture, strength, held_out=media == held_out_media(recipe) and _is_last(recipe, phase.shape))


def held_out_media(recipe: Recipe) -> Media:
    """What Stage II is validated on: the last phase's videos (images, where it has none)."""
    return "video" if recipe.stage2.phases[-1].videos else "image"


def _is_last(recipe: Recipe, shape: FrameShape) -> bool:
    return shape == recipe.stage2.phases[-1].shape


def latent_profiles(recipe: Recipe) -> tuple[LatentProfile, ...]:
    """Every profile that the recipe's training reads, each once."""
    profiles = [stage1_profile(recipe)]
    for index, phase in enumerate(recipe.stage2.phases):
        if phase.images:
            profiles.append(phase_profile(recipe, index, "image"))
        if phase.videos:
            profiles.append(phase_profile(recipe, index, "video"))
    return tuple(dict.fromkeys(profiles))


def latent_settings(recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe that names precompute_latents' output."""
    return {
        "vae": recipe.vae,
        "text_encoder": recipe.text_encoder,
        "latents": recipe.latents,
        "profiles": [
            [profile.name, profile.shape, profile.picture, profile.strength, profile.held_out] for profile in latent_profiles(recipe)
        ],
        "degradation": stored_degradation(recipe),
        "seed": recipe.seed,
    }


def stored_degradation(recipe: Recipe) -> dict[str, Any]:
    """What the stored latents depend on of DEG_pixel: nothing else where the copies are made while training."""
    degradation = recipe.stage2.pixel_degradation
    return degradation.model_dump(mode="json", include={"copies"} if degrades_while_training(recipe) else None)


def degrades_while_training(recipe: Recipe) -> bool:
    """Whether the ranks decode, degrade and encode the clips that they read."""
    degradation = recipe.stage2.pixel_degradation
    return degradation.enabled and degradation.copies == "on_the_fly"


def motion_word(clip: Mapping[str, Any], config: LatentsConfig) -> str | None:
    """The word for a video clip's motion (RAFT's score, or the proxy's where there is none); None for images and unknown motion."""
    score = clip["motion_raft"] if clip["motion_raft"] is not None else clip["motion_proxy"]
    if clip["media_type"] != "video" or score is None:
        return None
    return MOTION_WORDS[sum(score >= edge for edge in config.motion_edges)]


def stage1_text(clip: Mapping[str, Any]) -> str | None:
    """Stage I reads the caption alone (code). None: the clip has no caption and trains the unconditional branch."""
    caption: str | None = clip["caption"]
    return caption


def stage2_text(clip: Mapping[str, Any], config: LatentsConfig, media: Media) -> str | None:
    """Stage II reads the motion word, then the caption (code); an image has no motion."""
    word = motion_word(clip, config) if media == "video" else None
    caption: str | None = clip["caption"]
    return caption if word is None or caption is None else f"{word} motion,{caption}"


def text_hash(text: str) -> str:
    """Key of a text's embedding."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def wants(recipe: Recipe, profile: LatentProfile, clip: Mapping[str, Any]) -> bool:
    """True when the profile is made of this clip."""
    if clip["split"] != "train" and not profile.held_out:
        return False
    own = clip["media_type"] == profile.media
    return bool(own or (profile.media == "image" and recipe.latents.video_frames_as_images))


def prefixes(recipe: Recipe, profile: LatentProfile) -> list[str]:
    """Names of the crops: "crop0/", ...; one empty name for a whole picture."""
    return [f"crop{number}/" for number in range(recipe.latents.patches_per_clip)] if profile.is_crop else [""]


def copies(recipe: Recipe, profile: LatentProfile) -> list[str]:
    """clean, degraded0, ..."""
    degradation = recipe.stage2.pixel_degradation
    if profile.strength is None:
        return ["clean"]
    kept = degradation.cached_variants if degradation.enabled and degradation.copies == "cached" else 0
    return ["clean"] + [f"degraded{number}" for number in range(kept)]


def variant_names(recipe: Recipe, profile: LatentProfile) -> list[str]:
    """Variants kept of one clip."""
    return [prefix + copy for prefix in prefixes(recipe, profile) for copy in copies(recipe, profile)]


def stored_profile(recipe: Recipe, profile: LatentProfile, run_id: str) -> str:
    """The column `profile`: e.g. patch_pca-unsplit/stage2/video/9x64x112/8fps/1f3a9c2e."""
    return f"{recipe.vae.kind}-{recipe.vae.chunk_mode}/{profile.name}/{recipe.latents.frame_rate_hz:g}fps/{run_id[:8]}"
