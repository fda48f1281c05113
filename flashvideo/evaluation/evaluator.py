"""Videos in, stored scores out: each video is decoded once, frame by frame, for all of its dimensions.

Memory: a frame or two a dimension, the 8 or 16 chosen frames of those that look at the middle, and with re-encoding
the compressed clip. Scores go to the store video by video, so stopping loses one video, and shards share a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from flashvideo.evaluation.clip_plan import ClipSpan, clip_rate_hz, clip_seconds, plan_clips
from flashvideo.evaluation.dimensions.dimension import Dimension, Measurement
from flashvideo.evaluation.protocol import VBenchProtocol, file_sha256
from flashvideo.evaluation.rules import Rules
from flashvideo.evaluation.score_store import ScoreStore, VideoScore, metric_version, score_key
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt
from flashvideo.evaluation.suite import Problem, VideoItem
from flashvideo.evaluation.video_frames import ClipWriter, VideoFacts, decoded_frames, probe
from flashvideo.video_files import VideoFileError

Progress = Callable[[int, int], None]


@dataclass
class Tally:
    """What a pass over videos did."""

    scored: int = 0
    """Videos that were decoded."""
    kept: int = 0
    """Videos whose scores were all there."""
    problems: list[Problem] = field(default_factory=list)


class Evaluator:
    """Scores videos under one protocol.

    `expected_frames`: a video with another number is left out and named; None takes any.
    """

    def __init__(self, protocol: VBenchProtocol, rules: Rules, store: ScoreStore, expected_frames: int | None = None) -> None:
        self.protocol, self.rules, self.store = protocol, rules, store
        self._expected_frames = expected_frames
        self._metrics = {name: metric_version(rule, rules.across.get(name)) for name, rule in rules.dimensions.items()}
        self._hashes: dict[str, str] = {}

    def evaluate(self, items: Sequence[VideoItem], shard: int = 0, shards: int = 1, progress: Progress | None = None) -> Tally:
        """Scores every `shards`-th video from `shard` on that the store lacks. A bad video is a problem, not an error."""
        if not 0 <= shard < shards:
            raise ValueError(f"shard {shard} of {shards}: count from 0")
        mine, tally = items[shard::shards], Tally()
        for done, item in enumerate(mine):
            if progress is not None:
                progress(done, len(mine))
            try:
                lacking = [name for name in self._names(item) if self.score_of(item, name) is None]
                if lacking:
                    tally.problems += self._score(item, lacking)
                    tally.scored += 1
                else:
                    tally.kept += 1
            except (VideoFileError, OSError) as error:
                tally.problems.append(Problem(kind="unreadable", item=item.path.name, message=str(error)))
            except _OtherFrames as error:
                tally.problems.append(Problem(kind="frames", item=item.path.name, message=str(error)))
            except ValueError as error:
                tally.problems.append(Problem(kind="video", item=item.path.name, message=f"{item.path.name}: {error}"))
        if progress is not None:
            progress(len(mine), len(mine))
        return tally

    def score_of(self, item: VideoItem, dimension: str) -> VideoScore | None:
        """The stored score, or None."""
        return self.store.get(self._key(item, dimension)) if dimension in self.rules.dimensions else None

    def _names(self, item: VideoItem) -> tuple[str, ...]:
        return tuple(name for name in item.dimensions if name in self.rules.dimensions)

    def _sha256(self, item: VideoItem) -> str:
        place = str(item.path)
        if place not in self._hashes:
            self._hashes[place] = file_sha256(item.path)
        return self._hashes[place]

    def _key(self, item: VideoItem, dimension: str) -> str:
        return score_key(self._sha256(item), item.prompt, dimension, self._metrics[dimension], self.protocol)

    def _score(self, item: VideoItem, names: Sequence[str]) -> list[Problem]:
        """Decodes the video, stores what could be scored, returns what could not."""
        facts = probe(item.path)
        if self._expected_frames is not None and facts.frames != self._expected_frames:
            raise _OtherFrames(f"{item.path.name} has {facts.frames} frames, {self._expected_frames} are expected; it is left out")
        scoring = VideoScoring(self.protocol, self.rules, names, item.prompt, facts)
        with torch.inference_mode():
            scoring.feed(_counted(item, facts))
            clips, across = scoring.clips, scoring.across()
        for name in names:
            if name in scoring.failed:
                continue
            rule, beyond = self.rules.dimensions[name], self.rules.across.get(name)
            score = VideoScore(
                video=item.name,
                video_sha256=self._sha256(item),
                dimension=name,
                metric=self._metrics[name],
                protocol=self.protocol.digest,
                stand_in=any(one.is_stand_in for used in (rule, beyond) if used for one in used.networks.values()),
                clips=clips[name],
                across=across.get(name),
            )
            self.store.put(self._key(item, name), score)
        return [
            Problem(kind="dimension", item=item.path.name, message=f"{item.path.name}: {name}: {reason}")
            for name, reason in scoring.failed.items()
        ]


class _OtherFrames(ValueError):
    """A video of another length."""


def _counted(item: VideoItem, facts: VideoFacts) -> Iterator[np.ndarray]:
    """The video's frames. Raises VideoFileError where fewer or more come than its packets promise."""
    count = 0
    for frame in decoded_frames(item.path):
        count += 1
        yield frame
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
                    active[span] = self._open(span)
                if span.start <= index < span.stop:
                    active[span].add(frame)
                if span.stop == index + 1:
                    active.pop(span).close()

    def _open(self, span: ClipSpan) -> _OpenClip:
        facts = ClipFacts(span.frames, self._rate, self._facts.height, self._facts.width)
        measurements: dict[str, Measurement] = {}
        for name in self.clips:
            try:
                measurements[name] = self._rules.dimensions[name].start(facts, self._prompt)
            except ValueError as error:
                self.failed.setdefault(name, str(error))
        return _OpenClip(self, span, measurements, self._writer())

    def _writer(self) -> ClipWriter | None:
        if self._protocol.re_encode == "none":
            return None
        return ClipWriter(self._protocol.re_encode, self._protocol.repeatable, int(self._rate), self._facts.height, self._facts.width)

    def across(self) -> dict[str, float]:
        """Consistency of the clips' first frames, written again as the clips are; empty for a single clip."""
        if len(self._first_frames) < 2:
            return {}
        frames = [self._first_frames[name] for name in sorted(self._first_frames)]
        writer = self._writer()
        if writer is not None:
            for frame in frames:
                writer.add(frame)
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
    """Frames of one clip, straight to the measurements or by way of the encoder."""

    def __init__(self, video: VideoScoring, span: ClipSpan, measurements: dict[str, Measurement], writer: ClipWriter | None) -> None:
        self._video, self._span, self._measurements, self._writer = video, span, measurements, writer
        self._count = 0

    def add(self, frame: np.ndarray) -> None:
        if self._writer is None:
            self._measure(frame)
        else:
            self._writer.add(frame)

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
        if self._writer is not None:
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
