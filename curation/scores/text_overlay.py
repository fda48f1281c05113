"""text_overlay: the share of the picture under text that stays in place (subtitles, titles, watermarks)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from curation.config import TextOverlayConfig
from curation.ingest import hash_file
from curation.revisions import revision_of
from curation.schema import CLIPS
from curation.scores.quality import spread
from curation.scores.weights import weights_file
from curation.step import Batch, Lineage, Resources, StepError, scored
from curation.tracks import read_clip_track
from curation.versions import SCORE_VERSIONS

DETECTOR_FILE = "text_detection_en_ppocrv3_2023may.onnx"
"""Of OpenCV's model zoo (Apache-2.0), a differentiable-binarisation (DB) detector: a picture in, a map of text probability out."""
SHORT_SIDE_PX, MULTIPLE_PX = 544, 32
MEAN_BGR = (122.67891434, 116.66876762, 104.00698793)
"""As the zoo's own reader: minus the mean, over 255."""
TEXT_PROBABILITY, BOX_PROBABILITY, GROWTH = 0.3, 0.5, 2.0
"""DB's thresholds of pixel and box, and its unclip ratio: the map shows the core of each line of text (Liao et al. 2020, 3.4)."""


class TextOverlayStep:
    """Share of the whole picture, bars included (subtitles often stand there), 0-1.

    Of a video the pixels count that lie under text in at least half of its key frames: text of the scene moves with it, or with
    the camera. Raises StepError `no_key_frames`, `weights_missing`, `weights_wrong`.
    """

    name = "text_overlay"
    reads: tuple[str, ...] = ("clip_id", "source_id", "start_us", "end_us")
    writes = pa.schema([CLIPS.field("text_overlay"), CLIPS.field("text_overlay_run")])
    resources = Resources(cpus=1, memory_bytes=600_000_000)

    def __init__(self, config: TextOverlayConfig, tracks: Path, track_run: str) -> None:
        self.lineage = text_overlay_lineage(config, track_run)
        self._max_frames, self._tracks = config.max_frames, tracks
        path = detector_file(config)
        try:
            self._network = cv2.dnn.readNet(str(path))
        except cv2.error as error:
            raise StepError(
                "weights_wrong", f"OpenCV cannot read {path} as a network ({error.err}); text_overlay wants a DB detector"
            ) from None

    def __call__(self, batch: Batch) -> Batch:
        return scored([self._score(row) for row in batch.to_pylist()], self.lineage, self.writes)

    def _score(self, row: dict[str, Any]) -> float:
        track = read_clip_track(self._tracks, row["source_id"], row["clip_id"], row["start_us"], row["end_us"], read="keys")
        if not track.keys:
            raise StepError("no_key_frames", "the clip has no key frame; run detect_shots again")
        masks = np.stack([text_mask(self._probability(picture)) for picture in spread([key.rgb() for key in track.keys], self._max_frames)])
        return float((2 * masks.sum(axis=0) >= len(masks)).mean())

    def _probability(self, rgb: np.ndarray) -> np.ndarray:
        """float32 H W of the reduced picture."""
        scale = min(1.0, SHORT_SIDE_PX / min(rgb.shape[:2]))
        height, width = (max(MULTIPLE_PX, round(side * scale / MULTIPLE_PX) * MULTIPLE_PX) for side in rgb.shape[:2])
        blob = cv2.dnn.blobFromImage(rgb, 1 / 255, (width, height), MEAN_BGR, swapRB=True)
        try:
            self._network.setInput(blob)
            found: np.ndarray = self._network.forward()
        except cv2.error as error:
            raise StepError("weights_wrong", f"the text detector fails on a picture of {width}x{height}: {error.err}") from None
        if found.shape != (1, 1, height, width):
            raise StepError("weights_wrong", f"the text detector gives {found.shape}; a DB detector gives one map, {(1, 1, height, width)}")
        return found[0, 0]


def text_mask(probability: np.ndarray) -> np.ndarray:
    """bool H W: pixels under text, of a DB detector's map (float32 H W, 0-1)."""
    core = (probability > TEXT_PROBABILITY).astype(np.uint8)
    covered = np.zeros_like(core)
    for contour in cv2.findContours(core, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
        inside = np.zeros_like(core)
        cv2.drawContours(inside, [contour], -1, 1, cv2.FILLED)
        if cv2.mean(probability, inside)[0] < BOX_PROBABILITY:
            continue
        centre, (width, height), angle = cv2.minAreaRect(contour)
        width, height = width + 1, height + 1  # contours run through the middle of pixels
        grown = GROWTH * width * height / (2 * (width + height))
        corners = cv2.boxPoints((centre, (width + 2 * grown - 1, height + 2 * grown - 1), angle))
        cv2.fillPoly(covered, [np.round(corners).astype(np.int32)], 1)
    return covered.astype(bool)


def detector_file(config: TextOverlayConfig) -> Path:
    """The detector's file. Raises StepError that names it and what to change."""
    return weights_file(
        config.detector,
        "curation.text_overlay.detector",
        f"text_overlay wants a text detector as ONNX, e.g. {DETECTOR_FILE} (OpenCV's model zoo)",
        "null to do without",
    )


def text_overlay_lineage(config: TextOverlayConfig, track_run: str) -> Lineage:
    """Lineage of text_overlay with the detector's hash."""
    path = detector_file(config)
    parameters = {"track": track_run, "max_frames": config.max_frames}
    return Lineage(
        "score",
        "text_overlay",
        SCORE_VERSIONS["text_overlay"],
        f"DB text detector {path.name}",
        hash_file(str(path)),
        parameters,
        revision_of(path),
    )
