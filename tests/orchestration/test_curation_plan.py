"""What a sample says of the whole, on a store whose figures divide in the head."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from curation.sources import SourceFile
from curation.step import Lineage
from curation.store import Store
from orchestration.curation_plan import measure_plan, plan_lines, plan_of, plan_table, sample_of
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.recipe import preset

FILES = [SourceFile(f"/films/{name}.mp4", 1_000_000, 0) for name in "abcdefghij"]


def test_the_sample_is_the_same_every_time_and_within_its_limits() -> None:
    chosen = sample_of(FILES, most_files=4)
    assert len(chosen) == 4
    assert sample_of(FILES[::-1], most_files=4) == chosen
    assert len(sample_of(FILES, most_bytes=2_500_000)) == 2
    assert len(sample_of(FILES, most_bytes=10)) == 1
    assert sample_of([SourceFile("/empty.mp4", 0, 0)]) == []


def test_the_whole_follows_by_bytes(tmp_path: Path) -> None:
    """2 of 10 equal files: 36 s of one worker for 60 s of video make 180 s for all, 0.05 worker-hours."""
    store = Store.open(tmp_path / "store")
    store.upsert("sources", pa.table({"uri": ["a", "b"], "duration_s": [20.0, 40.0]}))
    store.upsert("clips", pa.table({"clip_id": ["x", "y"], "caption": ["a red car", None]}))
    store.register_run(Lineage("score", "motion_proxy", "1", "DIS", parameters={}), "cpu", 6.0, 2, 2, 0)
    store.register_run(Lineage("detect_shots", "decode_pass", "1", "adaptive", parameters={}), "cpu", 30.0, 2, 1, 1)
    (tmp_path / "tracks").mkdir()
    (tmp_path / "tracks" / "a.arrow").write_bytes(bytes(1000))
    plan = plan_of(store, tmp_path / "tracks", FILES, FILES[:2])
    assert [(step.step, plan.hours(step)) for step in plan.steps] == [
        ("decode_pass", pytest.approx(150 / 3600)),
        ("motion_proxy", pytest.approx(30 / 3600)),
    ]
    assert (plan.factor, plan.sample_s, plan.sample_clips, plan.sample_words, plan.track_bytes) == (5.0, 60.0, 2, 3, 1000)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(plan_table(plan, workers=2, worker_price=10.0))
    rows = [line.split() for line in captured.get().splitlines()]
    assert rows[1] == ["detect_shots", "decode_pass", "cpu", "2", "1", "30", "1,800", "0.0417", "the", "dearest", "0.42"]
    assert rows[3] == ["all", "0.05", "CPU-h;", "0.025", "h", "with", "2", "workers", "0.50"]
    assert "10 clips, 15 words of captions (about 20 tokens)" in plan_lines(plan, tmp_path)[1]
    assert len(plan_lines(plan, tmp_path)) == 2


def test_hours_on_a_gpu_are_counted_and_priced_apart(tmp_path: Path) -> None:
    """1 h of a CPU at 2 and half an hour of a GPU at 10; without the GPU's price the whole has none."""
    store = Store.open(tmp_path / "store")
    store.register_run(Lineage("detect_shots", "decode_pass", "1", "adaptive"), "cpu", 720.0, 2, 2, 0)
    store.register_run(Lineage("score", "motion_raft", "1", "RAFT"), "cuda", 360.0, 2, 2, 0)
    plan = plan_of(store, tmp_path, FILES, FILES[:2])

    def shown(*prices: float | None) -> list[list[str]]:
        console = Console(width=200)
        with console.capture() as captured:
            console.print(plan_table(plan, 1, *prices))
        return [line.split() for line in captured.get().splitlines()[1:]]

    assert shown(2.0, 10.0)[-1] == ["all", "1", "CPU-h", "and", "0.5", "GPU-h;", "1.5", "h", "with", "1", "workers", "7.00"]
    assert [row[-1] for row in shown(2.0, None)] == ["2.00", "–", "–"]


def test_no_sources_are_a_mistake(tmp_path: Path) -> None:
    recipe = preset("debug").model_copy(update={"sources": (str(tmp_path / "none"),)})
    with pytest.raises(UserError, match="nothing to plan for"):
        measure_plan(recipe, Workspace(tmp_path / "root"))
