"""Films whose motion is known exactly, at any size, frame rate and rotation: one texture, looked at through a moving window.

Speeds are in the score's unit, px at 360 px short side per 1/8 s, whatever the film's size and frame rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from generated_films import texture, write_film

from curation.config import DecodeConfig, ShotsConfig
from curation.decode_pass import run_pass
from curation.passes import PassTask
from curation.scores.motion import FlowEstimator, Motion, measure_motion
from curation.tracks import read_clip_track

CRF = 3
"""At 10 x264 skips blocks of slow pans and makes up for it frames later: neighbouring pairs of a 1.1 px pan really move 6 % too
little and 4 % too much."""
TICKS = 4
"""A film lasts so many eighths of a second, and a frame."""
ONE_CLIP = ShotsConfig(min_duration_s=0.4, clip_duration_s=60.0, detector="stride")
TEXTURE_PX = 720
"""Short side of the picture on the texture: twice the score's 360, so that nothing the score sees is magnified."""
WIDTH_PX = 1280
MARGIN_PX = 2 * 40 * TICKS // 2 + 24
MOVES = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "slant": (0.8, 0.6)}


@dataclass(frozen=True)
class Film:
    """What a film shows and how it is stored."""

    move: str
    """right, left, down, up, slant: where the camera goes; in, out: a zoom."""
    speed_px: float
    """Mean displacement of a pixel in the score's unit; 0 is a still film."""
    height: int = 1080
    """Of the displayed picture, 16:9."""
    frame_rate_hz: int = 24
    rotation_deg: int = 0
    """The picture is stored turned back by this, and the file says so."""

    @property
    def name(self) -> str:
        return f"{self.move}_{self.speed_px:g}_{self.height}p{self.frame_rate_hz}_r{self.rotation_deg}"

    @property
    def zoom(self) -> float:
        """Enlargement per 1/8 s; 1 for pans."""
        if self.move not in ("in", "out"):
            return 1.0
        return 1 + (1 if self.move == "in" else -1) * self.speed_px / _mean_distance_px()


@lru_cache
def _mean_distance_px() -> float:
    """Of a pixel from the centre of a 640x360 picture: what an enlargement by 1 would displace it on average."""
    y, x = np.mgrid[0:360, 0:640]
    return float(np.hypot(x + 0.5 - 320, y + 0.5 - 180).mean())


@lru_cache(maxsize=1)
def _world() -> np.ndarray:
    return texture(TEXTURE_PX + 2 * MARGIN_PX, WIDTH_PX + 2 * MARGIN_PX, seed=11)


def frames_of(film: Film) -> Iterator[np.ndarray]:
    """Stored frames, uint8 H W 3."""
    height, width = film.height, film.height * 16 // 9
    direction = np.array(MOVES.get(film.move, (0, 0)), float)
    number = round(TICKS * film.frame_rate_hz / 8) + 1
    centre = MARGIN_PX + np.array([WIDTH_PX, TEXTURE_PX]) / 2
    turn = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}.get(film.rotation_deg)
    for index in range(number):
        tick = index * 8 / film.frame_rate_hz
        offset = direction * film.speed_px * 2 * (tick - TICKS / 2)
        scale = TEXTURE_PX / height * film.zoom ** -(tick - (0 if film.zoom > 1 else TICKS))
        first = centre + offset + (0.5 - np.array([width, height]) / 2) * scale - 0.5
        window = np.array([[scale, 0, first[0]], [0, scale, first[1]]])
        frame = cv2.warpAffine(_world(), window, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        yield frame if turn is None else cv2.rotate(frame, turn)


def measured(film: Film, folder: Path, estimator: FlowEstimator, max_pairs: int = 48) -> Motion:
    """The film written, decoded and scored as every source is."""
    path = write_film(folder / f"{film.name}.mp4", frames_of(film), film.frame_rate_hz, film.rotation_deg, CRF)
    task = PassTask(str(path), film.name, "video", film.frame_rate_hz, DecodeConfig(), ONE_CLIP, folder / "tracks")
    [clip] = run_pass(task).clips
    path.unlink()
    track = read_clip_track(folder / "tracks", film.name, clip.clip_id, clip.start_us, clip.end_us)
    return measure_motion(track, estimator, max_pairs)
