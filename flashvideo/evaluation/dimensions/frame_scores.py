"""Aesthetic and imaging quality: a network's score of every frame, averaged.

Sources: Vchitect/VBench vbench/aesthetic_quality.py and imaging_quality.py, commit 45e79ec.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from flashvideo.evaluation.dimensions.consistency import BATCH
from flashvideo.evaluation.dimensions.frame_choice import clip_pixels, musiq_pixels
from flashvideo.evaluation.networks.interfaces import AestheticHead, ImageEncoder, Network, QualityScorer
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt, mean_score


class AestheticQuality:
    """LAION's linear score (0-10) of normalised CLIP ViT-L/14 features, over 10."""

    name, version = "aesthetic_quality", "vbench@45e79ec/1"

    def __init__(self, clip_l: ImageEncoder, head: AestheticHead, antialias: bool) -> None:
        self.networks: Mapping[str, Network] = {"encoder": clip_l, "head": head}
        self._clip_l, self._head, self._antialias = clip_l, head, antialias

    def start(self, facts: ClipFacts, prompt: Prompt) -> FrameScores:
        return FrameScores(self)

    def preprocess(self, frame: np.ndarray) -> torch.Tensor:
        return clip_pixels(frame, self._antialias)

    def score(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._head(F.normalize(self._clip_l(pictures).float(), dim=-1)) / 10


class ImagingQuality:
    """MUSIQ-SPAQ, 0-100, over 100. The reference's JSON holds 0-100 per video (exchange.py)."""

    name, version = "imaging_quality", "vbench@45e79ec/1"

    def __init__(self, quality: QualityScorer, antialias: bool) -> None:
        self.networks: Mapping[str, Network] = {"quality": quality}
        self._quality, self._antialias = quality, antialias

    def start(self, facts: ClipFacts, prompt: Prompt) -> FrameScores:
        return FrameScores(self)

    def preprocess(self, frame: np.ndarray) -> torch.Tensor:
        return musiq_pixels(frame, self._antialias)

    def score(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._quality(pictures) / 100


class FrameScores:
    """Frames in batches; the scores are kept."""

    def __init__(self, rule: AestheticQuality | ImagingQuality) -> None:
        self._rule = rule
        self._waiting: list[torch.Tensor] = []
        self._scores: list[float] = []

    def add(self, index: int, frame: np.ndarray) -> None:
        self._waiting.append(self._rule.preprocess(frame))
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._scores += [float(value) for value in self._rule.score(torch.stack(self._waiting)).reshape(-1)]
            self._waiting = []

    def result(self) -> ClipScore:
        self._flush()
        return mean_score(self._scores)
