"""Degraded latents made while training: a clip is decoded, degraded with a new draw and encoded each time that a rank reads it.

The draw is named by a number of the sample's own generator, so it is the same on any rank, with any number of loader threads and
after a resume; from equal names it gives the very latents that precompute_latents would have kept.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.clip_pictures import Clip, clean_picture, crop_corner, degraded_picture, read_picture
from pipelines.latent_plan import LatentProfile, Media
from pipelines.latent_shards import encode_pixels
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from flashvideo.models.vae import LatentPosterior, VideoAutoencoder
    from flashvideo.objectives.degradation import Branch

VARIANTS = 2**31 - 1


class SharedAutoencoder:
    """A rank's autoencoder, loaded when it is first asked for; one thread at a time, so that two never hold its memory."""

    def __init__(self, load: Callable[[], VideoAutoencoder]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._loaded: VideoAutoencoder | None = None

    def encode(self, video: Tensor) -> LatentPosterior:
        with self._lock:
            return self._autoencoder().encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        with self._lock:
            return self._autoencoder().decode(latents)

    def _autoencoder(self) -> VideoAutoencoder:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded


class DegradedReads:
    """The degraded end of the samples of one list."""

    def __init__(
        self, recipe: Recipe, profiles: Mapping[Media, LatentProfile], vae: SharedAutoencoder, device: torch.device, keep: bool = False
    ) -> None:
        """`profiles`: what the list's samples are, by kind. `keep`: hold what was made, for samples whose draws repeat (validation)."""
        self.recipe, self.profiles, self.vae, self.device = recipe, profiles, vae, device
        self._kept: dict[tuple[str, int], tuple[Tensor, dict[str, Any]]] | None = {} if keep else None

    def read(self, row: Mapping[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """(mean and log variance, 2 T C H W; sample, key and branch of the draw) of a row of the list. Raises MediaError."""
        variant = int(torch.randint(VARIANTS, (1,), generator=generator).item())
        name = (row["sample_id"], variant)
        if self._kept is None:
            return self.made(row, variant)
        if name not in self._kept:
            self._kept[name] = self.made(row, variant)
        return self._kept[name]

    def made(self, row: Mapping[str, Any], variant: int, branch: Branch | None = None) -> tuple[Tensor, dict[str, Any]]:
        """As `read`, of a given draw."""
        profile, clip = self.profiles[row["media"]], _clip_of(row)
        pixels, _ = read_picture(self.recipe, clip, {})
        picture = degraded_picture(self.recipe, clip, profile, clean_picture(profile, pixels), variant, branch, self.device)
        top, left = (0, 0) if row["crop"] is None else crop_corner(self.recipe, clip, profile, row["crop"])
        latents = encode_pixels(self.vae, picture.pixels[:, top : top + profile.shape.height, left : left + profile.shape.width])
        drawn = json.loads(picture.degradation or "{}")
        return latents, {"sample_id": row["sample_id"], "key": drawn["key"], "branch": drawn["branch"]}


def _clip_of(row: Mapping[str, Any]) -> Clip:
    clip: Clip = row["clip"]
    return clip
