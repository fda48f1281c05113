"""Small films whose motion, cuts and bars are known: a window that moves over a smooth, seeded texture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np

CORPUS = Path(__file__).resolve().parents[1].parent / "shared" / "corpus"
"""Real video beside the repository; tests that read it are marked `corpus` and skip where it is absent."""


def texture(height: int, width: int, seed: int, slope: float = 0.5) -> np.ndarray:
    """uint8 H W 3 with structure from 4 px to the whole picture, different for every seed. Contrast grows with size to the power
    of `slope`: 0 is the same at every scale, as in natural pictures."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    cell = 4
    while cell < max(height, width):
        coarse = random.normal(size=(height // cell + 3, width // cell + 3, 3)).astype(np.float32)
        enlarged = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        picture += enlarged[:height, :width] * cell**slope
        cell *= 2
    picture = (picture - picture.mean()) / picture.std()
    return np.clip(picture * 45 + 120, 0, 255).astype(np.uint8)


def moving(
    height: int,
    width: int,
    num_frames: int,
    velocity_px: tuple[float, float] = (0.0, 0.0),
    zoom: float = 1.0,
    seed: int = 0,
    slope: float = 0.5,
) -> Iterator[np.ndarray]:
    """Frames (uint8 H W 3) of a camera that moves (right, down) by so many px per frame and enlarges by `zoom` per frame."""
    margin = 16 + int(np.ceil(max(abs(v) for v in velocity_px) * num_frames))
    film = texture(height + 2 * margin, width + 2 * margin, seed, slope)
    centre = np.array([width / 2, height / 2])
    for index in range(num_frames):
        scale = zoom**-index
        place = margin + centre + np.array(velocity_px) * (index - (num_frames - 1) / 2)
        first = place - centre * scale
        matrix = np.array([[scale, 0, first[0] + (scale - 1) / 2], [0, scale, first[1] + (scale - 1) / 2]])
        yield cv2.warpAffine(film, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def write_film(path: Path, frames: Iterable[np.ndarray], frame_rate_hz: int = 24, rotation_deg: int = 0, crf: int = 10) -> Path:
    """H.264 of RGB frames, nearly without loss, BT.709; equal frames make equal bytes. `rotation_deg` clockwise to display."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = None
        for index, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream("libx264", rate=frame_rate_hz)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
                stream.codec_context.thread_count = 1
                stream.codec_context.colorspace = 1
                stream.options = {"preset": "ultrafast", "crf": str(crf), "x264-params": "threads=1:keyint=24"}
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
            picture.pts = index
            container.mux(stream.encode(picture))
        assert stream is not None, "a film has frames"
        container.mux(stream.encode(None))
    if rotation_deg:
        _rotate_track(path, rotation_deg)
    return path


def _rotate_track(path: Path, clockwise_deg: int) -> None:
    """Writes the rotation into the MP4's track header matrix (16.16 fixed point)."""
    turns = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = turns[clockwise_deg]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(bytes(data))
