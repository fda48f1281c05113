"""From scores of clips to a dimension's score. Light.

Every mean is numerator / denominator with both summed exactly (math.fsum), so the order of videos, shards and resuming
change nothing. The parts are kept by prompt, for the bootstrap.

    vbench       mean over frame pairs or frames of all videos (POOLED), else mean over videos
    vbench_long  mean over all clips, faithful (the reference means to average by video first, but its grouping key is the
                 clip's own path); temporal flickering, and everything when not faithful: mean over videos of clips' means

Source: Vchitect/VBench, vbench2_beta_long/utils.py (reorganize_clips_results), commit 45e79ec.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flashvideo.evaluation.fusion import MappingTable, fuse, fused_fields
from flashvideo.evaluation.protocol import VBenchProtocol
from flashvideo.evaluation.score_store import VideoScore
from flashvideo.evaluation.scores import ClipScore
from flashvideo.evaluation.suite import Problem, VideoItem

POOLED = (
    "subject_consistency",
    "background_consistency",
    "object_class",
    "multiple_objects",
    "spatial_relationship",
    "scene",
    "appearance_style",
)
STATIC_SAMPLES = 5


class Scored(NamedTuple):
    """A video with its stored score."""

    item: VideoItem
    score: VideoScore


class Part(NamedTuple):
    """What one video adds to a dimension's mean."""

    video: str
    prompt: str
    sample: int
    numerator: float
    denominator: float
    value: float
    """The video's own score."""
    clips: dict[str, float]
    extras: dict[str, dict[str, Any]]
    """Clip -> the reference's further fields."""


def video_parts(
    dimension: str, scored: Sequence[Scored], protocol: VBenchProtocol, tables: Mapping[str, MappingTable]
) -> tuple[list[Part], list[Problem]]:
    """One part a video that counts, in order of path. Raises ValueError where fusion lacks its table."""
    ordered = sorted(scored, key=lambda one: str(one.item.path))
    problems: list[Problem] = []
    chosen = {id(one): dict(one.score.clips) for one in ordered}
    if dimension == "temporal_flickering" and protocol.static_filter:
        chosen, problems = _static_clips(ordered)
    fused = protocol.suite == "vbench_long" and protocol.slow_fast and dimension in ("subject_consistency", "background_consistency")
    if fused and dimension not in tables:
        raise ValueError(f"{dimension}: slow-fast fusion needs its mapping table; give the folder of VBench's data, or slow_fast false")
    parts = []
    for one in ordered:
        clips = {name: value for name, clip in chosen[id(one)].items() if (value := clip.value) is not None}
        extras = {name: clip.extras for name, clip in chosen[id(one)].items() if clip.extras}
        if fused:
            table, across = tables[dimension], one.score.across
            extras = {name: fused_fields(value, across, table) for name, value in clips.items()}
            clips = {name: fuse(value, across, table) for name, value in clips.items()}
        part = _part(dimension, one, clips, chosen[id(one)], protocol, extras)
        if part is not None:
            parts.append(part)
    return parts, problems


def _part(
    dimension: str,
    one: Scored,
    clips: dict[str, float],
    raw: dict[str, ClipScore],
    protocol: VBenchProtocol,
    extras: dict[str, dict[str, Any]],
) -> Part | None:
    if not clips:
        return None
    mean = math.fsum(clips.values()) / len(clips)
    if protocol.suite == "vbench":
        if dimension in POOLED:
            numerator, denominator = math.fsum(clip.total for clip in raw.values()), float(sum(clip.count for clip in raw.values()))
        else:
            numerator, denominator = mean, 1.0
    elif protocol.faithful and dimension != "temporal_flickering":
        numerator, denominator = math.fsum(clips.values()), float(len(clips))
    else:
        numerator, denominator = mean, 1.0
    return Part(one.item.name, one.item.prompt.text, one.item.index, numerator, denominator, mean, clips, extras)


def _static_clips(ordered: Sequence[Scored]) -> tuple[dict[int, dict[str, ClipScore]], list[Problem]]:
    """The first 5 static clips of each prompt, in order of path and clip."""
    chosen: dict[int, dict[str, ClipScore]] = {id(one): {} for one in ordered}
    counts: dict[str, int] = {}
    for one in ordered:
        text = one.item.prompt.text
        counts.setdefault(text, 0)
        for name in sorted(one.score.clips):
            clip = one.score.clips[name]
            if clip.extras.get("static") and counts[text] < STATIC_SAMPLES:
                chosen[id(one)][name] = clip
                counts[text] += 1
    few = [
        Problem(kind="static", item=text, message=f'"{text}": {count} of {STATIC_SAMPLES} static videos or clips', fatal=False)
        for text, count in counts.items()
        if count < STATIC_SAMPLES
    ]
    return chosen, few


def dimension_score(parts: Sequence[Part]) -> float | None:
    """The mean; None where nothing counts."""
    denominator = math.fsum(part.denominator for part in parts)
    return math.fsum(part.numerator for part in parts) / denominator if denominator else None
