"""motion_proxy on films of known motion (the whole grid: benchmarks/motion_truth.py), and motion_raft by the same path."""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from known_motion import Film, frames_of, measured

from curation.config import MotionConfig
from curation.scores.motion import RAFT_FILE, DisFlow, FlowEstimator, MotionRaftStep, RaftFlow

WEIGHTS = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch")) / "hub" / "checkpoints" / RAFT_FILE
"""Where torchvision's own loader keeps it."""


@pytest.mark.parametrize(
    "film",
    [
        Film("right", 0.5, 720, 30),
        Film("left", 40, 360, 60),
        Film("slant", 4, 1080, 24, rotation_deg=90),
        Film("up", 1.1, 2160, 24),
        Film("in", 0.5, 360, 24),
        Film("in", 40, 360, 24),
        Film("out", 40, 540, 24, rotation_deg=180),
    ],
    ids=lambda film: film.name,
)
def test_the_score_is_the_films_speed(tmp_path: Path, film: Film) -> None:
    motion = measured(film, tmp_path, DisFlow())
    assert motion.mean == pytest.approx(film.speed_px, rel=0.05)
    assert motion.residual < 0.05 * film.speed_px + 0.05


def test_a_still_film_reads_nothing(tmp_path: Path) -> None:
    assert measured(Film("still", 0, 720, 30), tmp_path, DisFlow()).mean < 0.05


def test_the_films_move_as_they_say() -> None:
    """A pan of 6 px per 1/8 s at 360 px and 24 fps is 2 px a frame: frame 3 shifted by 6 px is frame 0."""
    frames = [frame.astype(int) for frame in frames_of(Film("right", 6, 360, 24))]
    assert len(frames) == 13
    assert np.abs(frames[3][:, :-6] - frames[0][:, 6:]).max() <= 1
    assert np.abs(frames[3][:, :-5] - frames[0][:, 5:]).mean() > 1


class SmallRaft:
    """The true network on pictures of 132 px (360 px take 15 CPU-s a pair): what it is given, reduced, and padded by itself."""

    wants_color = True

    def __init__(self, flow: RaftFlow) -> None:
        self._flow = flow

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        scale = min(first.shape[:2]) / 132
        small = [cv2.resize(picture, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA) for picture in (first, second)]
        field = self._flow(*small)
        assert (field.shape, field.dtype) == ((*small[0].shape[:2], 2), np.float32)
        return field * scale


def raft_of(tmp_path: Path, flow: FlowEstimator, film: Film) -> float:
    measured(film, tmp_path, DisFlow())
    step = MotionRaftStep(MotionConfig(max_pairs=1), tmp_path / "tracks", "run", "cpu", flow=flow)
    rows = [{"clip_id": "c", "source_id": film.name, "start_us": 0, "end_us": 10_000_000}]
    written = step(pa.RecordBatch.from_pylist(rows))
    assert written.schema.equals(step.writes)
    value: float = written.column("motion_raft")[0].as_py()
    return value


def test_raft_of_random_weights_scores_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The true network from the track to the column; two of its twelve updates, since its numbers mean nothing."""
    monkeypatch.setattr("curation.scores.motion.RAFT_UPDATES", 2)
    value = raft_of(tmp_path, SmallRaft(RaftFlow(None, "cpu", seed=0)), Film("right", 5, 360, 24))
    assert math.isfinite(value)
    assert value > 0


@pytest.mark.weights
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"wants {WEIGHTS}")
def test_raft_reads_a_pan(tmp_path: Path) -> None:
    assert raft_of(tmp_path, RaftFlow(WEIGHTS, "cpu"), Film("right", 5, 360, 24)) == pytest.approx(5, rel=0.05)
