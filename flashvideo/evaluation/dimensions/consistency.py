"""Subject and background consistency: how alike the frames' features are.

    score(clip) = mean over t >= 1 of (max(0, cos(f_t, f_t-1)) + max(0, cos(f_t, f_0))) / 2

Source: Vchitect/VBench vbench/subject_consistency.py and background_consistency.py, commit 45e79ec.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from flashvideo.evaluation.dimensions.frame_choice import clip_pixels, dino_pixels, dinov2_pixels, dreamsim_pixels
from flashvideo.evaluation.networks.interfaces import ImageEncoder, Network
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt, mean_score

BATCH = 8
"""Frames that go through an encoder together."""


def consistency(features: torch.Tensor) -> list[float]:
    """One similarity a frame after the first; features T D."""
    unit = F.normalize(features.float(), dim=-1)
    return [_similarity(unit[0], before, now) for before, now in itertools.pairwise(unit)]


def _similarity(first: torch.Tensor, before: torch.Tensor, now: torch.Tensor) -> float:
    """Of unit vectors."""
    to_before = max(0.0, F.cosine_similarity(before, now, dim=0).item())
    to_first = max(0.0, F.cosine_similarity(first, now, dim=0).item())
    return (to_before + to_first) / 2


class ConsistencyMeasurement:
    """Frames in batches through the encoder; the features are kept (a few kB each), the pixels are not."""

    def __init__(self, encoder: ImageEncoder, preprocess: Callable[[np.ndarray], torch.Tensor]) -> None:
        self._encoder, self._preprocess = encoder, preprocess
        self._waiting: list[torch.Tensor] = []
        self._features: list[torch.Tensor] = []

    def add(self, index: int, frame: np.ndarray) -> None:
        self._waiting.append(self._preprocess(frame))
        if len(self._waiting) == BATCH:
            self._encode()

    def _encode(self) -> None:
        if self._waiting:
            self._features.append(self._encoder(torch.stack(self._waiting)))
            self._waiting = []

    def result(self) -> ClipScore:
        self._encode()
        similarities = consistency(torch.cat(self._features)) if self._features else []
        if not similarities:
            raise ValueError("consistency compares frames and needs at least 2")
        score = mean_score(similarities)
        return score.model_copy(update={"extras": {"video_sim": score.total, "cnt_per_video": score.count}})


class Consistency:
    """The rule with its encoder and preprocessing."""

    version = "vbench@45e79ec/1"

    def __init__(self, name: str, encoder: ImageEncoder, preprocess: Callable[[np.ndarray], torch.Tensor]) -> None:
        self.name = name
        self.networks: Mapping[str, Network] = {"encoder": encoder}
        self._encoder, self._preprocess = encoder, preprocess

    def start(self, facts: ClipFacts, prompt: Prompt) -> ConsistencyMeasurement:
        return ConsistencyMeasurement(self._encoder, self._preprocess)


def subject_consistency(dino: ImageEncoder, antialias: bool) -> Consistency:
    return Consistency("subject_consistency", dino, partial(dino_pixels, antialias=antialias))


def background_consistency(clip_b: ImageEncoder, antialias: bool) -> Consistency:
    return Consistency("background_consistency", clip_b, partial(clip_pixels, antialias=antialias))


def subject_across_clips(dinov2: ImageEncoder) -> Consistency:
    """On the first frames of a video's clips (vbench_long)."""
    return Consistency("subject_consistency", dinov2, dinov2_pixels)


def background_across_clips(dreamsim: ImageEncoder) -> Consistency:
    """On the first frames of a video's clips (vbench_long)."""
    return Consistency("background_consistency", dreamsim, dreamsim_pixels)
