"""Captioner `attributes/1`: a sentence from measured facts, the embedded default where no captioning model is at hand.

It says what was measured and nothing else: kind, length, colours, light, focus, movement, camera, bars. A fact
that is unknown (null) is left out. It names no subject, so it is no substitute for a vision-language model;
everything that it writes is recorded under its name. The motion word that the released model expects in front
of a caption is not part of it (added at load time).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.captions.captioner import Caption
from curation.step import Resources, StepError
from curation.tracks import ClipTrack, KeyFrame, read_clip_track

MODEL = "attributes/1"
VERSION = "1"
LIGHT = ((40, "very dark"), (85, "dark"), (150, "evenly lit"), (200, "bright"), (256, "very bright"))
"""Upper end of mean luma (0-255) and the word below it."""
MOVEMENT = ((0.3, "hardly any movement"), (1.1, "slight movement"), (4.0, "moderate movement"), (10.0, "fast movement"))
"""Upper end in px at 360 px short side per 1/8 s; 1.1 is the paper's admission threshold (4.1)."""
FASTEST = "very fast movement"
SOFT_BLUR, SHARP_BLUR = 60.0, 600.0
"""Variance of the Laplacian at 360 px: below, soft focus; above, fine detail."""
CAMERA = {
    "static": "the camera is still",
    "pan left": "the camera pans left",
    "pan right": "the camera pans right",
    "tilt up": "the camera tilts up",
    "tilt down": "the camera tilts down",
    "zoom in": "the camera zooms in",
    "zoom out": "the camera zooms out",
}
COLOUR_SHARE = 0.12
"""A colour is named when it covers this share of the picture; at most COLOURS of them."""
COLOURS = 3
PICTURE_PX = (64, 36)
"""Width, height at which colours are counted."""
BLACK_VALUE, GRAY_SATURATION, WHITE_VALUE, DARK_GRAY_VALUE = 40, 40, 215, 100
"""On OpenCV's 8-bit HSV."""
HUES = (
    (8, "red"),
    (22, "orange"),
    (34, "yellow"),
    (80, "green"),
    (98, "cyan"),
    (130, "blue"),
    (150, "purple"),
    (172, "pink"),
    (181, "red"),
)
"""Upper end of the hue, in OpenCV's half degrees."""
BROWN_HUES, BROWN_VALUE = (5, 22), 150
"""Dark orange is called brown."""
NAMES = ("black", "dark gray", "gray", "white", "brown", *dict.fromkeys(name for _, name in HUES))


class AttributeCaptioner:
    """See the module's docstring. Raises StepError `no_track` (the decode pass has left nothing), `damaged_track`."""

    reads: tuple[str, ...] = (
        "clip_id", "source_id", "start_us", "end_us", "media_type", "duration_s", "luma_mean", "blur", "letterbox_top_px",
        "letterbox_bottom_px", "letterbox_left_px", "letterbox_right_px", "motion_proxy", "motion_raft", "camera_move",
    )  # fmt: skip
    resources = Resources(cpus=1, memory_bytes=200_000_000)

    def __init__(self, tracks: Path) -> None:
        self._tracks = tracks

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Caption]:
        return [Caption(sentence(row, dominant_colours(self._track(row)))) for row in rows]

    def _track(self, row: Mapping[str, Any]) -> ClipTrack:
        try:
            return read_clip_track(self._tracks, row["source_id"], row["clip_id"], row["start_us"], row["end_us"], read="keys")
        except FileNotFoundError:
            raise StepError(
                "no_track", f"clip {row['clip_id']}: {self._tracks} holds no track of source {row['source_id']}; run detect_shots again"
            ) from None


def sentence(row: Mapping[str, Any], colours: Sequence[str]) -> str:
    """The caption of a clips row whose dominant colours are given."""
    video = row["media_type"] == "video"
    parts = ["A video" if video else "A still image"]
    if colours:
        parts[0] += f" of mostly {_listed(colours)} tones"
    if row["luma_mean"] is not None:
        parts.append(_word(row["luma_mean"], LIGHT, LIGHT[-1][1]))
    if row["blur"] is not None and not SOFT_BLUR <= row["blur"] <= SHARP_BLUR:
        parts.append("softly focused" if row["blur"] < SOFT_BLUR else "rich in fine detail")
    if video:
        parts += _movement(row)
    parts += _bars(row)
    if video and row["duration_s"] is not None:
        parts.append(f"{row['duration_s']:.3g} seconds long")
    return ", ".join(parts) + "."


def _movement(row: Mapping[str, Any]) -> list[str]:
    speed = row["motion_proxy"] if row["motion_raft"] is None else row["motion_raft"]
    parts = [] if speed is None else [f"with {_word(speed, MOVEMENT, FASTEST)}"]
    if row["camera_move"] is not None:
        parts.append(CAMERA[row["camera_move"]])
    return parts


def _bars(row: Mapping[str, Any]) -> list[str]:
    flat = bool(row["letterbox_top_px"] or row["letterbox_bottom_px"])
    upright = bool(row["letterbox_left_px"] or row["letterbox_right_px"])
    if flat and upright:
        return ["with black bars all around"]
    if flat:
        return ["with black bars above and below"]
    return ["with black bars at the sides"] if upright else []


def _word(value: float, edges: Sequence[tuple[float, str]], last: str) -> str:
    return next((word for edge, word in edges if value < edge), last)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def dominant_colours(track: ClipTrack) -> tuple[str, ...]:
    """Names of the colours that cover most of the clip's key frames without their bars, widest first; at least one where there
    is a key frame."""
    counts = np.zeros(len(NAMES), np.int64)
    for key in track.keys:
        counts += np.bincount(colour_names(_active_picture(key, track)).ravel(), minlength=len(NAMES))
    if not counts.any():
        return ()
    order = np.argsort(-counts, kind="stable")[:COLOURS]
    shares = counts / counts.sum()
    return tuple(NAMES[index] for place, index in enumerate(order) if place == 0 or shares[index] >= COLOUR_SHARE)


def _active_picture(key: KeyFrame, track: ClipTrack) -> np.ndarray:
    """H W 3 uint8 BGR at PICTURE_PX, the clip's bars cut off. Decoded at an eighth of the size, which JPEG does for nothing."""
    picture = cv2.imdecode(np.frombuffer(key.jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    if picture is None:
        raise StepError(
            "damaged_track", f"the key frame at {key.time_us} us of source {track.facts.source_id} is no JPEG; run detect_shots again"
        )
    height, width = picture.shape[:2]
    top, bottom, left, right = track.bars_px or (0, 0, 0, 0)
    down, across = height / track.facts.height, width / track.facts.width
    top, bottom, left, right = (int(np.ceil(bar * scale)) for bar, scale in ((top, down), (bottom, down), (left, across), (right, across)))
    if top + bottom < height and left + right < width:
        picture = picture[top : height - bottom, left : width - right]
    return cv2.resize(picture, PICTURE_PX, interpolation=cv2.INTER_AREA)


def colour_names(picture: np.ndarray) -> np.ndarray:
    """H W 3 uint8 BGR -> H W int64, places in NAMES."""
    hue, saturation, value = (plane.astype(np.int64) for plane in cv2.split(cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)))
    hue_names = np.array([NAMES.index(name) for _, name in HUES])
    names: np.ndarray = hue_names[np.searchsorted([edge for edge, _ in HUES], hue, side="right")]
    names[(hue >= BROWN_HUES[0]) & (hue < BROWN_HUES[1]) & (value < BROWN_VALUE)] = NAMES.index("brown")
    gray = saturation < GRAY_SATURATION
    names[gray] = NAMES.index("gray")
    names[gray & (value < DARK_GRAY_VALUE)] = NAMES.index("dark gray")
    names[gray & (value >= WHITE_VALUE)] = NAMES.index("white")
    names[value < BLACK_VALUE] = NAMES.index("black")
    return names
