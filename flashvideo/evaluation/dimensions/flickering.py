"""Temporal flickering as a dimension, with the static filter that chooses its videos.

The arithmetic is temporal_flickering.py's. Which clips count is decided when a whole suite is put together
(aggregation.py): the first 5 static ones of each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flashvideo.evaluation.dimensions.motion import StaticFilter
from flashvideo.evaluation.dimensions.temporal_flickering import mean_difference
from flashvideo.evaluation.networks.interfaces import Network, OpticalFlow
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt, single_score


class TemporalFlickering:
    """The score of a clip, and whether it is static. `flow` None: no filter."""

    name, version = "temporal_flickering", "vbench@45e79ec/1"

    def __init__(self, flow: OpticalFlow | None) -> None:
        self.networks: Mapping[str, Network] = {} if flow is None else {"flow": flow}
        self._flow = flow

    def start(self, facts: ClipFacts, prompt: Prompt) -> FlickeringMeasurement:
        return FlickeringMeasurement(None if self._flow is None else StaticFilter(self._flow, facts))


class FlickeringMeasurement:
    """Keeps one frame; float32 means over BGR, then a float32 mean over pairs, as the reference."""

    def __init__(self, static_filter: StaticFilter | None) -> None:
        self._filter = static_filter
        self._before: np.ndarray | None = None
        self._differences: list[np.float32] = []

    def add(self, index: int, frame: np.ndarray) -> None:
        if self._before is not None:
            self._differences.append(mean_difference(self._before, frame, channels_turned=True))
        self._before = frame
        if self._filter is not None:
            self._filter.add(frame)

    def result(self) -> ClipScore:
        if not self._differences:
            raise ValueError("temporal flickering compares consecutive frames and needs at least 2")
        score = (255.0 - np.mean(np.array(self._differences)).item()) / 255.0
        return single_score(score) if self._filter is None else single_score(score, static=self._filter.result())
