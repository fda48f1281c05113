"""VBench-Long's clips of a video. Light.

Source: Vchitect/VBench vbench2_beta_long/utils.py and configs/clip_length_mix.yaml, commit 45e79ec.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CLIP_SECONDS: dict[str, float] = {"human_action": 10.0, "temporal_style": 10.0, "overall_consistency": 10.0}
"""Seconds of a clip by dimension (clip_length_mix.yaml); DEFAULT_CLIP_SECONDS for the other 13."""
DEFAULT_CLIP_SECONDS = 2.0


class ClipSpan(NamedTuple):
    """Frames start <= index < stop of a video. `name`: 000, 001, ... or full."""

    name: str
    start: int
    stop: int

    @property
    def frames(self) -> int:
        return self.stop - self.start


def clip_seconds(dimensions: Iterable[str]) -> float:
    """The longest clip that one of a prompt's dimensions asks for. Raises ValueError for no dimension."""
    lengths = [CLIP_SECONDS.get(name, DEFAULT_CLIP_SECONDS) for name in dimensions]
    if not lengths:
        raise ValueError("a video without dimensions has no clip length")
    return max(lengths)


def clip_rate_hz(frame_rate_hz: float, faithful: bool = True) -> int:
    """Whole frames a second. The reference truncates, so that 23.976 is 23; otherwise it is rounded.

    Raises ValueError below 1.
    """
    rate = int(frame_rate_hz) if faithful else round(frame_rate_hz)
    if rate < 1:
        raise ValueError(f"{frame_rate_hz:g} frames/s; clips need at least 1")
    return rate


def plan_clips(num_frames: int, frame_rate_hz: float, seconds: float, faithful: bool = True) -> tuple[ClipSpan, ...]:
    """Clips of `seconds`; a rest gives one more, the last `seconds` of the video. A shorter video is one clip, `full`."""
    if num_frames < 1:
        raise ValueError(f"{num_frames} frames make no clip")
    length = int(clip_rate_hz(frame_rate_hz, faithful) * seconds)
    if length < 1:
        raise ValueError(f"clips of {seconds:g} s at {frame_rate_hz:g} frames/s have no frame")
    if num_frames < length:
        return (ClipSpan("full", 0, num_frames),)
    whole, rest = divmod(num_frames, length)
    starts = [index * length for index in range(whole)] + ([num_frames - length] if rest else [])
    return tuple(ClipSpan(f"{index:03d}", start, start + length) for index, start in enumerate(starts))
