"""Health of a clip, and its perceptual hashes, read off the track: damage, repeats, black, luma, blur, letterbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.schema import CLIPS
from curation.step import Batch, Lineage, Resources, StepError
from curation.tracks import ClipTrack, read_clip_track
from curation.versions import SCORE_VERSIONS

BLACK_SHARE = 0.98
"""A frame is black when this share of its pixels is (as ffmpeg's blackdetect)."""
COLUMNS = (
    "corrupt_frames", "repeated_ratio", "black_ratio", "luma_mean", "blur", "letterbox_top_px", "letterbox_bottom_px",
    "letterbox_left_px", "letterbox_right_px", "perceptual_hash", "health_run",
)  # fmt: skip


def health_lineage(track_run: str) -> Lineage:
    """What made the health columns."""
    return Lineage("score", "health", SCORE_VERSIONS["health"], "counts over decoded frames", parameters={"track": track_run})


class HealthStep:
    """Counts and means over a clip's frames. Bars are null when every key frame is black. Raises StepError `no_frames`."""

    name = "health"
    reads: tuple[str, ...] = ("clip_id", "source_id", "start_us", "end_us")
    writes = pa.schema([CLIPS.field(name) for name in COLUMNS])
    resources = Resources(cpus=1, memory_bytes=300_000_000)

    def __init__(self, tracks: Path, track_run: str) -> None:
        self.lineage = health_lineage(track_run)
        self._tracks = tracks

    def __call__(self, batch: Batch) -> Batch:
        rows = [
            self._row(read_clip_track(self._tracks, row["source_id"], row["clip_id"], row["start_us"], row["end_us"], read="facts"))
            for row in batch.to_pylist()
        ]
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _row(self, track: ClipTrack) -> dict[str, Any]:
        shown = track.decoded
        if shown.num_rows == 0:
            raise StepError("no_frames", "the clip has no decoded frame; look at its source's damage")
        repeats = shown["repeat"].to_numpy(zero_copy_only=False)[1:]
        black = shown["black_share"].to_numpy() >= BLACK_SHARE
        blur = track.samples["blur"].to_numpy()
        bars = track.bars_px or (None,) * 4
        return {
            "corrupt_frames": int(track.frames["corrupt"].to_numpy(zero_copy_only=False).sum()),
            "repeated_ratio": float(repeats.mean()) if len(repeats) else 0.0,
            "black_ratio": float(black.mean()),
            "luma_mean": float(np.clip(shown["luma"].to_numpy().mean(), 0, 255)),
            "blur": float(blur.mean()) if len(blur) else None,
            "letterbox_top_px": bars[0],
            "letterbox_bottom_px": bars[1],
            "letterbox_left_px": bars[2],
            "letterbox_right_px": bars[3],
            "perceptual_hash": " ".join(f"{key.hash:016x}" for key in track.keys),
            "health_run": self.lineage.run_id,
        }
