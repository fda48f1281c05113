"""What a real bucket contains: how each file of the hostile corpus ends, through ingest, detect_shots and score."""

from __future__ import annotations

from pathlib import Path

import pytest
from curated import DUPLICATE, FAILED, SPLIT, curate, outcomes, recipe_of
from generated_films import CORPUS

from curation.store import Store
from pipelines.artifacts import Workspace

KITTEN = "kitten_walk_480p.mp4"
"""The real film that two hostile files copy."""
EXPECTED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "-one-pixel-.mp4": (SPLIT, (), ""),
    "all_black_1080p.mp4": (SPLIT, (), ""),
    "alpha_vp9.webm": (SPLIT, (), ""),
    "audio_init_only.mp4": (FAILED, ("no_video_stream",), ""),
    "audio_only.mp4": (FAILED, ("no_video_stream",), ""),
    "av1.mkv": (SPLIT, (), ""),
    "chunk_out_of_range.mp4": (FAILED, ("invalid_container",), ""),
    "corrupted_packets.mp4": (SPLIT, ("damaged",), ""),
    "counter_1080p10.mp4": (SPLIT, ("no_clip",), ""),
    "damaged_middle_1080p.mp4": (SPLIT, ("damaged",), ""),
    "duplicate_bytes_of_kitten.mp4": (SPLIT, (), ""),
    "duplicate_reencoded_of_kitten.mp4": (SPLIT, (), "looks: duplicate_bytes_of_kitten.mp4"),
    "empty.mp4": (FAILED, ("empty_file",), ""),
    "encrypted_init_only.mp4": (FAILED, ("encrypted",), ""),
    "full_range.mp4": (SPLIT, ("no_clip",), ""),
    "h265_10bit.mp4": (SPLIT, ("no_clip",), ""),
    KITTEN: (DUPLICATE, (), "bytes: duplicate_bytes_of_kitten.mp4"),
    "name with spaces & ünïcode #1.mp4": (SPLIT, ("no_clip",), ""),
    "no_duration.webm": (SPLIT, (), ""),
    "one_frame.mp4": (DUPLICATE, (), "bytes: name with spaces & ünïcode #1.mp4"),
    "rotation_180.mov": (SPLIT, ("no_clip",), ""),
    "rotation_90.mov": (SPLIT, ("no_clip",), ""),
    "text_named.mp4": (FAILED, ("not_media",), ""),
    "truncated_faststart.mp4": (SPLIT, ("damaged", "truncated"), ""),
    "truncated_no_moov.mp4": (FAILED, ("truncated",), ""),
    "unordered_pts.mov": (SPLIT, ("no_clip",), ""),
    "vfr_360p.mp4": (SPLIT, (), ""),
}
"""File -> status, open errors, duplicate of."""


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
def test_every_hostile_file_ends_as_it_is_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "root")
    curate(workspace, recipe_of((str(CORPUS / "hostile"), str(CORPUS / "real" / KITTEN))))
    found = outcomes(workspace)
    assert {name: (outcome.status, outcome.codes, outcome.alike) for name, outcome in found.items()} == EXPECTED
    assert set(EXPECTED) == {path.name for path in (CORPUS / "hostile").iterdir()} | {KITTEN}
    assert all(outcome.is_named for outcome in found.values())
    damaged = {name: outcome.corrupt for name, outcome in found.items() if outcome.corrupt}
    assert damaged == {"corrupted_packets.mp4": 2, "damaged_middle_1080p.mp4": 2, "truncated_faststart.mp4": 41}
    for row in Store.open(workspace.store).read("clips").to_pylist():
        assert row["motion_proxy"] is None or row["motion_proxy"] >= 0
