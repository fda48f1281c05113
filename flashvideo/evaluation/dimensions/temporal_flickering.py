"""VBench's temporal flickering: how still the pixels of consecutive frames are.

    score(video) = (255 - mean over pairs of MAE(frame, next frame)) / 255, all frames, 8-bit BGR

The reference's arithmetic is kept (float32 means, then a float32 mean over pairs). The protocol applies it to
static videos only; the static filter is not part of this file.
Source: Vchitect/VBench vbench/temporal_flickering.py, commit 45e79ec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

VERSION = "vbench@45e79ec"


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
            differences.append(np.mean(np.abs(frame.astype(np.float32) - before.astype(np.float32))))
        before = frame
    if not differences:
        raise ValueError("temporal flickering compares consecutive frames and needs at least 2")
    return (255.0 - np.mean(np.array(differences)).item()) / 255.0


def temporal_flickering_of_file(path: Path) -> float:
    """As `temporal_flickering`, read with OpenCV as the reference does. Raises ValueError for an unreadable file."""
    try:
        return temporal_flickering(_bgr_frames(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _bgr_frames(path: Path) -> Iterator[np.ndarray]:
    import cv2

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
