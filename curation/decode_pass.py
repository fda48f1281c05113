"""The one decode pass over a source: cuts, clips, sampled frames, key frames, hashes, health, thumbnails.

Runs in a child process (`curation.supervised`); imports av, numpy, cv2, pyarrow and PySceneDetect only. Frames go
by once, in order; what is kept is bounded by one clip, whatever the length of the source. The work per frame is
small on purpose: planes are read in place, the cut signal looks at a 240 px picture, and only every 1/8 s a
frame is brought to 360 px and stored.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from curation.passes import ClipFacts, PassResult, PassTask
from curation.shots import ClipCutter, CutDetector, Span, clip_id
from curation.tracks import VERSION as TRACK_VERSION
from curation.tracks import TrackFacts, TrackWriter, pass_path, thumbnail_path, track_exists
from curation.versions import PASS_VERSION
from curation.video import (
    BLACK_LUMA,
    TIME_TOLERANCE_US,
    Decoded,
    Geometry,
    MediaError,
    Picture,
    decode_media,
    frame_geometry,
    open_media,
    picture_of,
    resize,
)

CUT_SIGNAL_PX = 240
"""Long side, at least, of the picture that the cut detectors see (PySceneDetect itself goes down to about 256)."""
KEY_CANDIDATES = 24
"""Frames held per clip to choose key frames from."""
JPEG_QUALITY, THUMBNAIL_QUALITY, THUMBNAIL_PX = 95, 85, 384
BAR_LUMA = 24.0
"""Full-range luma that no pixel of a bar reaches (noise of encoded black stays under it)."""
HASH_PX = 32
REPEAT_MEAN, REPEAT_MAX = 0.2, 10
"""A frame repeats the one before when its small luma differs by less on average and nowhere by more (0-255). Frames that
a re-encode repeats measure up to 0.17 and 4; the slowest real moves of the corpus 1.0 and 24."""

cv2.setNumThreads(1)


@dataclass
class _Candidate:
    """A frame that may become a key frame, at a key frame's size (chroma as it came where it is smaller): two thirds of a 1080p frame."""

    time_us: int
    corrupt: bool
    picture: Picture
    bars_px: tuple[int, int, int, int] | None
    """Of the full picture, upright."""


def run_pass(task: PassTask) -> PassResult:
    """Decodes the source once and writes its track. Raises MediaError when not one frame can be decoded.

    A pass by equal settings that is finished, but whose result a killed job did not commit, is read and not made again.
    """
    found = finished_pass(task)
    return _run(task) if found is None else found


def finished_pass(task: PassTask) -> PassResult | None:
    """What a pass by these settings found, where its track is whole; else None."""
    if not track_exists(task.tracks, task.source_id):
        return None
    path = pass_path(task.tracks, task.source_id)
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if stored.get("settings") != _settings_hash(task):
        return None
    result = stored["result"]
    return PassResult(**{**result, "clips": [ClipFacts(**clip) for clip in result["clips"]]})


def _settings_hash(task: PassTask) -> str:
    """Everything that a track of given bytes depends on."""
    decode = task.decode.model_dump(mode="json", exclude={"deadline_s", "memory_bytes", "attempts"})
    facts = [PASS_VERSION, TRACK_VERSION, task.media_type, task.frame_rate_hz, decode, task.shots.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _run(task: PassTask) -> PassResult:
    with open_media(task.uri) as (container, stream):
        events = decode_media(container, stream, task.decode.threads)
        early: list[Decoded] = []
        for first in events:
            early.append(first)
            if first.frame is not None:
                break
        if not early or early[-1].frame is None:
            raise MediaError("no_frames", f"{task.uri}: no picture could be decoded ({len(early)} packets refused)")
        frame = early[-1].frame
        geometry = frame_geometry(frame, stream)
        facts = _track_facts(task, frame, geometry)
        with TrackWriter(task.tracks, facts) as writer:
            work = _Pass(task, facts, geometry, writer)
            for event in _chain(early, events):
                work.push(event)
            result = work.finish()
            writer.found = {"settings": _settings_hash(task), "result": asdict(result)}
            return result


def _chain(early: list[Decoded], rest: Iterator[Decoded]) -> Iterator[Decoded]:
    yield from early
    yield from rest


def _track_facts(task: PassTask, frame: av.VideoFrame, geometry: Geometry) -> TrackFacts:
    width, height = geometry.display_size(frame.width, frame.height)
    scale = task.decode.motion_short_side_px / min(width, height)
    picture = picture_of(frame)
    return TrackFacts(
        source_id=task.source_id,
        width=width,
        height=height,
        picture_width=max(2, round(width * scale / 2) * 2),
        picture_height=max(2, round(height * scale / 2) * 2),
        full_range=picture.full_range,
        kr=picture.kr_kb[0],
        kb=picture.kr_kb[1],
        period_us=round(1e6 / task.frame_rate_hz),
    )


class _Pass:
    """State of one pass. Frames are measured at once; whether a shot begins with one is known `lag` frames later."""

    def __init__(self, task: PassTask, facts: TrackFacts, geometry: Geometry, writer: TrackWriter) -> None:
        self._task, self._facts, self._geometry, self._writer = task, facts, geometry, writer
        self._cuts = CutDetector(task.shots, task.frame_rate_hz)
        self._cutter = ClipCutter(task.shots)
        self._waiting: deque[dict[str, Any]] = deque()  # rows whose cut flag is not known yet, in order
        self._candidates: deque[_Candidate] = deque()
        stride_s = max(1 / task.decode.sample_rate_hz, task.shots.clip_duration_s / KEY_CANDIDATES)
        self._sample_us = round(1e6 / task.decode.sample_rate_hz)
        self._candidate_us = -(-round(stride_s * 1e6) // self._sample_us) * self._sample_us
        self._next_sample_us: int | None = None
        self._next_candidate_us = 0
        self._last_us: int | None = None
        self._last_small: np.ndarray | None = None
        self._times_in_clip = 0
        self._decoded = self._corrupt = 0
        self._clips: list[ClipFacts] = []

    def push(self, event: Decoded) -> None:
        """Takes the next event of the decoder."""
        self._corrupt += event.corrupt
        if event.frame is None or (self._last_us is not None and event.time_us <= self._last_us):
            # No picture, or one whose time does not move on: damage, kept as a row without a place in any score.
            self._corrupt += not event.corrupt
            time_us = event.time_us if self._last_us is None else max(event.time_us, self._last_us)
            self._waiting.append(_row(time_us, corrupt=True, refused=True))
            self._decoded += event.frame is not None
            return
        self._decoded += 1
        picture = picture_of(event.frame)
        row, small = self._measure(event, picture)
        self._sample(event, picture, row)
        self._waiting.append(row)
        self._last_us = event.time_us
        answer = self._cuts.push(small, row["repeat"])
        if answer is not None:
            self._settle(answer)

    def finish(self) -> PassResult:
        """Takes the end of the source."""
        for answer in self._cuts.flush():
            self._settle(answer)
        while self._waiting:
            self._writer.frame(self._waiting.popleft())
        assert self._last_us is not None
        end_us = self._last_us + self._facts.period_us
        if self._task.media_type == "image":
            self._clip(Span(0, 0, 0))
        else:
            span = self._cutter.finish(end_us)
            if span is not None:
                self._clip(span)
        return PassResult(self._decoded, self._corrupt, self._cutter.cuts_us, self._clips, end_us)

    def _measure(self, event: Decoded, picture: Picture) -> tuple[dict[str, Any], np.ndarray]:
        """The frame's row, and its small picture for the cut signal (blue green red, not rotated: cuts do not care)."""
        assert event.frame is not None
        planes = _shrink(picture)
        size = planes[0].shape[1], planes[0].shape[0]
        small = Picture(planes[0], (planes[1], planes[2]), picture.full_range, picture.kr_kb)
        luma = planes[0]
        last, self._last_small = self._last_small, luma
        change = None
        if last is not None and last.shape == luma.shape:
            change = float(cv2.norm(luma, last, cv2.NORM_L1)) / luma.size
            change = change if picture.full_range else change * (255 / 219)
        black = BLACK_LUMA if picture.full_range else 16 + BLACK_LUMA * 219 / 255
        share = float(np.count_nonzero(luma < black)) / luma.size
        repeat = change is not None and change < REPEAT_MEAN and cv2.norm(luma, last, cv2.NORM_INF) <= REPEAT_MAX
        row = _row(event.time_us, corrupt=event.corrupt, refused=False)
        row |= {"repeat": repeat, "change": change, "luma": float(picture.luma_to_full_range(cv2.mean(luma)[0])), "black_share": share}
        return row, small.to_bgr(*size)

    def _sample(self, event: Decoded, picture: Picture, row: dict[str, Any]) -> None:
        """Every 1/8 s: the picture at 360 px, its sharpness; every few of those a candidate for key frames."""
        if self._next_sample_us is None:
            self._next_sample_us = self._next_candidate_us = event.time_us
        if event.time_us < self._next_sample_us - TIME_TOLERANCE_US:
            return
        behind = max(0, event.time_us + TIME_TOLERANCE_US - self._next_sample_us)
        self._next_sample_us += (behind // self._sample_us + 1) * self._sample_us
        width, height = self._facts.picture_width, self._facts.picture_height
        turned = self._geometry.rotation_deg in (90, 270)
        size = (height, width) if turned else (width, height)
        luma = self._geometry.rotate(resize(picture.luma, *size))
        chroma = [self._geometry.rotate(resize(plane, size[0] // 2, size[1] // 2)) for plane in picture.chroma]
        row["picture"] = b"".join(plane.tobytes() for plane in (luma, *chroma))
        row["blur"] = _laplacian_variance(luma) * (1.0 if picture.full_range else (255 / 219) ** 2)
        if event.time_us >= self._next_candidate_us - TIME_TOLERANCE_US:
            self._next_candidate_us = self._next_sample_us - self._sample_us + self._candidate_us
            self._candidates.append(self._candidate(event, picture))

    def _candidate(self, event: Decoded, picture: Picture) -> _Candidate:
        scale = min(1.0, self._task.decode.key_frame_short_side_px / min(self._facts.width, self._facts.height))
        width, height = max(1, round(self._facts.width * scale)), max(1, round(self._facts.height * scale))
        size = (height, width) if self._geometry.rotation_deg in (90, 270) else (width, height)
        blue, red = (resize(plane, *size) if plane.shape[1] > size[0] else plane.copy() for plane in picture.chroma)
        small = replace(picture, luma=_reduced(picture.luma, *size), chroma=(blue, red))
        return _Candidate(event.time_us, event.corrupt, small, find_bars(picture, self._geometry, self._facts.width, self._facts.height))

    def _settle(self, is_cut: bool) -> None:
        """The oldest waiting frame is known now: write its row, and the clip that it ends."""
        while self._waiting[0]["refused"]:
            self._writer.frame(self._waiting.popleft())
        row = self._waiting.popleft()
        row["cut"] = is_cut
        if self._task.media_type != "image":
            before = self._cutter.start_us
            ended = self._cutter.push(row["time_us"], is_cut)
            if ended is not None:
                self._clip(ended)
            if self._cutter.start_us != before:
                self._times_in_clip = 0
                while self._candidates and self._candidates[0].time_us < row["time_us"]:
                    self._candidates.popleft()
        self._times_in_clip += 1
        self._writer.frame(row)

    def _clip(self, span: Span) -> None:
        identity = clip_id(self._task.source_id, span.start_us, span.end_us)
        self._clips.append(ClipFacts(identity, span.start_us, span.end_us, span.shot, self._times_in_clip))
        rows, thumbnail = [], None
        chosen = self._choose(span)
        for place, candidate in enumerate(chosen):
            bgr = self._geometry.rotate(candidate.picture.to_bgr(*candidate.picture.luma.shape[::-1]))
            rows.append(
                {
                    "clip_id": identity,
                    "time_us": candidate.time_us,
                    "jpeg": cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes(),
                    "bars_px": candidate.bars_px,
                    "hash": perceptual_hash(bgr).to_bytes(8, "big"),
                }
            )
            if place == len(chosen) // 2:
                thumbnail = bgr
        self._writer.keys(rows)
        if thumbnail is not None:
            _write_thumbnail(thumbnail_path(self._task.tracks, identity), thumbnail)

    def _choose(self, span: Span) -> list[_Candidate]:
        """Candidates nearest to the wanted places of the clip, each once; damaged ones only where there is no other."""
        if self._task.media_type == "image":
            return list(self._candidates)[:1]
        inside = [c for c in self._candidates if span.start_us <= c.time_us < span.end_us]
        inside = [c for c in inside if not c.corrupt] or inside
        chosen: dict[int, _Candidate] = {}
        for share in self._task.decode.key_frame_positions:
            wanted = span.start_us + share * (span.end_us - span.start_us)
            if inside:
                nearest = min(inside, key=lambda c: (abs(c.time_us - wanted), c.time_us))
                chosen[nearest.time_us] = nearest
        return [chosen[time_us] for time_us in sorted(chosen)]


def _shrink(picture: Picture) -> list[np.ndarray]:
    """The planes at CUT_SIGNAL_PX or a little more, all of one size.

    Reduced by a whole even factor, in halves where that goes. Where one output line covers eight lines or more, two of them
    are averaged: enough for a picture this small, and most of the plane need not be read.
    """
    height, width = picture.luma.shape
    factor = max(width, height) // CUT_SIGNAL_PX // 2 * 2
    if factor < 2 or min(width, height) < 2 * factor:
        return [resize(plane, width, height) for plane in (picture.luma, *picture.chroma)]
    columns, rows = width // factor, height // factor
    planes = []
    for plane in (picture.luma, *picture.chroma):
        across, along = max(1, factor * plane.shape[1] // width), max(1, factor * plane.shape[0] // height)
        lines = plane[: rows * along : along // 2 if along >= 8 else 1, : columns * across]
        planes.append(resize(_halved(lines, columns, rows), columns, rows))
    return planes


def _halved(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Halved as often as it stays at least this large: the one area reduction for which OpenCV has quick code."""
    while picture.shape[1] >= 2 * width and picture.shape[0] >= 2 * height:
        picture = cv2.resize(picture, (picture.shape[1] // 2, picture.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return picture


def _reduced(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """For pictures to look at: halved, then linear, which below a factor of 2 leaves out no pixel and costs a quarter of area."""
    picture = _halved(picture, width, height)
    shrinks = picture.shape[1] >= width and picture.shape[0] >= height
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR) if shrinks else resize(picture, width, height)


def _laplacian_variance(luma: np.ndarray) -> float:
    """Of H W uint8. From sums of squares: OpenCV's meanStdDev takes three times as long."""
    edges = cv2.Laplacian(luma, cv2.CV_16S)
    return float(cv2.norm(edges, cv2.NORM_L2)) ** 2 / edges.size - float(cv2.mean(edges)[0]) ** 2


def _row(time_us: int, corrupt: bool, refused: bool) -> dict[str, Any]:
    return {
        "time_us": time_us, "corrupt": corrupt, "refused": refused, "cut": False, "repeat": False,
        "change": None, "luma": None, "black_share": None, "blur": None, "picture": None,
    }  # fmt: skip


def find_bars(picture: Picture, geometry: Geometry, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Black bars at the top, bottom, left and right of the display picture (width x height px); None: all is black.

    A line belongs to a bar when none of its pixels is brighter than BAR_LUMA.
    """
    limit = BAR_LUMA if picture.full_range else 16 + BAR_LUMA * 219 / 255
    luma = picture.luma
    rows, columns = luma.max(axis=1), luma.max(axis=0)
    if rows.max() < limit:
        return None
    top, bottom = _dark_ends(rows < limit)
    left, right = _dark_ends(columns < limit)
    turns = geometry.rotation_deg // 90
    sides = [top, right, bottom, left]  # clockwise; a quarter turn clockwise brings the left side to the top
    sides = sides[-turns:] + sides[:-turns] if turns else sides
    stored = (luma.shape[1], luma.shape[0]) if turns % 2 else (luma.shape[0], luma.shape[1])
    across, along = height / stored[0], width / stored[1]
    return round(sides[0] * across), round(sides[2] * across), round(sides[3] * along), round(sides[1] * along)


def _dark_ends(dark: np.ndarray) -> tuple[int, int]:
    bright = np.flatnonzero(~dark)
    return int(bright[0]), int(len(dark) - 1 - bright[-1])


def perceptual_hash(bgr: np.ndarray) -> int:
    """64-bit DCT hash: signs of the 8 x 8 lowest frequencies (the mean left out) against their median."""
    grey = resize(_halved(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), 2 * HASH_PX, 2 * HASH_PX), HASH_PX, HASH_PX)
    low = cv2.dct(grey.astype(np.float32))[:8, :8].reshape(-1)
    bits = low > np.median(low[1:])
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _write_thumbnail(path: Path, bgr: np.ndarray) -> None:
    scale = min(1.0, THUMBNAIL_PX / max(bgr.shape[:2]))
    small = _reduced(bgr, max(1, round(bgr.shape[1] * scale)), max(1, round(bgr.shape[0] * scale)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])[1].tobytes())
