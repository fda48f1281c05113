"""Technical quality by pyiqa's metrics, by name, on the key frames. pyiqa is licensed PolyForm Noncommercial."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.config import QualityConfig
from curation.ingest import hash_file
from curation.revisions import revision_of
from curation.schema import CLIPS
from curation.scores.aesthetic import key_pictures
from curation.scores.metric_files import METRIC_FILES
from curation.step import Batch, Lineage, Resources, StepError, scored
from curation.tracks import read_clip_track
from curation.versions import SCORE_VERSIONS

SMALLEST_PX = 32
"""pyiqa's metrics look at blocks and scales; piqe breaks below two blocks of 16 px."""
METRICS = ("piqe", "musiq", "clipiqa", "maniqa", "niqe")
"""Metrics that have a column."""
MEMORY_BYTES = 1_500_000_000
WITHOUT_WEIGHTS = frozenset({"piqe"})
"""Metrics that need no weights file."""


class QualityStep:
    """One pyiqa metric, mean over `max_frames` key frames (between the bars). Direction and range are the metric's own (schema).

    Importing pyiqa costs several seconds, so it is done once per worker, here.
    """

    reads: tuple[str, ...] = ("clip_id", "source_id", "start_us", "end_us")

    def __init__(
        self, metric: str, config: QualityConfig, tracks: Path, track_run: str, device: str, make: Callable[[str, Any], Any] | None = None
    ) -> None:
        """`make`: (metric, device) -> the metric with the weights of config.weights, in place of pyiqa's own."""
        import torch

        self.name = metric
        self.writes = quality_fields(metric)
        self.resources = Resources(cpus=1, gpus=1 if device.startswith("cuda") else 0, memory_bytes=MEMORY_BYTES)
        self.lineage = quality_lineage(metric, config, track_run)
        self._max_frames = config.max_frames
        self._torch, self._device, self._tracks = torch, torch.device(device), tracks
        torch.set_num_threads(1)
        self._metric = _create(metric, self._device, make)

    def __call__(self, batch: Batch) -> Batch:
        return scored([self._score(row) for row in batch.to_pylist()], self.lineage, self.writes)

    def _score(self, row: dict[str, Any]) -> float:
        track = read_clip_track(self._tracks, row["source_id"], row["clip_id"], row["start_us"], row["end_us"], read="keys")
        values = []
        for picture in spread(key_pictures(track), self._max_frames):
            if min(picture.shape[:2]) < SMALLEST_PX:
                raise StepError(
                    "too_small", f"{self.name} needs {SMALLEST_PX} px on both sides, the picture is {picture.shape[1]}x{picture.shape[0]}"
                )
            tensor = self._torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float().to(self._device) / 255
            with self._torch.inference_mode():
                values.append(float(self._metric(tensor)))
        if not np.isfinite(values).all():
            raise StepError("not_finite", f"{self.name} gave {values} on the key frames; a picture without any structure has no such score")
        return float(np.mean(values))


def quality_fields(metric: str) -> pa.Schema:
    """The metric's columns. Raises StepError for a metric that the schema has no column for."""
    if metric not in METRICS:
        raise StepError(
            "unknown_metric", f"curation.quality.metrics: the clips table has no column {metric!r}; it has {', '.join(METRICS)}"
        )
    return pa.schema([CLIPS.field(metric), CLIPS.field(f"{metric}_run")])


def spread(pictures: list[np.ndarray], count: int) -> list[np.ndarray]:
    """At most `count` of the pictures, evenly spaced, the middle one when it is one."""
    if len(pictures) <= count:
        return pictures
    return [pictures[int((place + 0.5) * len(pictures) / count)] for place in range(count)]


def quality_lineage(metric: str, config: QualityConfig, track_run: str) -> Lineage:
    """Lineage of one metric, with the hash of its weights where they come from a folder. Raises StepError when they are not there."""
    from importlib.metadata import version

    weights = metric_weights(metric, config)
    parameters = {"track": track_run, "max_frames": config.max_frames}
    model = f"pyiqa {version('pyiqa')} {metric}"
    sha256, revision = (None, None) if weights is None else (hash_file(str(weights)), revision_of(weights))
    return Lineage("score", metric, SCORE_VERSIONS["quality"], model, sha256, parameters, revision)


def metric_weights(metric: str, config: QualityConfig) -> Path | None:
    """The metric's file in config.weights; None where it needs none or no folder is named. Raises StepError that names it."""
    if config.weights is None or metric not in METRIC_FILES:
        return None
    path = Path(config.weights).expanduser() / METRIC_FILES[metric]
    if not path.is_file():
        raise StepError(
            "weights_missing",
            f"{metric} wants {path}, which does not exist; put it there, set curation.quality.weights=null to let pyiqa download it, "
            "or leave the metric out of curation.quality.metrics",
        )
    return path


def _create(metric: str, device: Any, make: Callable[[str, Any], Any] | None) -> Any:
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        try:
            if make is not None:
                return make(metric, device)
            import pyiqa

            return pyiqa.create_metric(metric, device=device)
        except Exception as error:
            raise StepError(
                "weights_missing" if metric not in WITHOUT_WEIGHTS else "metric_broken",
                f"pyiqa could not make {metric}: {error}; name a folder of weights in curation.quality.weights, put them into pyiqa's "
                "cache (~/.cache/torch/hub/pyiqa), or leave the metric out of curation.quality.metrics",
            ) from error
