"""Quality of frames: sharpness, distance to truth, and pyiqa's no-reference metrics.

Frames are `uint8 T H W C` (RGB) throughout.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from flashvideo.evaluation.networks.frame_metrics import build_metric, identity

GRADIENT_VERSION = "1"
"""Bumped when mean_gradient_magnitude's definition changes."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601


def mean_gradient_magnitude(frames: np.ndarray) -> float:
    """Mean length of the luma gradient, luma in 0-1, by forward differences; 0 for flat frames.

    Definition 1: luma Y = BT.601 / 255; at each pixel with a right and a lower neighbour, hypot(Y_right - Y,
    Y_below - Y); mean over those pixels and all frames. Raises ValueError for other shapes or dtypes.
    """
    _check(frames)
    if min(frames.shape[1:3]) < 2:
        raise ValueError(f"frames are {frames.shape[1]}x{frames.shape[2]} px; a gradient needs at least 2x2")
    total = 0.0
    for frame in frames:  # frame by frame: a 49-frame 1080p clip as float would take 2.4 GB
        luma = frame.astype(np.float32) @ _LUMA / 255
        across, down = luma[:-1, 1:] - luma[:-1, :-1], luma[1:, :-1] - luma[:-1, :-1]
        total += float(np.hypot(across, down).mean(dtype=np.float64))
    return total / len(frames)


def psnr_db(frames: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio over the whole clip (one mean squared error over all frames), dB; inf for equal clips."""
    _check(frames)
    _check(truth)
    if frames.shape != truth.shape:
        raise ValueError(f"PSNR compares equal shapes; frames are {frames.shape}, truth is {truth.shape}")
    squares = sum(
        float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean(dtype=np.float64)) for a, b in zip(frames, truth, strict=True)
    )
    error = squares / len(frames)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


class FrameMetrics:
    """pyiqa's no-reference metrics, each built once. pyiqa is PolyForm Noncommercial.

    Values keep pyiqa's scale and direction (piqe 0-100, lower is better). `weights`: folder of their files
    (networks/frame_metrics.py); None: pyiqa fetches what it lacks.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device, weights: Path | None = None) -> None:
        self.names = names
        self._device = device
        self._metrics = {name: build_metric(name, device, weights) for name in names}
        self.versions = {name: identity(name, weights) for name in names}
        """Metric -> what computes it, for the protocol."""

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, stride: int = 1) -> dict[str, float]:
        """Mean of each metric over every `stride`-th frame. Raises ValueError where a metric is not finite."""
        _check(frames)
        sums = dict.fromkeys(self.names, 0.0)
        chosen = frames[::stride]
        if self._metrics:
            for frame in chosen:
                picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].to(self._device, torch.float32) / 255
                for name, metric in self._metrics.items():
                    sums[name] += float(metric(picture).reshape(-1)[0])
        means = {name: value / len(chosen) for name, value in sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value} on {len(chosen)} frames of {frames.shape[1]}x{frames.shape[2]} px")
        return means


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"expected uint8 T H W 3 with at least one frame, got {frames.dtype} {frames.shape}")
