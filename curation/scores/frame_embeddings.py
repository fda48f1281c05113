"""Embeddings of a clip's key frames, kept beside its track: tracks/embeddings/<clip_id>.npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from curation.whole_files import writing


def write_frame_embeddings(tracks: Path, clip_id: str, vectors: np.ndarray) -> None:
    """Keeps K x 768 unit vectors beside the track, so that another head's lowest frame needs no network."""
    path = _frames_path(tracks, clip_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, suffix=".npy") as part:
        np.save(part, vectors.astype(np.float16))


def read_frame_embeddings(tracks: Path, clip_id: str) -> np.ndarray | None:
    """float32 K 768; None where they are not kept here."""
    path = _frames_path(tracks, clip_id)
    return np.load(path).astype(np.float32) if path.is_file() else None


def _frames_path(tracks: Path, clip_id: str) -> Path:
    return tracks / "embeddings" / f"{clip_id}.npy"
