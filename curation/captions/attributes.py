"""Backend `attributes`: an honest sentence from measured facts. The embedded default; it says what was measured, no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.captions.caption import Caption, CaptionRequest
from curation.captions.prompt import prompt_hash
from curation.config import CaptionConfig
from curation.scores.aesthetic import key_pictures
from curation.step import Lineage, StepError
from curation.tracks import read_clip_track

MODEL = "attributes/1"
NEEDED = ("duration_s", "media_type", "width", "height", "luma_mean", "motion_proxy", "camera_move", "blur")
"""Columns of `clips` that the sentence is made of."""

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
    """Says length, size, orientation, brightness, sharpness, dominant colours, amount of motion and camera move."""

    def __init__(self, config: CaptionConfig, tracks: Path) -> None:
        self._tracks = tracks
        self.lineage = attributes_lineage(config)

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return [self._describe(request) for request in requests]

    def _describe(self, request: CaptionRequest) -> Caption | StepError:
        facts = request.facts
        track = read_clip_track(self._tracks, request.source_id, request.clip_id, request.start_us, request.end_us, read="keys")
        try:
            colours = dominant_colours(np.concatenate([_small(picture) for picture in key_pictures(track)]))
        except StepError as error:
            return error
        return Caption(sentence(facts, colours), MODEL, prompt_hash(""), "stop")


def attributes_lineage(config: CaptionConfig) -> Lineage:
    """What made the captions of this backend."""
    del config  # no setting changes the sentence
    return Lineage("caption", "attributes", "1", MODEL)


def sentence(facts: dict[str, Any], colours: list[str]) -> str:
    """The sentence, from columns of `clips` and colour words. Unknown facts are left out."""
    image = facts["media_type"] == "image"
    shape = "square" if facts["width"] == facts["height"] else "wide" if facts["width"] > facts["height"] else "tall"
    start = f"A {shape} photograph" if image else f"A {shape} video of {facts['duration_s']:.3g} seconds"
    light = _word(facts.get("luma_mean"), ((50, "dark"), (95, "dim"), (150, "evenly lit"), (195, "bright"), (256, "very bright")))
    detail = _word(facts.get("blur"), ((30, "soft"), (400, "moderately detailed"), (1500, "detailed"), (float("inf"), "richly detailed")))
    looks = [word for word in (light, detail) if word]
    text = start + (f", {' and '.join(looks)}" if looks else "")
    if colours:
        text += f", in {_listed(colours)}"
    if image:
        return text + "."
    motion = _word(
        facts.get("motion_proxy"),
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
    return [str(names[i]) for i in order if counts[i] >= 0.12 * len(words)][:3]


def _small(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).reshape(-1, 3)


def _word(value: float | None, scale: tuple[tuple[float, str], ...]) -> str | None:
    """The word of the first step of the scale that lies above the value; None for an unknown value."""
    return None if value is None else next(word for upper, word in scale if value < upper)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
