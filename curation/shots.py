"""Cuts and clips: PySceneDetect's detectors fed frame by frame, and shots cut into clips while decoding goes on.

Both work online, a few frames behind the decoder, so that one pass over the file is enough.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, ThresholdDetector
from scenedetect.detector import FlashFilter

from curation.config import ShotsConfig

MIN_SHOT_S = 0.5
"""PySceneDetect's own minimum scene length (15 frames at 30 fps)."""
FLASH_S = 0.3
"""A picture that returns within this time was interrupted by a flash, not by a cut."""
FLASH_RETURN = 0.35
"""Returned: some later frame differs from some earlier one by less than this share of the jump."""
BLACK_LEVEL = 8
"""Mean of B, G, R below which the picture has faded to black (ThresholdDetector)."""
MIN_JUMP = 6.0
"""Mean difference (0-255) of the coarse pictures across a cut; a hue that flips in a grey picture stays under it."""
MAX_SKIPPED = 4
"""Repeats in a row that are kept from the detectors. An 8 fps film shown at 24 would be a cut every third frame."""
COARSE_PX = 24
MAX_RATE_HZ = 240.0
"""A header may say 90,000 frames a second; so many frames must not be waited for."""
WHITE_LEVEL = 240
"""Mean of B, G, R above which the picture has faded to white."""
SUDDEN = 0.5
"""A picture that turns white, or back, by more than this share of the way in one frame is a flash, not a fade."""
DISSOLVE_PX = 12
DISSOLVE_S = (0.15, 0.2, 0.27, 0.36, 0.48, 0.64)
"""Half lengths of dissolves that are looked for."""
DISSOLVE_RESIDUAL, DISSOLVE_CORRELATION = 0.12, 0.5
"""A dissolve's pictures differ from the mix of its ends by less than this share of the ends' difference, and its ends are not alike.
Of the corpus: the one dissolve (nasa_180p) 0.03, everything else from 0.15 on. A move is no such mix: where its ends are so unlike, what
lies between is neither."""
DISSOLVE_REST = 0.15
"""Before and after it, for a quarter of its length, the pictures change by less than this share of the ends' difference. A dissolve itself
changes by a quarter in that time, and so does a steady zoom of a texture that looks like a mix (generated, 4.5 px: a residual of 0.087)."""
DISSOLVE_JUMP, DISSOLVE_STRUCTURE = 12.0, 12.0
"""Mean difference of a dissolve's ends, and the standard deviation of each: black and white are fades."""


def clip_id(source_id: str, start_us: int, end_us: int) -> str:
    """Content-derived key of a clip: 32 hex of the sha256 of what it shows and where."""
    return hashlib.sha256(f"{source_id}:{start_us}:{end_us}".encode()).hexdigest()[:32]


class CutDetector:
    """Finds first frames of new shots. Hard cuts by PySceneDetect's detector, cancelled when they are flashes; the end of a fade
    through black or white by its ThresholdDetector; both ends of a dissolve (`DissolveDetector`), whose mixed pictures are a shot of
    their own, too short for a clip.
    """

    def __init__(self, config: ShotsConfig, frame_rate_hz: float) -> None:
        self._rate = min(max(1.0, float(frame_rate_hz)), MAX_RATE_HZ)
        shortest = max(2, round(MIN_SHOT_S * self._rate))
        self._detectors: list[Any] = []
        if config.detector == "adaptive":
            threshold = {} if config.threshold is None else {"adaptive_threshold": config.threshold}
            self._detectors.append(AdaptiveDetector(min_scene_len=shortest, **threshold))
        elif config.detector == "content":
            threshold = {} if config.threshold is None else {"threshold": config.threshold}
            self._detectors.append(ContentDetector(min_scene_len=shortest, filter_mode=FlashFilter.Mode.SUPPRESS, **threshold))
        self._fades = ThresholdDetector(threshold=BLACK_LEVEL, min_scene_len=shortest, fade_bias=1.0, min_out_length=2)
        self._white = ThresholdDetector(
            threshold=WHITE_LEVEL, min_scene_len=shortest, fade_bias=1.0, min_out_length=2, method=ThresholdDetector.Method.CEILING
        )
        self._dissolves = DissolveDetector(self._rate)
        self._flash = max(2, round(FLASH_S * self._rate)) if self._detectors else 0
        behind = max([0] + [detector.event_buffer_length for detector in self._detectors])
        self.lag = max(self._flash, behind * (MAX_SKIPPED + 1), self._dissolves.lag) if self._detectors else 0
        """Frames that must be seen after a frame before it is known whether a shot begins with it."""
        self._coarse: deque[tuple[int, np.ndarray]] = deque(maxlen=2 * self.lag + 2)
        self._candidates: list[int] = []
        self._sure: set[int] = set()
        self._index = -1
        self._skipped = 0

    def push(self, picture: np.ndarray, repeated: bool) -> bool | None:
        """Takes the next frame (small uint8 H W 3, blue green red) and whether it repeats the one before. Answers for
        the frame `lag` places earlier: True when a shot begins with it; None while there is no such frame."""
        self._index += 1
        timecode = FrameTimecode(self._index, fps=self._rate)
        coarse = cv2.resize(picture, (COARSE_PX, COARSE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
        self._coarse.append((self._index, coarse))
        self._skipped = self._skipped + 1 if repeated and self._skipped < MAX_SKIPPED else 0
        if self._detectors and not self._skipped:
            for detector in self._detectors:
                self._candidates += [cut.frame_num for cut in detector.process_frame(timecode, picture)]
            self._sure.update(cut.frame_num for cut in self._fades.process_frame(timecode, picture))
            self._sure.update(cut.frame_num for cut in self._white.process_frame(timecode, picture) if self._fades_slowly(cut.frame_num))
        if self._detectors:
            self._sure.update(self._dissolves.push(coarse) or ())
        decided = self._index - self.lag
        return self._decide(decided) if decided >= 0 else None

    def flush(self) -> list[bool]:
        """Answers for the last `lag` frames (all of them, when there were fewer)."""
        return [self._decide(index) for index in range(max(0, self._index - self.lag + 1), self._index + 1)]

    def _decide(self, index: int) -> bool:
        if index == 0:
            return False
        if index in self._sure:
            self._sure.remove(index)
            return True
        if index in self._candidates:
            self._candidates.remove(index)
            return self._is_lasting(index)
        return False

    def _fades_slowly(self, back: int) -> bool:
        """Whether the picture that comes back from white at this frame was all white, and went there and comes back little by little."""
        seen = {index: picture for index, picture in self._coarse if index <= back}
        levels = {index: float(picture.mean()) for index, picture in seen.items()}
        steps = [
            abs(level - levels[index - 1])
            for index, level in levels.items()
            if index - 1 in levels and max(level, levels[index - 1]) >= WHITE_LEVEL
        ]
        white = any(picture.min() >= WHITE_LEVEL for picture in seen.values())
        return white and max(steps, default=256.0) < SUDDEN * (WHITE_LEVEL - min(levels.values()))

    def _is_lasting(self, cut: int) -> bool:
        """True for a jump to another picture; False for one that is no jump, or that a flash makes and takes back."""
        before = [picture for index, picture in self._coarse if cut - self._flash <= index < cut]
        after = [picture for index, picture in self._coarse if cut <= index <= cut + self._flash]
        jump = _difference(before[-1], after[0])
        nearest = min(_difference(early, late) for early in before for late in after)
        return jump >= MIN_JUMP and nearest >= FLASH_RETURN * jump


class DissolveDetector:
    """Finds cross-dissolves: pictures that are a mix of two that are unlike, in shares that move evenly from one to the other.

    Looks at pictures of 12 px, where the shots' own motion is small beside the mix. Shots that change much while they dissolve are
    not found: what is found is sure.
    """

    def __init__(self, frame_rate_hz: float) -> None:
        self._halves = np.array(sorted({max(3, round(seconds * frame_rate_hz)) for seconds in DISSOLVE_S}))
        self._longest = int(self._halves[-1])
        self._patience = max(3, self._longest // 4)
        self._reach = self._longest + self._longest // 2
        self.lag = self._longest + self._reach + 2 * self._patience
        """Frames after a dissolve's first by which it is told."""
        self._ring = np.zeros((2 * self._reach + 1, 3 * DISSOLVE_PX**2), np.float32)
        self._index = -1
        self._best: tuple[int, float, int] | None = None  # half length, how near to a mix, centre
        self._told = 0  # frames before this one belong to a dissolve that was told

    def push(self, coarse: np.ndarray) -> tuple[int, int] | None:
        """Takes the next picture (float32 H W 3); answers with a dissolve's first mixed frame and the first frame after it."""
        self._index += 1
        small = cv2.resize(coarse, (DISSOLVE_PX, DISSOLVE_PX), interpolation=cv2.INTER_AREA)
        self._ring[self._index % len(self._ring)] = small.reshape(-1)
        centre = self._index - self._reach
        if centre % 2 == 0 and centre >= self._halves[0]:  # every second centre will do
            found = self._at(centre)
            if found is not None and (self._best is None or found[:2] > self._best[:2]):
                self._best = found
        if self._best is None:
            return None
        half, _, middle = self._best
        first, after = middle - half + 1, middle + half
        if centre < middle + self._patience and self._index < first + self.lag:
            return None
        self._best = None
        if first < self._told:
            return None
        self._told = after
        return first, after

    def _at(self, centre: int) -> tuple[int, float, int] | None:
        """The longest dissolve around that frame."""
        halves = self._halves[self._halves <= centre]
        quarters = halves // 2
        early, late, middle = self._pictures(centre - halves), self._pictures(centre + halves), self._pictures(np.array([centre]))
        jump = np.abs(early - late).mean(axis=1)
        residual = np.abs(middle - (early + late) / 2).mean(axis=1)
        likely = (jump >= DISSOLVE_JUMP) & (residual < DISSOLVE_RESIDUAL * jump)
        if not likely.any():  # nearly always: the rest costs more
            return None
        share = (quarters / halves / 2)[:, None]
        for side, near, far in ((-1, early, late), (1, late, early)):
            mixed = self._pictures(centre + side * quarters)
            residual = np.maximum(residual, np.abs(mixed - (0.5 + share) * near - (0.5 - share) * far).mean(axis=1))
            beyond = self._pictures(np.maximum(centre + side * (halves + quarters), 0))
            likely &= np.abs(beyond - near).mean(axis=1) < DISSOLVE_REST * jump
        deviations = np.minimum(early.std(axis=1), late.std(axis=1))
        alike = [np.corrcoef(one, other)[0, 1] if bare else 1.0 for one, other, bare in zip(early, late, deviations > 0, strict=True)]
        good = (
            likely & (residual < DISSOLVE_RESIDUAL * jump) & (deviations >= DISSOLVE_STRUCTURE) & (np.array(alike) < DISSOLVE_CORRELATION)
        )
        if not good.any():
            return None
        place = int(np.flatnonzero(good)[-1])
        return int(halves[place]), -float(residual[place] / jump[place]), centre

    def _pictures(self, frames: np.ndarray) -> np.ndarray:
        return self._ring[frames % len(self._ring)]


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


@dataclass(frozen=True)
class Span:
    """A clip's place in its source."""

    start_us: int
    """Time of the first frame."""
    end_us: int
    """Time of the first frame after it."""
    shot: int


class ClipCutter:
    """Cuts shots into clips of a fixed length as frames go by. A rest shorter than the minimum is left out."""

    def __init__(self, config: ShotsConfig) -> None:
        self._length_us = round(config.clip_duration_s * 1_000_000)
        self._min_us = round(config.min_duration_s * 1_000_000)
        self._start_us: int | None = None
        self._shot = 0
        self.cuts_us: list[int] = []

    def push(self, time_us: int, is_cut: bool) -> Span | None:
        """Takes the next frame; returns the clip that ends right before it, if one does."""
        if self._start_us is None:
            self._start_us = time_us
            return None
        if is_cut:
            ended = self._end(time_us)
            self.cuts_us.append(time_us)
            self._shot += 1
            self._start_us = time_us
            return ended
        # A frame this near to the boundary is the boundary: container clocks round.
        if time_us >= self._start_us + self._length_us - 1_000:
            ended = self._end(time_us)
            self._start_us = time_us
            return ended
        return None

    def finish(self, end_us: int) -> Span | None:
        """Takes the end of the source; returns the last clip, if long enough."""
        return None if self._start_us is None else self._end(end_us)

    @property
    def start_us(self) -> int | None:
        """Where the clip that is now open begins."""
        return self._start_us

    def _end(self, end_us: int) -> Span | None:
        assert self._start_us is not None
        if end_us - self._start_us < self._min_us - 1_000:
            return None
        return Span(self._start_us, end_us, self._shot)
