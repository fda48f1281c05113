"""Dynamic degree, the static filter and motion smoothness.

Sources: Vchitect/VBench vbench/dynamic_degree.py, static_filter.py, vbench/motion_smoothness.py, commit 45e79ec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from flashvideo.evaluation.dimensions.dimension import picture
from flashvideo.evaluation.dimensions.frame_choice import padded, unpadded
from flashvideo.evaluation.networks.interfaces import FrameInterpolator, Network, OpticalFlow
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt, single_score

DYNAMIC_SHARE, STATIC_SHARE = 0.05, 0.02
"""Shares of the fastest pixels that a pair's score averages."""
FLOW_MULTIPLE, INTERPOLATOR_MULTIPLE = 8, 16


def fastest_mean(flow: torch.Tensor, share: float) -> float:
    """Mean magnitude of the fastest int(H W share) pixels of a flow 2 H W. Raises ValueError where that is none."""
    u, v = flow.float().cpu().numpy()
    magnitude = np.sqrt(np.square(u) + np.square(v))
    count = int(magnitude.size * share)
    if count == 0:
        raise ValueError(f"{share:.0%} of {magnitude.shape[1]}x{magnitude.shape[0]} px is no pixel")
    return float(np.mean(-np.sort(-magnitude.flatten())[:count]))


def pair_score(flow: OpticalFlow, first: np.ndarray, second: np.ndarray, share: float) -> float:
    """Score of two frames; the padding counts as pixels, as in the reference."""
    a, b = (padded(picture(frame)[None], FLOW_MULTIPLE) for frame in (first, second))
    return fastest_mean(flow(a, b)[0], share)


def dynamic_threshold_px(height: int, width: int) -> float:
    """6 px at a short side of 256."""
    return 6.0 * (min(height, width) / 256.0)


def is_dynamic(scores: Sequence[float], height: int, width: int) -> bool:
    """Whether enough of the n - 1 pair scores pass the threshold: round(4 n / 16) of them, halves to even.

    2 frames need 0, so any pair of frames is dynamic; a single frame is not.
    """
    needed = round(4 * ((len(scores) + 1) / 16.0))
    moving = sum(score > dynamic_threshold_px(height, width) for score in scores)
    return len(scores) > 0 and moving >= needed


def is_static(scores: Sequence[float], there_and_back: Sequence[float], height: int, width: int) -> bool:
    """Whether at most round(2 n / 16) of the n - 1 pair scores pass 3 px (at a short side of 256), and first against
    last, both ways, stays within that threshold times that number times 2."""
    threshold = 3.0 * (min(height, width) / 256.0)
    allowed = round(2 * ((len(scores) + 1) / 16.0))
    moving = sum(score > threshold for score in scores)
    return moving <= allowed and all(score <= threshold * allowed * 2 for score in there_and_back)


class DynamicDegree:
    """Whether a clip moves: frames 1/8 s apart, RAFT, the fastest 5 % of pixels."""

    name, version = "dynamic_degree", "vbench@45e79ec/1"

    def __init__(self, flow: OpticalFlow) -> None:
        self.networks: Mapping[str, Network] = {"flow": flow}
        self._flow = flow

    def start(self, facts: ClipFacts, prompt: Prompt) -> DynamicMeasurement:
        return DynamicMeasurement(self._flow, facts)


class DynamicMeasurement:
    """Keeps one frame."""

    def __init__(self, flow: OpticalFlow, facts: ClipFacts) -> None:
        self._flow, self._facts = flow, facts
        self._interval = max(1, round(facts.frame_rate_hz / 8))
        self._before: np.ndarray | None = None
        self._scores: list[float] = []

    def add(self, index: int, frame: np.ndarray) -> None:
        if index % self._interval:
            return
        if self._before is not None:
            self._scores.append(pair_score(self._flow, self._before, frame, DYNAMIC_SHARE))
        self._before = frame

    def result(self) -> ClipScore:
        dynamic = is_dynamic(self._scores, self._facts.height, self._facts.width)
        return single_score(dynamic, pair_scores=self._scores)


class StaticFilter:
    """Whether a clip stands still, at the full frame rate. Keeps two frames."""

    def __init__(self, flow: OpticalFlow, facts: ClipFacts) -> None:
        self._flow, self._facts = flow, facts
        self._first: np.ndarray | None = None
        self._before: np.ndarray | None = None
        self._scores: list[float] = []

    def add(self, frame: np.ndarray) -> None:
        if self._before is None:
            self._first = frame
        else:
            self._scores.append(pair_score(self._flow, self._before, frame, STATIC_SHARE))
        self._before = frame

    def result(self) -> bool:
        if self._first is None or self._before is None:
            raise ValueError("the static filter has seen no frame")
        ends = [(self._first, self._before), (self._before, self._first)]
        there_and_back = [pair_score(self._flow, a, b, STATIC_SHARE) for a, b in ends]
        return is_static(self._scores, there_and_back, self._facts.height, self._facts.width)


def interpolation_error(truth: np.ndarray, halfway: torch.Tensor) -> float:
    """Mean absolute difference, 0-255, of a frame uint8 H W 3 and an interpolated one, float 3 H W in 0-1.

    The interpolated frame is truncated to uint8, not rounded.
    """
    levels = (halfway.float() * 255.0).clamp(0, 255).permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    return float(np.mean(np.abs(truth.astype(np.int16) - levels.astype(np.int16))))


class MotionSmoothness:
    """How well odd frames are guessed from their even neighbours: (255 - mean error) / 255."""

    name, version = "motion_smoothness", "vbench@45e79ec/1"

    def __init__(self, interpolator: FrameInterpolator) -> None:
        self.networks: Mapping[str, Network] = {"interpolator": interpolator}
        self._interpolator = interpolator

    def start(self, facts: ClipFacts, prompt: Prompt) -> SmoothnessMeasurement:
        return SmoothnessMeasurement(self._interpolator)


class SmoothnessMeasurement:
    """Keeps two frames; a last odd frame without a successor is left out."""

    def __init__(self, interpolator: FrameInterpolator) -> None:
        self._interpolator = interpolator
        self._even: np.ndarray | None = None
        self._odd: np.ndarray | None = None
        self._errors: list[float] = []

    def add(self, index: int, frame: np.ndarray) -> None:
        if index % 2:
            self._odd = frame
            return
        if self._even is not None and self._odd is not None:
            a, b = (padded(picture(one)[None] / 255, INTERPOLATOR_MULTIPLE) for one in (self._even, frame))
            halfway = unpadded(self._interpolator(a, b), *frame.shape[:2])[0]
            self._errors.append(interpolation_error(self._odd, halfway))
        self._even = frame

    def result(self) -> ClipScore:
        if not self._errors:
            raise ValueError("motion smoothness guesses a frame between two and needs at least 3")
        return single_score((255.0 - float(np.mean(self._errors))) / 255.0)
