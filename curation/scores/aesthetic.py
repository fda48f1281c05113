"""Looks of a clip: `aesthetic_proxy` from four measured properties, and LAION's head on the stored CLIP embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from curation.config import AestheticConfig
from curation.ingest import hash_file
from curation.schema import CLIPS, EMBEDDING_WIDTH
from curation.scores.frame_embeddings import read_frame_embeddings
from curation.scores.weights import weights_file
from curation.step import Batch, Lineage, Resources, StepError, scored
from curation.tracks import ClipTrack, read_clip_track
from curation.versions import SCORE_VERSIONS
from curation.video import resize

SHORT_SIDE_PX = 360
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"


def aesthetic_proxy_lineage(track_run: str) -> Lineage:
    """What made aesthetic_proxy."""
    model = "colourfulness, sharpness, contrast, exposure"
    return Lineage("score", "aesthetic_proxy", SCORE_VERSIONS["aesthetic_proxy"], model, parameters={"track": track_run})


class AestheticProxyStep:
    """aesthetic_proxy, 1-10: a stand-in for a learned aesthetic where its weights are absent, in its own column.

    1 + 9 x (0.3 colourfulness + 0.3 sharpness + 0.2 contrast + 0.2 exposure), each part clipped to 0-1, mean over the key
    frames (the picture between the bars, 360 px short side):
    colourfulness = Hasler and Suesstrunk's M (2003) / 80 ("quite colourful" is 59, "highly" 82);
    sharpness = log10 of the variance of the Laplacian, from 1 (0) to 3.5 (1);
    contrast = standard deviation of luma / 64;
    exposure = 1 - |mean luma - 118| / 118 - share of clipped pixels (under 3 or over 252).
    """

    name = "aesthetic_proxy"
    reads: tuple[str, ...] = ("clip_id", "source_id", "start_us", "end_us")
    writes = pa.schema([CLIPS.field("aesthetic_proxy"), CLIPS.field("aesthetic_proxy_run")])
    resources = Resources(cpus=1, memory_bytes=300_000_000)

    def __init__(self, tracks: Path, track_run: str) -> None:
        self.lineage = aesthetic_proxy_lineage(track_run)
        self._tracks = tracks

    def __call__(self, batch: Batch) -> Batch:
        return scored([self._score(row) for row in batch.to_pylist()], self.lineage, self.writes)

    def _score(self, row: dict[str, Any]) -> float:
        track = read_clip_track(self._tracks, row["source_id"], row["clip_id"], row["start_us"], row["end_us"], read="keys")
        return float(np.mean([aesthetic_proxy(picture) for picture in key_pictures(track)]))


def key_pictures(track: ClipTrack) -> list[np.ndarray]:
    """The clip's key frames without their bars, uint8 H W 3 RGB. Raises StepError `no_key_frames`."""
    if not track.keys:
        raise StepError("no_key_frames", "the clip has no key frame; run detect_shots again")
    pictures = []
    for key in track.keys:
        picture = key.rgb()
        height, width = picture.shape[:2]
        top, bottom, left, right = track.bars_px or (0, 0, 0, 0)
        down, across = height / track.facts.height, width / track.facts.width
        lines = slice(round(top * down), height - round(bottom * down))
        columns = slice(round(left * across), width - round(right * across))
        inner = picture[lines, columns]
        pictures.append(inner if min(inner.shape[:2]) >= min(32, height, width) else picture)
    return pictures


def aesthetic_proxy(picture: np.ndarray) -> float:
    """Score of one picture (uint8 H W 3 RGB), 1-10; the class above holds the formula."""
    scale = min(1.0, SHORT_SIDE_PX / min(picture.shape[:2]))
    small = resize(picture, max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    mean, deviation = float(luma.mean()), float(luma.std())
    clipped = float(((luma < 3) | (luma > 252)).mean())
    detail = float(cv2.Laplacian(luma, cv2.CV_32F).var())
    parts = {
        "colour": (0.3, colourfulness(small) / 80),
        "sharpness": (0.3, (np.log10(max(detail, 1e-6)) - 1) / 2.5),
        "contrast": (0.2, deviation / 64),
        "exposure": (0.2, 1 - abs(mean - 118) / 118 - clipped),
    }
    return 1 + 9 * sum(weight * float(np.clip(value, 0, 1)) for weight, value in parts.values())


def colourfulness(picture: np.ndarray) -> float:
    """Hasler and Suesstrunk's M of a uint8 H W 3 RGB picture: 0 for grey, about 109 for extremely colourful."""
    red, green, blue = (picture[..., channel].astype(np.float32) for channel in range(3))
    one, other = red - green, (red + green) / 2 - blue
    return float(np.hypot(one.std(), other.std()) + 0.3 * np.hypot(one.mean(), other.mean()))


class AestheticStep:
    """aesthetic: LAION's sac+logos+ava1 head on the stored embedding; needs no picture. Scale about 1-10.

    aesthetic_min is the lowest of the key frames' own, null where their embeddings are not kept beside the track.
    """

    name = "aesthetic"
    reads: tuple[str, ...] = ("clip_id", "embedding")
    writes = pa.schema([CLIPS.field("aesthetic"), CLIPS.field("aesthetic_min"), CLIPS.field("aesthetic_run")])
    resources = Resources(cpus=1)

    def __init__(self, config: AestheticConfig, tracks: Path, embedding_run: str) -> None:
        self.lineage = aesthetic_lineage(config, embedding_run)
        self._tracks = tracks
        self._weight, self._bias = load_head(head_weights(config))

    def __call__(self, batch: Batch) -> Batch:
        column = batch.column("embedding")
        if column.null_count:
            raise StepError("no_embedding", "the clip has no CLIP embedding; its error row of step embedding says why")
        vectors = np.asarray(column.flatten(), np.float32).reshape(-1, EMBEDDING_WIDTH)
        scores = vectors @ self._weight + self._bias
        lowest = pa.array([self._lowest(clip_id) for clip_id in batch.column("clip_id").to_pylist()], pa.float32())
        columns = [pa.array(scores.astype(np.float32)), lowest, pa.array([self.lineage.run_id] * len(scores), pa.string())]
        return pa.RecordBatch.from_arrays(columns, schema=self.writes)

    def _lowest(self, clip_id: str) -> float | None:
        frames = read_frame_embeddings(self._tracks, clip_id)
        return None if frames is None else float((frames @ self._weight + self._bias).min())


def head_weights(config: AestheticConfig) -> Path:
    """The head's file. Raises StepError that names it and what to change."""
    return weights_file(
        config.head_weights,
        "curation.aesthetic.head_weights",
        f"aesthetic wants {HEAD_FILE} (LAION improved-aesthetic-predictor)",
        "curation.aesthetic.laion=false to do with aesthetic_proxy",
    )


def aesthetic_lineage(config: AestheticConfig, embedding_run: str) -> Lineage:
    """Lineage of aesthetic with the head's hash."""
    weights = hash_file(str(head_weights(config)))
    model = "LAION sac+logos+ava1 on CLIP ViT-L/14"
    return Lineage("score", "aesthetic", SCORE_VERSIONS["aesthetic"], model, weights, {"embedding": embedding_run})


def load_head(path: Path) -> tuple[np.ndarray, float]:
    """The head as one affine map (768 weights, bias): its five linear layers have no activation between them.

    Raises StepError when the file is another network.
    """
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    layers = sorted({int(name.split(".")[1]) for name in state if name.startswith("layers.")})
    matrix: np.ndarray | None = None
    bias = np.zeros(EMBEDDING_WIDTH)
    for layer in layers:
        weight = state[f"layers.{layer}.weight"].double().numpy()
        offset = state[f"layers.{layer}.bias"].double().numpy()
        matrix, bias = (weight, offset) if matrix is None else (weight @ matrix, weight @ bias + offset)
    if matrix is None or matrix.shape != (1, EMBEDDING_WIDTH):
        raise StepError("weights_wrong", f"{path} is not {HEAD_FILE}: found {sorted(state)[:4]}, expected layers.0.weight ... 768 -> 1")
    return matrix[0].astype(np.float32), float(bias[0])
