"""Videos in, stored scores out: each video is decoded once, frame by frame, for all of its dimensions.

Memory: frames stay uint8 and are shared by the dimensions that keep one, at most the 16 that detectors look at; one
encoder at a time. Scores go to the store video by video, so stopping loses one video, and shards share a folder. Why a
video has no score is stored too, so that it is not decoded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import av
import numpy as np
import torch

from flashvideo.evaluation.clip_plan import ClipSpan, clip_rate_hz, clip_seconds, plan_clips
from flashvideo.evaluation.dimensions.dimension import Dimension, Measurement
from flashvideo.evaluation.large_blocks import return_large_blocks
from flashvideo.evaluation.protocol import VBenchProtocol, file_sha256
from flashvideo.evaluation.rules import Rules
from flashvideo.evaluation.score_store import ScoreStore, VideoScore, metric_version, score_key
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt
from flashvideo.evaluation.suite import Problem, VideoItem
from flashvideo.evaluation.video_frames import ClipWriter, VideoFacts, decoded_frames, encodable, probe
from flashvideo.video_files import VideoFileError

Progress = Callable[[float, int], None]
"""Videos done, with the share of the one under way, and videos in all."""
SAY_EVERY_S = 2.0
"""A minute of 1080p takes many."""


@dataclass
class Tally:
    """What a pass over videos did."""

    scored: int = 0
    """Videos that were decoded."""
    kept: int = 0
    """Videos whose scores were all there."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.scored += other.scored
        self.kept += other.kept
        self.problems += other.problems


class Evaluator:
    """Scores videos under one protocol.

    `expected_frames`: a video with another number is left out and named; None takes any. `hashes`: another evaluator's.
    """

    def __init__(
        self,
        protocol: VBenchProtocol,
        rules: Rules,
        store: ScoreStore,
        expected_frames: int | None = None,
        hashes: dict[str, str] | None = None,
    ) -> None:
        return_large_blocks()
        self.protocol, self.rules, self.store = protocol, rules, store
        self._expected_frames = expected_frames
        self._metrics = {name: metric_version(rule, rules.across.get(name)) for name, rule in rules.dimensions.items()}
        self.hashes: dict[str, str] = {} if hashes is None else hashes
        """sha256 of every file that was read for it, by path."""

    def evaluate(self, items: Sequence[VideoItem], shard: int = 0, shards: int = 1, progress: Progress | None = None) -> Tally:
        """Scores every `shards`-th video from `shard` on that the store lacks. A bad video is a problem, not an error."""
        if not 0 <= shard < shards:
            raise ValueError(f"shard {shard} of {shards}: count from 0")
        mine, tally = items[shard::shards], Tally()
        for done, item in enumerate(mine):
            if progress is not None:
                progress(done, len(mine))
            self._evaluate(item, tally, None if progress is None else partial(_within, progress, done, len(mine)))
        if progress is not None:
            progress(len(mine), len(mine))
        return tally

    def _evaluate(self, item: VideoItem, tally: Tally, tell: Callable[[float], None] | None = None) -> None:
        """One video, unless everything about it is stored. Counts it in the tally."""
        lacking: list[str] = []
        try:
            lacking = self.lacking(item)
            if lacking:
                self._score(item, lacking, tell)
                tally.scored += 1
            else:
                tally.kept += 1
        except _OtherFrames as error:
            tally.problems.append(Problem(kind="frames", item=item.path.name, message=str(error)))
        except VideoFileError as error:
            self._fail(item, lacking, Problem(kind="unreadable", item=item.path.name, message=str(error)))
        except OSError as error:  # not of its bytes, so not stored
            tally.problems.append(Problem(kind="unreadable", item=item.path.name, message=f"{item.path.name}: {error.strerror}"))
            return
        except ValueError as error:
            self._fail(item, lacking, Problem(kind="video", item=item.path.name, message=f"{item.path.name}: {error}"))
        tally.problems += self.failures([item])

    def lacking(self, item: VideoItem) -> list[str]:
        """The dimensions of which nothing is stored, neither a score nor why there is none. Raises OSError."""
        return [name for name in self._names(item) if self._stored(item, name) is None]

    def score_of(self, item: VideoItem, dimension: str) -> VideoScore | None:
        """The stored score, or None."""
        found = self._stored(item, dimension)
        return None if found is None or found.failed is not None else found

    def failures(self, items: Sequence[VideoItem]) -> list[Problem]:
        """Why videos have no score, as stored by any run or shard; each once."""
        found: dict[Problem, None] = {}
        for item in items:
            try:
                stored = [self._stored(item, name) for name in self._names(item)]
            except OSError:
                continue
            found |= {score.failed: None for score in stored if score is not None and score.failed is not None}
        return list(found)

    def _stored(self, item: VideoItem, dimension: str) -> VideoScore | None:
        """The stored score or failure, or None."""
        return self.store.get(self._key(item, dimension)) if dimension in self.rules.dimensions else None

    def _fail(self, item: VideoItem, names: Sequence[str], problem: Problem) -> None:
        for name in names:
            self.store.put(self._key(item, name), self._record(item, name, {}, failed=problem))

    def _names(self, item: VideoItem) -> tuple[str, ...]:
        return tuple(name for name in item.dimensions if name in self.rules.dimensions)

    def sha256(self, item: VideoItem) -> str:
        """Of the file, read once. Raises OSError."""
        place = str(item.path)
        if place not in self.hashes:
            self.hashes[place] = file_sha256(item.path)
        return self.hashes[place]

    def _key(self, item: VideoItem, dimension: str) -> str:
        return score_key(self.sha256(item), item.prompt, dimension, self._metrics[dimension], self.protocol)

    def _score(self, item: VideoItem, names: Sequence[str], tell: Callable[[float], None] | None) -> None:
        """Decodes the video; stores what could be scored, and why the rest could not."""
        facts = probe(item.path)
        if self._expected_frames is not None and facts.frames != self._expected_frames:
            raise _OtherFrames(f"{item.path.name} has {facts.frames} frames, {self._expected_frames} are expected; it is left out")
        scoring = VideoScoring(self.protocol, self.rules, names, item.prompt, facts)
        with torch.inference_mode():
            scoring.feed(_counted(item, facts, tell))
            clips, across = scoring.clips, scoring.across()
        for name in names:
            if name in scoring.failed:
                message = f"{item.path.name}: {name}: {scoring.failed[name]}"
                self._fail(item, [name], Problem(kind="dimension", item=item.path.name, message=message))
            else:
                self.store.put(self._key(item, name), self._record(item, name, clips[name], across.get(name)))

    def _record(
        self, item: VideoItem, name: str, clips: dict[str, ClipScore], across: float | None = None, failed: Problem | None = None
    ) -> VideoScore:
        rule, beyond = self.rules.dimensions[name], self.rules.across.get(name)
        return VideoScore(
            video=item.name,
            video_sha256=self.sha256(item),
            dimension=name,
            metric=self._metrics[name],
            protocol=self.protocol.digest,
            stand_in=any(one.is_stand_in for used in (rule, beyond) if used for one in used.networks.values()),
            clips=clips,
            across=across,
            failed=failed,
        )


class _OtherFrames(ValueError):
    """A video of another length."""


def _within(progress: Progress, done: int, total: int, share: float) -> None:
    progress(done + share, total)


def _counted(item: VideoItem, facts: VideoFacts, tell: Callable[[float], None] | None = None) -> Iterator[np.ndarray]:
    """The video's frames; `tell` hears the share that is done. VideoFileError where fewer or more come than its packets promise."""
    count, told = 0, time.monotonic()
    for frame in decoded_frames(item.path):
        count += 1
        yield frame
        if tell is not None and time.monotonic() - told >= SAY_EVERY_S:
            told = time.monotonic()
            tell(count / facts.frames)
    if count != facts.frames:
        raise VideoFileError(f"{item.path.name} is damaged: it holds {facts.frames} packets, {count} frames can be decoded")


class VideoScoring:
    """One video under way: its clips, each with a measurement of every dimension."""

    def __init__(self, protocol: VBenchProtocol, rules: Rules, names: Sequence[str], prompt: Prompt, facts: VideoFacts) -> None:
        self._protocol, self._rules, self._prompt, self._facts = protocol, rules, prompt, facts
        self._long = protocol.suite == "vbench_long"
        if self._long:
            self._rate = float(clip_rate_hz(facts.frame_rate_hz, protocol.faithful))
            self._spans = plan_clips(facts.frames, facts.frame_rate_hz, clip_seconds(prompt.dimensions), protocol.faithful)
        else:
            self._rate, self._spans = facts.frame_rate_hz, (ClipSpan("full", 0, facts.frames),)
        self.clips: dict[str, dict[str, ClipScore]] = {name: {} for name in names}
        self.failed: dict[str, str] = {}
        """Dimension -> why it has no score."""
        self._first_frames: dict[str, np.ndarray] = {}

    def feed(self, frames: Iterable[np.ndarray]) -> None:
        """Takes the whole video."""
        active: dict[ClipSpan, _OpenClip] = {}
        for index, frame in enumerate(frames):
            for span in self._spans:
                if span.start == index:
                    active[span] = _OpenClip(self, span)
                if span.start <= index < span.stop:
                    before = min(active, key=lambda one: one.start) == span
                    active[span].add(frame, wait=not before)
                if span.stop == index + 1:
                    active.pop(span).close()

    def measurements(self, span: ClipSpan) -> dict[str, Measurement]:
        """A measurement of every dimension that can start on a clip."""
        facts = ClipFacts(span.frames, self._rate, self._facts.height, self._facts.width)
        started: dict[str, Measurement] = {}
        for name in self.clips:
            try:
                started[name] = self._rules.dimensions[name].start(facts, self._prompt)
            except ValueError as error:
                self.failed.setdefault(name, str(error))
        return started

    @property
    def writes(self) -> bool:
        """Whether clips are written again before they are scored."""
        return self._protocol.re_encode != "none"

    def writer(self) -> ClipWriter | None:
        """None: clips are scored as they are decoded."""
        if self._protocol.re_encode == "none":
            return None
        return ClipWriter(self._protocol.re_encode, self._protocol.repeatable, int(self._rate), self._facts.height, self._facts.width)

    def across(self) -> dict[str, float]:
        """Consistency of the clips' first frames, written again as the clips are; empty for a single clip."""
        if len(self._first_frames) < 2:
            return {}
        frames = [self._first_frames[name] for name in sorted(self._first_frames)]
        writer = self.writer()
        if writer is not None:
            for frame in frames:
                writer.add(encodable(frame))
            frames = list(writer.frames())
        facts = ClipFacts(len(frames), self._rate, self._facts.height, self._facts.width)
        found: dict[str, float] = {}
        for name, rule in self._rules.across.items():
            if name in self.clips:
                found[name] = _measured(rule, facts, self._prompt, frames)
        return found

    def seen(self, span: ClipSpan, frame: np.ndarray) -> None:
        """The first frame of a clip, as it is scored."""
        if self._long and set(self._rules.across) & set(self.clips):
            self._first_frames[span.name] = frame


def _measured(rule: Dimension, facts: ClipFacts, prompt: Prompt, frames: Sequence[np.ndarray]) -> float:
    measurement = rule.start(facts, prompt)
    for index, frame in enumerate(frames):
        measurement.add(index, frame)
    value = measurement.result().value
    assert value is not None  # consistency always has one
    return value


class _OpenClip:
    """Frames of one clip, straight to the measurements or by way of the encoder.

    An x264 encoder looks 40 frames ahead, 0.2 GB of 1080p. A clip that overlaps the one before keeps its pictures (half
    the bytes) until that one is closed.
    """

    def __init__(self, video: VideoScoring, span: ClipSpan) -> None:
        self._video, self._span, self._measurements = video, span, video.measurements(span)
        self._writer: ClipWriter | None = None
        self._waiting: list[av.VideoFrame] = []
        self._count = 0

    def add(self, frame: np.ndarray, wait: bool) -> None:
        """`wait`: an earlier clip is still open."""
        if not self._video.writes:
            self._measure(frame)
        elif wait:
            self._waiting.append(encodable(frame))
        else:
            self._encode(encodable(frame))

    def _encode(self, *pictures: av.VideoFrame) -> None:
        if self._writer is None:
            self._writer = self._video.writer()
        assert self._writer is not None
        for picture in (*self._waiting, *pictures):
            self._writer.add(picture)
        self._waiting = []

    def _measure(self, frame: np.ndarray) -> None:
        if self._count == 0:
            self._video.seen(self._span, frame)
        for name in list(self._measurements):
            try:
                self._measurements[name].add(self._count, frame)
            except ValueError as error:
                self._fail(name, error)
        self._count += 1

    def close(self) -> None:
        if self._video.writes:
            self._encode()
            assert self._writer is not None
            for frame in self._writer.frames():
                self._measure(frame)
        for name, measurement in list(self._measurements.items()):
            try:
                self._video.clips[name][self._span.name] = measurement.result()
            except ValueError as error:
                self._fail(name, error)

    def _fail(self, name: str, error: ValueError) -> None:
        self._video.failed.setdefault(name, str(error))
        self._measurements.pop(name, None)
