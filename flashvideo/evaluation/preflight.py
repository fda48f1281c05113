"""What an evaluation will do, before a network is loaded: videos, clips, passes through each network, memory. Light."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flashvideo.evaluation.clip_plan import ClipSpan, clip_seconds, plan_clips
from flashvideo.evaluation.protocol import VBenchProtocol
from flashvideo.evaluation.suite import Problem, VideoItem
from flashvideo.evaluation.video_frames import VideoFacts, probe

CHOSEN_FRAMES = {
    "object_class": 16,
    "multiple_objects": 16,
    "color": 16,
    "spatial_relationship": 16,
    "scene": 16,
    "human_action": 1,
    "temporal_style": 1,
    "overall_consistency": 1,
}
"""Passes through the network a clip; the other dimensions look at every frame, or at pairs."""
FLOATS_AT_WORK = 12
"""Frames as float32 that a flow or an interpolation works with at once, about."""
ENCODER_PICTURES = 60
"""Pictures that x264's preset medium holds: 40 ahead, references, threads."""


@dataclass(frozen=True)
class Preflight:
    """What was found and what is to come."""

    items: tuple[VideoItem, ...]
    """The videos that can be scored."""
    frames: int
    sizes: dict[str, int]
    """ "1920x1080, 8 frames/s, 49 frames" -> videos."""
    clips: dict[int, int]
    """Clips a video -> videos."""
    passes: dict[str, int]
    """Dimension -> frames, pairs or clips through its network."""
    peak_bytes: int
    """Of pixels held at once by the largest video, without networks, about."""
    problems: tuple[Problem, ...]

    def lines(self, more: Sequence[Problem] = ()) -> list[str]:
        """As text. `more`: the folder's problems, counted with those found here."""
        text = [f"{len(self.items)} videos, {self.frames} frames"]
        text += [f"  {count:>6} x {size}" for size, count in sorted(self.sizes.items())]
        text += [
            f"  {count:>6} video{'s' if count != 1 else ''} of {clips} clip{'s' if clips != 1 else ''}"
            for clips, count in sorted(self.clips.items())
        ]
        text += [f"  {name:<24}{count:>10} passes" for name, count in self.passes.items()]
        text.append(f"  pixels held at once: {self.peak_bytes / 2**20:.0f} MiB at most, networks apart")
        kinds = Counter(problem.kind for problem in (*more, *self.problems))
        text += [f"  {count:>6} problem{'s' if count != 1 else ''}: {kind}" for kind, count in sorted(kinds.items())]
        return text


def look(items: Sequence[VideoItem], protocol: VBenchProtocol, expected_frames: int | None = None) -> Preflight:
    """Probes every video (no decoding). One that cannot be scored is a fatal problem; where most have one length, another is told."""
    good: list[tuple[VideoItem, VideoFacts, tuple[ClipSpan, ...]]] = []
    problems: list[Problem] = []
    for item in items:
        try:
            facts = probe(item.path)
            fault = _fault(item, facts, protocol, expected_frames)
            if fault is None:
                good.append((item, facts, _spans(item, facts, protocol)))
            else:
                problems.append(fault)
        except ValueError as error:  # VideoFileError, or a rate without clips
            problems.append(Problem(kind="unreadable", item=item.path.name, message=str(error)))
    usual = _usual_frames([facts for _, facts, _ in good])
    sizes: Counter[str] = Counter()
    passes: Counter[str] = Counter()
    for item, facts, spans in good:
        if usual is not None and facts.frames != usual:
            message = f"{item.path.name} has {facts.frames} frames, most have {usual}"
            problems.append(Problem(kind="frames", item=item.path.name, message=message, fatal=False))
        sizes[f"{facts.width}x{facts.height}, {facts.frame_rate_hz:g} frames/s, {facts.frames} frames"] += 1
        for name in item.dimensions:
            passes[name] += sum(_passes(name, span.frames, facts.frame_rate_hz, protocol) for span in spans)
    return Preflight(
        items=tuple(item for item, _, _ in good),
        frames=sum(facts.frames for _, facts, _ in good),
        sizes=dict(sizes),
        clips=dict(Counter(len(spans) for _, _, spans in good)),
        passes=dict(sorted(passes.items())),
        peak_bytes=max((_peak_bytes(item, facts, protocol) for item, facts, _ in good), default=0),
        problems=tuple(problems),
    )


def _usual_frames(facts: Sequence[VideoFacts]) -> int | None:
    """The length of more than half of the videos; None where no length is: one's own videos may all differ."""
    for frames, count in Counter(one.frames for one in facts).most_common(1):
        if 2 * count > len(facts):
            return frames
    return None


def _fault(item: VideoItem, facts: VideoFacts, protocol: VBenchProtocol, expected_frames: int | None) -> Problem | None:
    """Why a readable video cannot be scored."""
    name = item.path.name
    if expected_frames is not None and facts.frames != expected_frames:
        message = f"{name} has {facts.frames} frames, {expected_frames} are expected; it is left out"
        return Problem(kind="frames", item=name, message=message)
    if protocol.re_encode != "none" and (facts.height % 2 or facts.width % 2):
        message = f"{name} is {facts.width}x{facts.height} px; writing it again needs even sizes (--re-encode none keeps them)"
        return Problem(kind="size", item=name, message=message)
    return None


def _spans(item: VideoItem, facts: VideoFacts, protocol: VBenchProtocol) -> tuple[ClipSpan, ...]:
    if protocol.suite == "vbench":
        return (ClipSpan("full", 0, facts.frames),)
    return plan_clips(facts.frames, facts.frame_rate_hz, clip_seconds(item.prompt.dimensions), protocol.faithful)


def _passes(dimension: str, frames: int, frame_rate_hz: float, protocol: VBenchProtocol) -> int:
    if dimension == "dynamic_degree":
        return max(0, len(range(0, frames, max(1, round(frame_rate_hz / 8)))) - 1)
    if dimension == "temporal_flickering":  # the static filter's pairs, and both ends both ways
        return frames + 1 if protocol.static_filter else 0
    if dimension == "motion_smoothness":
        return (frames - 1) // 2
    return CHOSEN_FRAMES.get(dimension, frames)


def _peak_bytes(item: VideoItem, facts: VideoFacts, protocol: VBenchProtocol) -> int:
    """Kept frames (uint8, shared), a metric's floats at work, and with re-encoding x264's pictures and those that wait for it."""
    frame = facts.height * facts.width * 3
    chosen = max((CHOSEN_FRAMES.get(name, 0) for name in item.dimensions), default=0)
    held = (2 + min(chosen, 16, facts.frames)) * frame + FLOATS_AT_WORK * 4 * frame
    if protocol.re_encode != "none":
        spans = _spans(item, facts, protocol)
        waiting = max((one.stop - two.start for one, two in itertools.pairwise(spans)), default=0)
        held += (min(ENCODER_PICTURES, facts.frames) + max(0, waiting)) * frame // 2
    return held
