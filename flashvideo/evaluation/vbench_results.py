"""A whole VBench evaluation as one record: protocol, 16 dimensions with intervals, totals, problems, videos. Light."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from flashvideo.evaluation.aggregation import Part, Scored, dimension_score, video_parts
from flashvideo.evaluation.confidence import bootstrap, published_rates
from flashvideo.evaluation.fusion import MappingTable
from flashvideo.evaluation.protocol import VBenchProtocol
from flashvideo.evaluation.published import SOURCE
from flashvideo.evaluation.results import Record, table_1_rows
from flashvideo.evaluation.score_store import VideoScore
from flashvideo.evaluation.suite import Problem, VideoItem
from flashvideo.evaluation.totals import DIMENSIONS, totals

VBENCH_RESULTS_FILE = "vbench_results.json"
MISSING_NOTE = " dimensions are missing, so there is no total; the reference would count them as 0"


class VideoValue(Record):
    """One video in one dimension, 0-1."""

    video: str
    prompt: str
    sample: int
    value: float
    clips: dict[str, float]
    extras: dict[str, dict[str, Any]] = {}
    """Clip -> the reference's further fields."""


class DimensionOutcome(Record):
    """One dimension, 0-1."""

    dimension: str
    score: float | None
    """None: nothing could be scored; `reason` says why."""
    low: float | None = None
    high: float | None = None
    """95 % bootstrap over prompts; None for a single prompt."""
    metric: str = ""
    """Rule version and networks."""
    stand_in: bool = False
    imported: str = ""
    """File that the score was read from, or the reference evaluator that made it."""
    reference: float | None = None
    """The reference evaluator's own score of the same videos, where it was asked."""
    corrected: float | None = None
    """Of the same videos without the reference's quirks, where that is stored too; no total is made of it."""
    last_frame: float | None = None
    """Appearance style of the clips' last frames: what the reference gives that runs as several processes."""
    reason: str = ""
    videos: tuple[VideoValue, ...] = ()


class Extreme(Record):
    """One of a dimension's best or worst clips."""

    dimension: str
    kind: Literal["best", "worst"]
    video: str
    prompt: str
    clip: str
    value: float
    picture: str
    """File beside vbench_results.json: first, middle and last frame."""


class VBenchResults(Record):
    """vbench_results.json."""

    protocol: dict[str, Any]
    """VBenchProtocol.described()."""
    dimensions: tuple[DimensionOutcome, ...]
    totals: dict[str, Any]
    """flashvideo.evaluation.totals.Totals."""
    intervals: dict[str, tuple[float, float]]
    """Of total, quality and semantic, percent, where all 16 are there."""
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    extremes: tuple[Extreme, ...] = ()
    published: dict[str, Any] = {}
    """The paper's Table 1, to stand beside (flashvideo.evaluation.published)."""

    def of(self, dimension: str) -> DimensionOutcome:
        return next(one for one in self.dimensions if one.dimension == dimension)


def assemble(
    protocol: VBenchProtocol,
    items: Sequence[VideoItem],
    stored: Callable[[VideoItem, str], VideoScore | None],
    tables: Mapping[str, MappingTable],
    absent: Mapping[str, str],
    problems: Iterable[Problem] = (),
) -> VBenchResults:
    """Everything that the store holds for the items. `absent`: dimension -> why it was not scored at all."""
    parts: dict[str, list[Part]] = {}
    outcomes = []
    found_problems = list(problems)
    for name in DIMENSIONS:
        scored = [Scored(item, score) for item in items if name in item.dimensions and (score := stored(item, name)) is not None]
        if not scored:
            reason = absent.get(name) or ("no video" if not any(name in item.dimensions for item in items) else "no video could be scored")
            outcomes.append(DimensionOutcome(dimension=name, score=None, reason=reason))
            continue
        parts[name], more = video_parts(name, scored, protocol, tables)
        found_problems += more
        outcomes.append(_outcome(name, scored, parts[name]))
    intervals = bootstrap(parts)
    several = {name for name, found in parts.items() if len({part.prompt for part in found}) > 1}
    outcomes = [one.model_copy(update=_bounds(intervals[one.dimension])) if one.dimension in several else one for one in outcomes]
    return VBenchResults(
        protocol=protocol.described(),
        dimensions=tuple(outcomes),
        totals=asdict(totals({one.dimension: one.score for one in outcomes if one.score is not None})),
        intervals={
            name: tuple(intervals[name])
            for name in ("total", "quality", "semantic")
            if name in intervals and all(map(math.isfinite, intervals[name]))
        },
        problems=tuple(sorted(found_problems, key=lambda one: (one.kind, one.item, one.message))),
        notes=tuple(_notes(protocol, outcomes)),
        published={"source": SOURCE, "table_1": table_1_rows(), "rates": published_rates()},
    )


def with_corrected(
    results: VBenchResults,
    protocol: VBenchProtocol,
    items: Sequence[VideoItem],
    stored: Callable[[VideoItem, str], VideoScore | None],
    corrected_score: Callable[[VideoItem, str], VideoScore | None],
    tables: Mapping[str, MappingTable],
) -> VBenchResults:
    """The results with the scores under `protocol`, which has no quirks, beside their own; totals stay.

    `stored`, `corrected_score`: a video's score under the results' protocol and under `protocol`. A dimension of which a scored
    video is not scored there as well gets none, so that both numbers are of the same videos.
    """
    outcomes = []
    for one in results.dimensions:
        name = one.dimension
        videos = [item for item in items if name in item.dimensions and stored(item, name) is not None]
        found = [Scored(item, score) for item in videos if (score := corrected_score(item, name)) is not None]
        corrected = None
        if found and len(found) == len(videos):
            corrected = dimension_score(video_parts(one.dimension, found, protocol, tables)[0])
        outcomes.append(one.model_copy(update={"corrected": corrected}))
    if all(one.corrected is None for one in outcomes):
        return results
    note = f"corrected: without the reference's quirks (protocol {protocol.digest}); totals are of the faithful scores"
    return results.model_copy(update={"dimensions": tuple(outcomes), "notes": (*results.notes, note)})


def with_imported(results: VBenchResults, scores: Mapping[str, float], origin: str) -> VBenchResults:
    """The results with scores of somebody's file, 0-1, where ours are missing; totals anew, no interval for them."""
    outcomes = tuple(
        one.model_copy(update={"score": scores[one.dimension], "imported": origin, "reason": ""})
        if one.score is None and one.dimension in scores
        else one
        for one in results.dimensions
    )
    taken = [one.dimension for one in outcomes if one.imported == origin]
    note = (f"{len(taken)} dimensions are from {origin} ({', '.join(taken)}), not scored under this protocol",) if taken else ()
    missing = sum(one.score is None for one in outcomes)
    kept = tuple(text for text in results.notes if not text.endswith(MISSING_NOTE)) + note
    if missing:
        kept = (f"{missing} of {len(outcomes)}{MISSING_NOTE}", *kept)
    found = asdict(totals({one.dimension: one.score for one in outcomes if one.score is not None}))
    return results.model_copy(update={"dimensions": outcomes, "totals": found, "notes": kept})


def _outcome(name: str, scored: Sequence[Scored], parts: Sequence[Part]) -> DimensionOutcome:
    score = dimension_score(parts)
    videos = tuple(
        VideoValue(video=part.video, prompt=part.prompt, sample=part.sample, value=part.value, clips=part.clips, extras=part.extras)
        for part in parts
    )
    return DimensionOutcome(
        dimension=name,
        score=score,
        metric=scored[0].score.metric,
        stand_in=any(one.score.stand_in for one in scored),
        last_frame=_last_frame(scored) if name == "appearance_style" else None,
        reason="" if score is not None else "no video counts",
        videos=videos,
    )


def _last_frame(scored: Sequence[Scored]) -> float:
    """Mean over clips; `cur_sim` is the last frame's."""
    values = [float(clip.extras["cur_sim"]) for one in scored for clip in one.score.clips.values()]
    return math.fsum(values) / len(values)


def _bounds(interval: tuple[float, float]) -> dict[str, float]:
    return {"low": interval[0], "high": interval[1]} if all(map(math.isfinite, interval)) else {}


def _notes(protocol: VBenchProtocol, outcomes: Sequence[DimensionOutcome]) -> list[str]:
    missing = [one for one in outcomes if one.score is None]
    fake = [one.dimension for one in outcomes if one.stand_in]
    notes = []
    if missing:
        notes.append(f"{len(missing)} of {len(outcomes)}{MISSING_NOTE}")
    if fake:
        notes.append(f"STAND-IN networks scored {len(fake)} dimensions ({', '.join(fake)}): these numbers mean nothing")
    if protocol.suite == "vbench_long" and protocol.re_encode == "none":
        notes.append("clips are not written again before scoring: not comparable with published VBench-Long rows")
    if not protocol.faithful:
        notes.append("the reference's quirks are corrected: not comparable with published rows")
    if protocol.antialias:
        notes.append("resizing is antialiased where the reference's is not: not comparable with published rows")
    return notes
