"""What a video is measured with besides truth: pyiqa's metrics on every n-th frame, and DOVER."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flashvideo.config import EvaluationConfig
from flashvideo.evaluation.dover import CommandDover, DoverBackend, StandInDover, dover_metrics
from flashvideo.evaluation.frame_quality import FrameMetrics


class VideoMetrics:
    """The recipe's metrics, built once. Raises ValueError for one that cannot be built, naming its file."""

    def __init__(self, config: EvaluationConfig, frame_rate_hz: float, device: torch.device) -> None:
        weights = None if config.frame_weights is None else Path(config.frame_weights).expanduser()
        self._frames = FrameMetrics(config.frame_metrics, device, weights)
        self._stride, self._frame_rate_hz = config.frame_stride, frame_rate_hz
        self._dover = _backend(config)

    @property
    def versions(self) -> dict[str, str]:
        """Metric -> what computes it, for the protocol."""
        dover = {} if self._dover is None else dict.fromkeys(dover_metrics(0, 0), self._dover.name)
        return self._frames.versions | dover

    def __call__(self, frames: np.ndarray) -> dict[str, float]:
        """uint8 T H W C -> value of each metric, frame metrics as means."""
        found = self._frames(frames, self._stride)
        return found if self._dover is None else found | dover_metrics(*self._dover(frames, self._frame_rate_hz))


def _backend(config: EvaluationConfig) -> DoverBackend | None:
    if config.dover == "none":
        return None
    return StandInDover() if config.dover == "stand_in" else CommandDover(config.dover_command)
