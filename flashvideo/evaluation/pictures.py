"""Pictures of the best and worst clips of each dimension, for the report: made once, then kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flashvideo.evaluation.clip_plan import ClipSpan, clip_seconds, plan_clips
from flashvideo.evaluation.protocol import VBenchProtocol
from flashvideo.evaluation.suite import VideoItem
from flashvideo.evaluation.vbench_results import DimensionOutcome, Extreme, VBenchResults
from flashvideo.evaluation.video_frames import decoded_frames, probe
from flashvideo.whole_files import writing

SHOWN_CLIPS = 3
"""Best, and worst, of a dimension."""
PICTURE_WIDTH_PX = 200
"""Of each frame in a strip."""
FOLDER = "pictures"


def with_extremes(results: VBenchResults, items: Sequence[VideoItem], hashes: Mapping[str, str], out: Path) -> VBenchResults:
    """The results with each dimension's best and worst clips, whose pictures are drawn where `out` lacks them.

    `hashes`: path -> sha256. A dimension whose clips all have one value has no best and no worst.
    """
    by_name = {(item.name, item.prompt.text): item for item in items}
    protocol = VBenchProtocol.model_validate({key: value for key, value in results.protocol.items() if key != "digest"})
    chosen = [one for outcome in results.dimensions for one in _chosen(outcome)]
    wanted: dict[Path, tuple[VideoItem, set[str]]] = {}
    named = []
    for one in chosen:
        item = by_name[one.video, one.prompt]
        wanted.setdefault(item.path, (item, set()))[1].add(one.clip)
        named.append(one.model_copy(update={"picture": _name(hashes[str(item.path)], one.clip)}))
    for item, clips in wanted.values():
        _draw(item, clips, protocol, hashes[str(item.path)], out)
    return results.model_copy(update={"extremes": tuple(named)})


def _chosen(outcome: DimensionOutcome) -> Iterator[Extreme]:
    clips = [(value, video.video, video.prompt, clip) for video in outcome.videos for clip, value in video.clips.items()]
    clips.sort()
    if not clips or clips[0][0] == clips[-1][0]:
        return
    shown = min(SHOWN_CLIPS, len(clips) // 2)
    for kind, part in (("worst", clips[:shown]), ("best", clips[::-1][:shown])):
        for value, video, prompt, clip in part:
            yield Extreme.model_validate(
                {
                    "dimension": outcome.dimension,
                    "kind": kind,
                    "video": video,
                    "prompt": prompt,
                    "clip": clip,
                    "value": value,
                    "picture": "",
                }
            )


def _name(sha256: str, clip: str) -> str:
    return f"{FOLDER}/{sha256[:16]}-{clip}.jpg"


def _draw(item: VideoItem, clips: set[str], protocol: VBenchProtocol, sha256: str, out: Path) -> None:
    """One strip a clip; decodes the video only where one is absent, and only as far as is needed."""
    absent = {clip for clip in clips if not (out / _name(sha256, clip)).is_file()}
    if not absent:
        return
    facts = probe(item.path)
    spans = (
        (ClipSpan("full", 0, facts.frames),)
        if protocol.suite == "vbench"
        else plan_clips(facts.frames, facts.frame_rate_hz, clip_seconds(item.prompt.dimensions), protocol.faithful)
    )
    places = {span.name: (span.start, (span.start + span.stop - 1) // 2, span.stop - 1) for span in spans if span.name in absent}
    needed = {index for indices in places.values() for index in indices}
    small = {}
    for index, frame in enumerate(decoded_frames(item.path)):
        if index in needed:
            small[index] = thumbnail(frame)
        if index == max(needed):
            break
    for clip, indices in places.items():
        write_jpeg(out / _name(sha256, clip), np.concatenate([small[index] for index in indices], axis=1))


def thumbnail(frame: np.ndarray, width_px: int = PICTURE_WIDTH_PX) -> np.ndarray:
    """uint8 H W 3, that wide, Lanczos."""
    from PIL import Image

    height = math.ceil(frame.shape[0] * width_px / frame.shape[1])
    return np.asarray(Image.fromarray(frame).resize((width_px, height), Image.Resampling.LANCZOS))


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Written beside and renamed."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as part:
        Image.fromarray(picture).save(part, format="JPEG", quality=88)
