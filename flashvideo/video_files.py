"""Generated videos on disk: mp4 (H.264) out of frames and back, pictures beside each other.

Frames are `uint8 T H W C` (RGB). Writing is deterministic for equal frames and settings (one encoder thread),
and kill-safe: beside, then renamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from flashvideo.whole_files import writing

REPEATABLE = {"tune": "zerolatency", "x264-params": "mbtree=0:scenecut=0"}
"""x264 without its lookahead, which gave unequal bits for equal pixels now and then (objectives/degradation.py)."""


class VideoFileError(ValueError):
    """A file that cannot be read as a video; the message names it."""


def write_video(path: Path, frames: np.ndarray, frame_rate_hz: float, crf: int) -> None:
    """Writes libx264 yuv420p with BT.709 colours at the constant rate factor `crf` (0 best, 51 worst).

    Raises ValueError for other than uint8 T H W 3 or odd sizes (yuv420p halves both).
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"{path}: expected uint8 T H W 3 with at least one frame, got {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: {width}x{height} px; yuv420p needs even sizes")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"}
    with writing(path) as beside, av.open(str(beside), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate_hz).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1  # BT.709, limited
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 1, 1
        stream.options = {"crf": str(crf), "preset": "medium"} | REPEATABLE
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", src_colorspace="itu709", dst_colorspace="itu709")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """All frames, uint8 T H W C, and the frame rate in Hz. Raises VideoFileError."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoFileError(f"{path} has no video stream")
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (av.FFmpegError, OSError) as error:
        raise VideoFileError(f"{path} cannot be read as a video: {error}") from None
    if not frames:
        raise VideoFileError(f"{path} holds no frame")
    return np.stack(frames), rate


def frames_digest(frames: np.ndarray) -> str:
    """sha256 of shape and pixels, first 32 hex."""
    return hashlib.sha256(repr(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()[:32]


def beside(clips: Sequence[np.ndarray], gap_px: int = 4) -> np.ndarray:
    """Clips of equal length and size beside each other, left to right, white gaps between; width made even."""
    _check_equal(clips)
    frames, height, _, channels = clips[0].shape
    gap = np.full((frames, height, gap_px, channels), 255, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    row = np.concatenate(parts, axis=2)
    return row if row.shape[2] % 2 == 0 else np.concatenate([row, gap[:, :, :1]], axis=2)


def grid(rows: Sequence[Sequence[np.ndarray]], gap_px: int = 4) -> np.ndarray:
    """Pictures (uint8 H W C, equal sizes) in rows and columns, white gaps between."""
    _check_equal([picture for row in rows for picture in row])
    lines = [beside([picture[None] for picture in row], gap_px)[0] for row in rows]
    gap = np.full((gap_px, *lines[0].shape[1:]), 255, np.uint8)
    return np.concatenate([part for line in lines for part in (gap, line)][1:], axis=0)


def _check_equal(arrays: Sequence[np.ndarray]) -> None:
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"what stands beside each other must have one shape, got {sorted(shapes)}")


def write_picture(path: Path, picture: np.ndarray) -> None:
    """One uint8 H W C picture as PNG, written beside and renamed."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as part:
        Image.fromarray(picture).save(part, format="PNG")
