"""Broken files through ingest and the decode pass: the job goes on, every file ends in a named state."""

from __future__ import annotations

from pathlib import Path

import cv2
from curated import Outcome, curate, outcomes, recipe_of
from generated_films import moving, texture, write_film
from mutated_files import KINDS, write_mutations

from pipelines.artifacts import Workspace


def test_broken_files_end_in_a_named_state(tmp_path: Path) -> None:
    originals = [
        write_film(tmp_path / "a.mp4", moving(90, 160, 60, (2, 0), seed=1)),
        write_film(tmp_path / "b.mkv", moving(96, 128, 50, (0, 1), seed=2)),
        tmp_path / "c.png",
    ]
    cv2.imwrite(str(originals[2]), texture(60, 80, 3))
    kinds = write_mutations(tmp_path / "broken", originals, number=3 * len(KINDS), seed=5)
    recipe = recipe_of((str(tmp_path / "broken"),), "curation.decode.deadline_s=30")
    curate(Workspace(tmp_path / "root"), recipe, "ingest", "detect_shots")
    found = outcomes(Workspace(tmp_path / "root"))
    assert {name: outcome for name, outcome in found.items() if not outcome.is_named} == {}
    assert set(found) == set(kinds)
    assert {outcome.status for outcome in found.values()} >= {"split", "failed"}, "some survive, some do not"


def test_an_exception_is_no_named_state() -> None:
    assert Outcome("failed", ("not_media",), None, None, 0, "").is_named
    assert not Outcome("failed", ("exception",), None, None, 0, "").is_named
    assert not Outcome("failed", (), None, None, 0, "").is_named
    assert not Outcome("probed", (), None, None, 0, "").is_named


def test_equal_seeds_break_equally(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(range(256)) * 40)
    for folder, seed in (("one", 1), ("two", 1), ("three", 2)):
        write_mutations(tmp_path / folder, [tmp_path / "a.mp4"], 10, seed)
    contents = {folder: [path.read_bytes() for path in sorted((tmp_path / folder).iterdir())] for folder in ("one", "two", "three")}
    assert contents["one"] == contents["two"] != contents["three"]
    assert all(data != (tmp_path / "a.mp4").read_bytes() for data in contents["one"])
