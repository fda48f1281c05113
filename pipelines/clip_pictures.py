"""A clip's pixels for training: read once at the largest size, degraded, cropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.latent_plan import LatentProfile, copies, latent_profiles, wants
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from flashvideo.objectives.degradation import Branch

Clip = Mapping[str, Any]
Pixels = npt.NDArray[np.uint8]
PixelCache = Mapping[str, tuple[Pixels, list[int]]]
"""Clip id -> what `read_picture` gave."""


@dataclass(frozen=True)
class Picture:
    """One version of a clip's picture, at the size that crops are cut from."""

    pixels: Pixels
    """T H W C."""
    degradation: str | None = None
    """JSON of the drawn parameters; None: clean."""


@dataclass
class ClipPictures:
    """Everything read and made of one clip before encoding."""

    clip: Clip
    times_us: list[int]
    by_profile: dict[LatentProfile, list[Picture]] = field(default_factory=dict)
    """The clean picture first, then the degraded copies."""


def read_picture(recipe: Recipe, clip: Clip, cache: PixelCache) -> tuple[Pixels, list[int]]:
    """The clip at the largest picture that its profiles ask for: uint8 T H W C, and the frames' times. Raises MediaError."""
    from curation.video import read_clip

    if clip["clip_id"] in cache:
        return cache[clip["clip_id"]]
    pictures = [profile.picture for profile in latent_profiles(recipe) if wants(recipe, profile, clip)]
    largest = max(pictures, key=lambda shape: shape.height * shape.width)
    frames = max(shape.frames for shape in pictures) if clip["media_type"] == "video" else 1
    pixels, times = read_clip(
        clip["uri"], clip["start_us"], clip["end_us"], recipe.latents.frame_rate_hz, frames, largest.height, largest.width
    )
    return pixels, [int(time) for time in times]


def cover(pixels: Pixels, height: int, width: int) -> Pixels:
    """T H W C scaled by area until it covers height x width, centre crop."""
    import cv2

    if pixels.shape[1:3] == (height, width):
        return pixels
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    size = (max(width, round(pixels.shape[2] * scale)), max(height, round(pixels.shape[1] * scale)))
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, size, interpolation=interpolation)[top : top + height, left : left + width] for frame in pixels])


def make_pictures(recipe: Recipe, clip: Clip, cache: PixelCache, device: torch.device | None = None) -> ClipPictures:
    """Reads a clip and degrades it (on the device), once for every picture, media and strength that its profiles share."""
    pixels, times = read_picture(recipe, clip, cache)
    made = ClipPictures(clip, times)
    shared: dict[tuple[Any, ...], list[Picture]] = {}
    for profile in latent_profiles(recipe):
        if not wants(recipe, profile, clip):
            continue
        key = (profile.picture, profile.media, profile.strength)
        if key not in shared:
            shared[key] = _copies_of(recipe, clip, profile, pixels, device)
        made.by_profile[profile] = shared[key]
    return made


def _copies_of(recipe: Recipe, clip: Clip, profile: LatentProfile, pixels: Pixels, device: torch.device | None) -> list[Picture]:
    """The clean picture of a profile and its kept degraded copies."""
    from flashvideo.objectives.degradation import cached_branches

    clean = clean_picture(profile, pixels)
    branches = cached_branches(recipe.stage2.pixel_degradation)[: len(copies(recipe, profile)) - 1]
    degraded = [degraded_picture(recipe, clip, profile, clean, variant, branch, device) for variant, branch in enumerate(branches)]
    return [Picture(clean), *degraded]


def clean_picture(profile: LatentProfile, pixels: Pixels) -> Pixels:
    """What was read of a clip, at the size of a profile's picture: its first frames, or the middle one for an image."""
    if profile.media == "image":
        pixels = pixels[len(pixels) // 2][None]
    return cover(pixels[: profile.picture.frames], profile.picture.height, profile.picture.width)


def degraded_picture(
    recipe: Recipe,
    clip: Clip,
    profile: LatentProfile,
    clean: Pixels,
    variant: int,
    branch: Branch | None = None,
    device: torch.device | None = None,
) -> Picture:
    """The clean picture degraded on the device, with its parameters: the same for the same clip, kind and variant."""
    import torch

    from flashvideo.objectives.degradation import draw_degradation, from_uint8, to_uint8

    drawn = draw_degradation(
        recipe.stage2.pixel_degradation,
        seed=recipe.seed,
        sample_id=f"{clip['clip_id']}/{profile.media}",
        variant=variant,
        num_frames=len(clean),
        strength=profile.strength or 0.0,
        branch=branch,
    )
    worse = to_uint8(drawn.apply(from_uint8(clean, torch.empty(0, device=device))))
    return Picture(worse, json.dumps(drawn.record(), sort_keys=True))


def crop_corner(recipe: Recipe, clip: Clip, profile: LatentProfile, number: int) -> tuple[int, int]:
    """(top, left) of a crop, px of the picture, multiples of 8: fixed by the recipe's seed and the clip."""
    from flashvideo.objectives.degradation import Draws

    draws = Draws("crop", recipe.seed, clip["clip_id"], profile.name, number)
    top = int(draws.uniform(0, (profile.picture.height - profile.shape.height) // 8 + 1))
    left = int(draws.uniform(0, (profile.picture.width - profile.shape.width) // 8 + 1))
    return top * 8, left * 8


def source_box(clip: Clip, profile: LatentProfile, top: int, left: int) -> list[int]:
    """The crop as x, y, width, height in the source's display picture, px."""
    scale = max(profile.picture.height / clip["height"], profile.picture.width / clip["width"])
    margin_x = (clip["width"] * scale - profile.picture.width) / 2
    margin_y = (clip["height"] * scale - profile.picture.height) / 2
    box = (left + margin_x, top + margin_y, profile.shape.width, profile.shape.height)
    return [round(value / scale) for value in box]
