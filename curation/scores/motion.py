"""Motion scores, definition `flashvideo-motion/1`.

Frames by time, 1/8 s apart; the active picture (bars cut off) at 360 px short side; optical flow between
neighbours; per pair the mean over pixels of sqrt(u^2 + v^2); per clip the sum over valid pairs divided by the time
that they span. Unit: px at 360 px short side per 1/8 s. A still clip reads 0; a pan of 1 px/frame at 1080p30 reads 1.25.

A pair is invalid when it touches a corrupt frame or spans a cut. A repeated frame makes no pair of its own: its
time goes to the pair that the next new frame makes. Dividing by the time that pairs really span (and not by their
number) keeps the score the same at every frame rate, where 1/8 s is not a whole number of frames.

Two estimators, two columns: `motion_proxy` (OpenCV DIS with a guard, `dis_flow`) and `motion_raft` (RAFT large).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import pyarrow as pa

from curation.config import MotionConfig
from curation.schema import CLIPS
from curation.scores.dis_flow import DisFlow, affine_field, coarse, fit_affine
from curation.scores.weights import weights_file
from curation.step import Batch, Lineage, Resources, StepError, scored
from curation.tracks import ClipTrack, read_clip_track
from curation.versions import SCORE_VERSIONS
from curation.video import resize

TICK_US = 125_000
RUNS = 3
"""Clips with more than max_pairs pairs: this many runs of neighbouring pairs, at the start, middle and end."""
SMALLEST_PICTURE_PX = 32
STATIC_PX = 0.15
"""Camera motion below this is none; the guard leaves less than that of a static shot."""
RAFT_UPDATES = 12
RAFT_MEMORY_BYTES = 2_000_000_000
RAFT_FILE = "raft_large_C_T_SKHT_V2-ff5fadd5.pth"


@dataclass(frozen=True)
class Pair:
    """Two samples whose flow counts."""

    first: int
    """Index of the sample."""
    second: int
    ticks: float
    """Time between them in units of 1/8 s."""


@dataclass(frozen=True)
class Motion:
    """What a clip's flow fields say. All in px at 360 px short side per 1/8 s."""

    mean: float
    top5: float
    """Mean over the fastest 5 % of pixels."""
    camera: float
    """Mean magnitude of the global affine part."""
    residual: float
    """Mean magnitude of what remains."""
    pairs: int
    camera_move: str


class FlowEstimator(Protocol):
    """Optical flow between two pictures: (H W uint8 luma or H W 3 uint8 RGB) x 2 -> float32 h w 2; values in px of the input, on its
    grid or a coarser one."""

    wants_color: bool

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray: ...


def valid_pairs(track: ClipTrack, max_pairs: int) -> list[Pair]:
    """Pairs of neighbouring samples that count, at most `max_pairs`."""
    samples = track.samples
    times = samples["time_us"].to_numpy()
    rows = track.frames.drop_columns(["picture"])
    row_times = rows["time_us"].to_numpy()
    corrupt, cut, repeat = (rows[name].to_numpy(zero_copy_only=False) for name in ("corrupt", "cut", "repeat"))
    pairs: list[Pair] = []
    anchor: int | None = None
    pending = False  # samples that repeat the anchor follow it
    for index in range(len(times)):
        if anchor is not None:
            between = (row_times > times[index - 1]) & (row_times <= times[index])
            if corrupt[between].any() or cut[between].any():
                anchor, pending = None, False
            elif repeat[between].all():
                pending = True
                continue
        damaged = bool(corrupt[row_times == times[index]].any())
        if anchor is not None and not damaged:
            pairs.append(Pair(anchor, index, float(times[index] - times[anchor]) / TICK_US))
        anchor, pending = (None if damaged else index), False
    if pending and anchor is not None:  # nothing moved up to the end: still time counts as time
        last = len(times) - 1
        pairs.append(Pair(anchor, last, float(times[last] - times[anchor]) / TICK_US))
    return _thinned(pairs, max_pairs)


def _thinned(pairs: list[Pair], max_pairs: int) -> list[Pair]:
    if len(pairs) <= max_pairs:
        return pairs
    length = max(1, max_pairs // RUNS)
    starts = [round(run * (len(pairs) - length) / (RUNS - 1)) for run in range(RUNS)]
    chosen = sorted({start + offset for start in starts for offset in range(length)})
    return [pairs[index] for index in chosen]


def active_part(track: ClipTrack) -> tuple[slice, slice]:
    """Rows and columns of the sampled pictures that are not bars (the whole picture where too little would be left)."""
    width, height = track.facts.picture_width, track.facts.picture_height
    if track.bars_px is None:
        return slice(0, height), slice(0, width)
    top, bottom, left, right = track.bars_px
    down, across = height / track.facts.height, width / track.facts.width
    # One picture line more than the bar: area reduction mixes bar and picture there.
    first, last = _inset(top * down), height - _inset(bottom * down)
    start, end = _inset(left * across), width - _inset(right * across)
    if last - first < SMALLEST_PICTURE_PX or end - start < SMALLEST_PICTURE_PX:
        return slice(0, height), slice(0, width)
    return slice(first, last), slice(start, end)


def _inset(bar: float) -> int:
    return int(np.ceil(bar)) + 1 if bar > 0 else 0


def measure_motion(track: ClipTrack, estimator: FlowEstimator, max_pairs: int, short_side_px: int = 360) -> Motion:
    """Motion of a clip. Raises StepError `too_few_frames` when no pair of frames is valid."""
    pairs = valid_pairs(track, max_pairs)
    if not pairs:
        raise StepError(
            "too_few_frames",
            f"{track.samples.num_rows} frames 1/8 s apart hold no pair that is free of cuts and damage; motion needs one "
            f"({track.frames['corrupt'].to_pylist().count(True)} damaged frames in the clip; drop such clips in the policy)",
        )
    lines, columns = active_part(track)
    height, width = lines.stop - lines.start, columns.stop - columns.start
    scale = short_side_px / min(height, width)
    size = round(width * scale), round(height * scale)
    totals = np.zeros(4)
    affine_total = np.zeros(6)
    ticks = 0.0
    pictures = _Pictures(track, estimator.wants_color, lines, columns, size)
    for pair in pairs:
        flow = estimator(pictures[pair.first], pictures[pair.second])
        facts, affine = _pair_facts(flow)
        totals += facts
        affine_total += affine
        ticks += pair.ticks
    mean, top5, camera, residual = (float(value) for value in totals / ticks)
    return Motion(mean, top5, camera, residual, len(pairs), _camera_move(affine_total / ticks, mean))


class _Pictures:
    """Samples cropped and resized, the last two kept (neighbouring pairs share one)."""

    def __init__(self, track: ClipTrack, color: bool, lines: slice, columns: slice, size: tuple[int, int]) -> None:
        self._track, self._color, self._lines, self._columns, self._size = track, color, lines, columns, size
        self._kept: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._kept:
            picture = self._track.picture(index)
            whole = picture.to_rgb(picture.luma.shape[1], picture.luma.shape[0]) if self._color else picture.luma
            made = np.ascontiguousarray(resize(whole[self._lines, self._columns], *self._size))
            self._kept = {**dict(list(self._kept.items())[-1:]), index: made}
        return self._kept[index]


def _pair_facts(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, top 5 %, camera, residual) magnitudes, and the affine part's six numbers over places in [-1, 1]."""
    size = cv2.magnitude(flow[..., 0], flow[..., 1])
    top = max(1, size.size // 20)
    fastest = np.partition(size.reshape(-1), size.size - top)[-top:]
    small = coarse(flow)
    affine = fit_affine(small)
    camera = affine_field(affine, *small.shape[:2])
    facts = [size.mean(), fastest.mean(), *(np.sqrt((field * field).sum(axis=2)).mean() for field in (camera, small - camera))]
    return np.array(facts, np.float64), affine


def _camera_move(affine: np.ndarray, mean: float) -> str:
    """The dominant move of the camera. The picture moves against the camera: a pan to the right moves it to the left."""
    u0, ux, _, v0, _, vy = affine
    shift = float(np.hypot(u0, v0))
    zoom = float(ux + vy) / 2 * 0.5  # px at half the way to the edge, comparable with a shift
    if max(shift, abs(zoom)) < max(STATIC_PX, 0.05 * mean):
        return "static"
    if abs(zoom) > shift:
        return "zoom in" if zoom > 0 else "zoom out"
    if abs(u0) >= abs(v0):
        return "pan right" if u0 < 0 else "pan left"
    return "tilt down" if v0 < 0 else "tilt up"


def _fields(*names: str) -> pa.Schema:
    return pa.schema([CLIPS.field(name) for name in names])


def _clip_tracks(batch: Batch, folder: Path) -> Iterator[ClipTrack]:
    for row in batch.to_pylist():
        yield read_clip_track(folder, row["source_id"], row["clip_id"], row["start_us"], row["end_us"])


TRACK_COLUMNS: tuple[str, ...] = ("clip_id", "source_id", "start_us", "end_us")


def motion_proxy_lineage(config: MotionConfig, track_run: str) -> Lineage:
    """What made motion_proxy."""
    model = "OpenCV DIS, texture guard (flashvideo-motion/1)"
    parameters = {"max_pairs": config.max_pairs, "track": track_run}
    return Lineage("score", "motion_proxy", SCORE_VERSIONS["motion_proxy"], model, parameters=parameters)


class MotionProxyStep:
    """motion_proxy and its parts by DIS. Unit: px at 360 px short side per 1/8 s. A still clip scores 0; images are not given."""

    name = "motion_proxy"
    reads: tuple[str, ...] = TRACK_COLUMNS
    writes = _fields(
        "motion_proxy", "motion_proxy_run", "motion_top5", "motion_camera", "motion_object", "motion_pairs", "camera_move"
    )  # fmt: skip
    resources = Resources(cpus=1, memory_bytes=500_000_000)

    def __init__(self, config: MotionConfig, tracks: Path, track_run: str) -> None:
        self.lineage = motion_proxy_lineage(config, track_run)
        self._config, self._tracks = config, tracks
        self._flow = DisFlow()

    def __call__(self, batch: Batch) -> Batch:
        found = [measure_motion(track, self._flow, self._config.max_pairs) for track in _clip_tracks(batch, self._tracks)]
        columns = [
            pa.array([motion.mean for motion in found], pa.float32()),
            pa.array([self.lineage.run_id] * len(found), pa.string()),
            pa.array([motion.top5 for motion in found], pa.float32()),
            pa.array([motion.camera for motion in found], pa.float32()),
            pa.array([motion.residual for motion in found], pa.float32()),
            pa.array([motion.pairs for motion in found], pa.int32()),
            pa.array([motion.camera_move for motion in found], pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.writes)


class RaftFlow:
    """torchvision's RAFT large on RGB in [-1, 1], 12 updates, padded by replication to a multiple of 8."""

    wants_color = True

    def __init__(self, weights: Path | None, device: str, seed: int | None = None) -> None:
        """`weights`: the state dict's file. None with a seed: random weights of the true architecture, for tests."""
        import torch
        from torchvision.models.optical_flow import raft_large

        if weights is None:
            if seed is None:
                raise ValueError("RAFT needs its weights, or a seed for random ones")
            torch.manual_seed(seed)
        self._torch, self._device = torch, torch.device(device)
        model = raft_large(weights=None, progress=False)
        if weights is not None:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
        self._model = model.eval().to(self._device)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        torch = self._torch
        height, width = first.shape[:2]
        down, right = -height % 8, -width % 8
        pictures = []
        for picture in (first, second):
            tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            pictures.append(torch.nn.functional.pad(tensor, (0, right, 0, down), mode="replicate").to(self._device))
        with torch.inference_mode():
            flow = self._model(*pictures, num_flow_updates=RAFT_UPDATES)[-1]
        answer: np.ndarray = flow[0, :, :height, :width].permute(1, 2, 0).float().cpu().numpy()
        return answer


class MotionRaftStep:
    """motion_raft by RAFT large. Unit as motion_proxy. Raises StepError `weights_missing` without its weights file."""

    name = "motion_raft"
    reads: tuple[str, ...] = TRACK_COLUMNS
    writes = _fields("motion_raft", "motion_raft_run")

    def __init__(self, config: MotionConfig, tracks: Path, track_run: str, device: str, flow: FlowEstimator | None = None) -> None:
        """`flow` replaces the network (tests give one with random weights)."""
        self.resources = Resources(cpus=1, gpus=1 if device.startswith("cuda") else 0, memory_bytes=RAFT_MEMORY_BYTES)
        self.lineage = raft_lineage(config, track_run) if flow is None else Lineage("score", self.name, "1", "RAFT large, random weights")
        self._config, self._tracks = config, tracks
        self._flow = flow or RaftFlow(raft_weights(config), device)

    def __call__(self, batch: Batch) -> Batch:
        found = [measure_motion(track, self._flow, self._config.max_pairs) for track in _clip_tracks(batch, self._tracks)]
        return scored([motion.mean for motion in found], self.lineage, self.writes)


def raft_weights(config: MotionConfig) -> Path:
    """The weights file. Raises StepError that names it and what to change."""
    return weights_file(
        config.raft_weights,
        "curation.motion.raft_weights",
        f"motion_raft wants {RAFT_FILE} (torchvision raft_large, C_T_SKHT_V2)",
        "curation.motion.raft=false to do with motion_proxy",
    )


def raft_lineage(config: MotionConfig, track_run: str) -> Lineage:
    """Lineage of motion_raft with the weights' hash."""
    from curation.ingest import hash_file

    model = "torchvision raft_large C_T_SKHT_V2 (flashvideo-motion/1)"
    parameters = {"max_pairs": config.max_pairs, "updates": RAFT_UPDATES, "track": track_run}
    return Lineage("score", "motion_raft", SCORE_VERSIONS["motion_raft"], model, hash_file(str(raft_weights(config))), parameters)
