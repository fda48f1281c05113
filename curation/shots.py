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


def clip_id(source_id: str, start_us: int, end_us: int) -> str:
    """Content-derived key of a clip: 32 hex of the sha256 of what it shows and where."""
    return hashlib.sha256(f"{source_id}:{start_us}:{end_us}".encode()).hexdigest()[:32]


class CutDetector:
    """Finds first frames of new shots. Hard cuts by PySceneDetect's detector, cancelled when they are flashes; the
    end of a fade through black by its ThresholdDetector."""

    def __init__(self, config: ShotsConfig, frame_rate_hz: float) -> None:
        self._rate = max(1.0, float(frame_rate_hz))
        shortest = max(2, round(MIN_SHOT_S * self._rate))
        self._detectors: list[Any] = []
        if config.detector == "adaptive":
            threshold = {} if config.threshold is None else {"adaptive_threshold": config.threshold}
            self._detectors.append(AdaptiveDetector(min_scene_len=shortest, **threshold))
        elif config.detector == "content":
            threshold = {} if config.threshold is None else {"threshold": config.threshold}
            self._detectors.append(ContentDetector(min_scene_len=shortest, filter_mode=FlashFilter.Mode.SUPPRESS, **threshold))
        self._fades = ThresholdDetector(threshold=BLACK_LEVEL, min_scene_len=shortest, fade_bias=1.0, min_out_length=2)
        self._flash = max(2, round(FLASH_S * self._rate)) if self._detectors else 0
        behind = max([0] + [detector.event_buffer_length for detector in self._detectors])
        self.lag = max(self._flash, behind * (MAX_SKIPPED + 1))
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

    def _is_lasting(self, cut: int) -> bool:
        """True for a jump to another picture; False for one that is no jump, or that a flash makes and takes back."""
        before = [picture for index, picture in self._coarse if cut - self._flash <= index < cut]
        after = [picture for index, picture in self._coarse if cut <= index <= cut + self._flash]
        jump = _difference(before[-1], after[0])
        nearest = min(_difference(early, late) for early in before for late in after)
        return jump >= MIN_JUMP and nearest >= FLASH_RETURN * jump


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
