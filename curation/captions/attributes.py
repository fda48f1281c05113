"""Backend `attributes`: an honest sentence from measured facts. The embedded default; it says what was measured, no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.captions.caption import Caption, CaptionRequest
from curation.captions.frames import read_key_frames
from curation.step import StepError
from curation.tracks import ClipTrack, KeyFrame

MODEL = "attributes/1"
VERSION = "2"
NEEDED = (
    "duration_s", "media_type", "width", "height", "luma_mean", "blur", "letterbox_top_px", "letterbox_bottom_px", "letterbox_left_px",
    "letterbox_right_px", "motion_proxy", "motion_raft", "camera_move",
)  # fmt: skip
"""Columns of `clips` that the sentence is made of."""

_PICTURE_PX = (64, 36)
"""Width, height at which colours are counted."""
_COLOUR_SHARE = 0.12
_HUES = (
    (10, "red"),
    (22, "orange"),
    (34, "yellow"),
    (80, "green"),
    (98, "cyan"),
    (130, "blue"),
    (150, "purple"),
    (172, "pink"),
    (180, "red"),
)
"""Upper edges of OpenCV's hue (0-179) and their words."""
_MOVES = {
    "static": "the camera stands still",
    "pan left": "the camera pans to the left",
    "pan right": "the camera pans to the right",
    "tilt up": "the camera tilts up",
    "tilt down": "the camera tilts down",
    "zoom in": "the camera moves in",
    "zoom out": "the camera moves out",
}


class AttributesCaptioner:
    """Says length, orientation, brightness, sharpness, dominant colours, bars, amount of motion and camera move; no motion word."""

    def __init__(self, tracks: Path) -> None:
        self._tracks = tracks

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return [self._describe(request) for request in requests]

    def _describe(self, request: CaptionRequest) -> Caption | StepError:
        try:
            track = read_key_frames(self._tracks, request)
            pixels = np.concatenate([_small_picture(key, track).reshape(-1, 3) for key in track.keys])
        except StepError as error:
            return error
        return Caption(sentence(request.facts, dominant_colours(pixels)))


def sentence(facts: dict[str, Any], colours: list[str]) -> str:
    """The sentence, from columns of `clips` and colour words. Unknown facts are left out."""
    image = facts["media_type"] == "image"
    shape = "square" if facts["width"] == facts["height"] else "wide" if facts["width"] > facts["height"] else "tall"
    start = f"A {shape} still image" if image else f"A {shape} video of {facts['duration_s']:.3g} seconds"
    light = _word(facts.get("luma_mean"), ((50, "dark"), (95, "dim"), (150, "evenly lit"), (195, "bright"), (256, "very bright")))
    detail = _word(facts.get("blur"), ((30, "soft"), (400, "moderately detailed"), (1500, "detailed"), (float("inf"), "richly detailed")))
    looks = [word for word in (light, detail) if word]
    text = start + (f", {' and '.join(looks)}" if looks else "")
    if colours:
        text += f", in {_listed(colours)}"
    text += _bars(facts)
    if image:
        return text + "."
    motion = _word(
        facts.get("motion_proxy") if facts.get("motion_raft") is None else facts["motion_raft"],
        ((0.3, "almost nothing moves"), (1.1, "there is little motion"), (4.0, "there is moderate motion"), (10.0, "there is much motion"),
         (float("inf"), "there is very fast motion")),
    )  # fmt: skip
    move = _MOVES.get(facts.get("camera_move") or "")
    rest = [part for part in (move, motion) if part]
    return text + (f"; {' and '.join(rest)}." if rest else ".")


def dominant_colours(pixels: np.ndarray) -> list[str]:
    """At most three colour words of RGB pixels (uint8 N 3) that each cover 12 % or more, the largest first."""
    hue, saturation, value = cv2.cvtColor(pixels.reshape(-1, 1, 3), cv2.COLOR_RGB2HSV).reshape(-1, 3).astype(int).T
    words = np.empty(len(hue), dtype=object)
    lower = 0
    for upper, name in _HUES:
        words[(hue >= lower) & (hue < upper)] = name
        lower = upper
    words[(words == "orange") & (value < 150)] = "brown"
    grey = saturation < 40
    words[grey & (value >= 200)] = "white"
    words[grey & (value < 200)] = "grey"
    words[value < 45] = "black"
    names, counts = np.unique(words.astype(str), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-counts[i], names[i]))
    return [str(names[i]) for i in order if counts[i] >= _COLOUR_SHARE * len(words)][:3]


def _bars(facts: dict[str, Any]) -> str:
    flat = bool(facts.get("letterbox_top_px") or facts.get("letterbox_bottom_px"))
    upright = bool(facts.get("letterbox_left_px") or facts.get("letterbox_right_px"))
    where = "all around" if flat and upright else "above and below" if flat else "at the sides"
    return f", with black bars {where}" if flat or upright else ""


def _small_picture(key: KeyFrame, track: ClipTrack) -> np.ndarray:
    """uint8 H W 3 RGB at _PICTURE_PX, the clip's bars cut off. JPEG decodes at an eighth of the size for a fraction of the time."""
    picture = cv2.imdecode(np.frombuffer(key.jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    if picture is None:
        raise StepError("damaged_track", f"the key frame at {key.time_us} us is no JPEG; run detect_shots again")
    height, width = picture.shape[:2]
    bars, scales = track.bars_px or (0, 0, 0, 0), (height / track.facts.height,) * 2 + (width / track.facts.width,) * 2
    top, bottom, left, right = (int(np.ceil(bar * scale)) for bar, scale in zip(bars, scales, strict=True))
    if top + bottom < height and left + right < width:
        picture = picture[top : height - bottom, left : width - right]
    return cv2.cvtColor(cv2.resize(picture, _PICTURE_PX, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def _word(value: float | None, scale: tuple[tuple[float, str], ...]) -> str | None:
    """The word of the first step of the scale that lies above the value; None for an unknown value."""
    return None if value is None else next(word for upper, word in scale if value < upper)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
