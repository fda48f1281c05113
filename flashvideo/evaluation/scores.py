"""What a video's scoring starts from and ends in: facts, prompt, score. Light (no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from flashvideo.evaluation.results import Record


class ClipFacts(NamedTuple):
    """What is known of a clip before its frames are."""

    frames: int
    frame_rate_hz: float
    height: int
    width: int


class ClipScore(Record):
    """What one dimension says of one clip (or whole video)."""

    value: float | None
    """The clip's score, 0-1 in most dimensions. None: the rule gives none (colour without the object)."""
    total: float
    count: int
    """Sum and number of the dimension's items (frame pairs, frames, ...), for means over items of all videos."""
    extras: dict[str, Any] = {}
    """The reference's further fields, e.g. success_frame_count."""


class Prompt(Record):
    """A short prompt and what its dimensions look for."""

    text: str
    dimensions: tuple[str, ...]
    auxiliary: dict[str, Any] = {}
    """VBench's auxiliary_info: dimension -> what to look for."""


def mean_score(values: Iterable[float], **extras: Any) -> ClipScore:
    """The mean over items, with their sum and number. Raises ValueError for none."""
    items = [float(value) for value in values]
    if not items:
        raise ValueError("there is no item to average")
    total = sum(items)
    return ClipScore(value=total / len(items), total=total, count=len(items), extras=extras)


def single_score(value: float, **extras: Any) -> ClipScore:
    """A score of the clip as a whole."""
    return ClipScore(value=float(value), total=float(value), count=1, extras=extras)


def look_for(prompt: Prompt, dimension: str, *keys: str) -> dict[str, str]:
    """The auxiliary entry of a dimension, as flat text by key. Raises ValueError naming what is missing."""
    entry: Any = prompt.auxiliary.get(dimension)
    if isinstance(entry, dict) and isinstance(entry.get(dimension), dict):
        entry = entry[dimension]  # VBench nests scene and spatial_relationship once more
    if not isinstance(entry, dict) or any(not isinstance(entry.get(key), str) for key in keys):
        raise ValueError(f'"{prompt.text}": {dimension} needs auxiliary_info.{dimension} with {", ".join(keys)}')
    return {key: entry[key] for key in keys}
