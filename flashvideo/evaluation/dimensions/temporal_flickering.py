"""VBench's temporal flickering: how still the pixels of consecutive frames are.

    score(video) = (255 - mean over pairs of MAE(frame, next frame)) / 255, all frames, 8-bit BGR

The reference's results are kept to the last digit (float32 means, then a float32 mean over pairs), without its float
copies of every frame. The protocol applies it to static videos only; the static filter is not part of this file.
Source: Vchitect/VBench vbench/temporal_flickering.py, commit 45e79ec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

VERSION = "vbench@45e79ec"
EXACT = 2**24 // 255
"""So many uint8 differences sum exactly in float32, in any order."""


def temporal_flickering(frames: Iterable[np.ndarray]) -> float:
    """Score of one video, 0-1, higher is stiller. `frames`: uint8 H W C, equal sizes, one at a time.

    Raises ValueError for fewer than 2 frames or unequal sizes.
    """
    differences: list[np.float32] = []
    before: np.ndarray | None = None
    for frame in frames:
        if frame.dtype != np.uint8:
            raise ValueError(f"frames must be uint8, got {frame.dtype}")
        if before is not None:
            if frame.shape != before.shape:
                raise ValueError(f"frame {len(differences) + 1} is {frame.shape}, the one before {before.shape}")
            differences.append(mean_difference(before, frame))
        before = frame
    if not differences:
        raise ValueError("temporal flickering compares consecutive frames and needs at least 2")
    return (255.0 - np.mean(np.array(differences)).item()) / 255.0


def mean_difference(before: np.ndarray, now: np.ndarray, channels_turned: bool = False) -> np.float32:
    """Mean absolute difference of two frames, uint8 H W C: what `np.mean` gives of their float32 differences, bit by bit.

    `channels_turned`: in the order BGR of frames that are RGB. NumPy adds pairwise: halves of halves, each rounded to float32.
    Whole numbers below 2^24 are exact there, so only the upper sums are rounded, and the lower ones may be of integers.
    """
    channels = before.shape[-1] if channels_turned else 1
    total = _pairwise(before.reshape(-1), now.reshape(-1), 0, before.size, channels)
    return np.float32(total / np.float64(before.size))


def _pairwise(before: np.ndarray, now: np.ndarray, start: int, end: int, channels: int) -> np.float32:
    """NumPy's float32 sum of the differences of a part; no closure, whose cycle would keep frames until they are collected."""
    if end - start <= EXACT:
        apart = cv2.norm(before[start:end], now[start:end], cv2.NORM_L1)
        return np.float32(apart + _turned(before, now, end, channels) - _turned(before, now, start, channels))
    half = (end - start) // 2
    middle = start + half - half % 8
    return _pairwise(before, now, start, middle, channels) + _pairwise(before, now, middle, end, channels)


def _turned(before: np.ndarray, now: np.ndarray, place: int, channels: int) -> int:
    """What turning the channels of a pixel that is cut at `place` adds to the left part."""
    count = place % channels
    if count == 0:
        return 0
    pixel = slice(place - count, place - count + channels)
    apart = [abs(int(one) - int(other)) for one, other in zip(before[pixel], now[pixel], strict=True)]
    return sum(apart[::-1][:count]) - sum(apart[:count])


def temporal_flickering_of_file(path: Path) -> float:
    """As `temporal_flickering`, read with OpenCV as the reference does. Raises ValueError for an unreadable file."""
    try:
        return temporal_flickering(_bgr_frames(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _bgr_frames(path: Path) -> Iterator[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise ValueError("OpenCV cannot open it as a video")
        while True:
            success, frame = video.read()
            if not success:
                return
            yield frame
    finally:
        video.release()
